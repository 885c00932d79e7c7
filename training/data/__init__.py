"""Logs: where rows come from, and how they become arrays of ids."""
