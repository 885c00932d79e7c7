"""The online program: raw ad requests in over HTTP, calibrated click probabilities out.

Imports `models/` and never `training/`; starts where torch is not installed. `python -m service --help`
teaches the rest.
"""
