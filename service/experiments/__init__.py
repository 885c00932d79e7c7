"""Which arm a unit belongs to.

`file.py` is the experiment file and what makes it valid; `assignment.py` the published hash and the ranges it falls
into; `state.py` remembers which version `latest` meant when a phase started. None of them knows HTTP or a model.
"""
