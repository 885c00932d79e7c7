"""From trained networks to bundles: the serving graph, parity with torch, smaller numbers, cost of scoring."""
