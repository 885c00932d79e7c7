"""An experiment's results over HTTP: `keeper.py` answers for a worker, `process.py` computes, in a process of its own."""
