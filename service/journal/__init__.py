"""The journal: what was answered and what came of it, kept so that an experiment can be judged (docs/journal.md).

Called the journal and not the log, because `service/logs.py` is the program's log: lines for people, on stderr. This
one is for machines, is kept on purpose, and is read by `python -m service results`.

    segments.py   the files beside reading them: what a dead writer left behind, what is too old
    writer.py     one worker's end: append, rotate, sync, forget; what happens when the disk fails
    records.py    what is in a record: an exposure or an event
    exposures.py  a finished request -> its exposure
    units.py      users' ids under a keyed hash
    feedback.py   POST /feedback: bytes -> events, or a refusal that names the row
    keeper.py     the journal of one application: puts the above together and counts
    erase.py      one unit out of a folder
    joined.py     a folder -> the joined log that answers are made of

Frames, the names of files and what an event counts for are `models/journal/`: training reads the log too.
"""
