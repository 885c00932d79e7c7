"""The requests of every benchmark: those that `python -m service bench` makes of a bundle."""

from service.bench.workload import POOL, AdRequest, make_requests

__all__ = ["POOL", "AdRequest", "make_requests"]
