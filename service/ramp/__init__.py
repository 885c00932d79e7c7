"""A ramp: the coverage of an experiment grows in stated steps, while everything is well (docs/experiments.md).

`decide.py` says from plan, state and evidence what is to be done; `state.py` remembers since when, beside the
experiment file; `evidence.py` asks the exposure log; `command.py` is `python -m service ramp`, which does it. A process
of its own: it reads the log, which no scoring worker does.
"""
