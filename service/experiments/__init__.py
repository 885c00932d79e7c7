"""Which arm a unit belongs to.

`file.py` is the experiment file and what makes it valid; `assignment.py` the published hash and the ranges it falls
into; `state.py` remembers which version `latest` meant when a phase started. `phases.py` is what may change while a
phase lasts, `writing.py` how a program changes the file, `preview.py` whom a change would move. None of them knows HTTP
or a model.
"""
