"""An experiment's results over HTTP: `keeper.py` answers for a worker, `process.py` computes, apart from it."""
