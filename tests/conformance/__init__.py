"""Clients from PyPI, unmodified, against a running service: `make conformance`.

They need versions of libraries that exclude one another and ours, so each has an environment of its own, which the
command makes. The clients' scripts import nothing of ours: each gets the address and a file of requests with the scores
that /predict gave them, and prints a line of JSON for each check.
"""
