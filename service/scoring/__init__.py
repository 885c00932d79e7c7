"""From a decoded request to pctr: what is loaded, who answers, encoding, the queue before the graphs, shadows."""
