"""Who may do what: routes that need a token, and what they change.

gate.py        which routes are public, the token for the others, the limits of each
audit.py       one line a change: who, what, when, with what result
repository.py  what loading and unloading a model means here: a file that every worker follows
"""
