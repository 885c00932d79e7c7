"""What the service logged -> a log to train on: the way back from clicks to the next model (docs/journal.md).

    records.py    a folder of the service -> its exposures and events, whichever form it keeps them in
    features.py   raw features as requests had them -> typed columns of the training log
    join.py       exposures, events, a window and a moment -> rows, and a count of everything that is none
    write.py      rows -> Parquet, with its schema, a recipe and the report
    command.py    `python -m training from-log`

What an event counts for is decided in `models/journal/attribution.py`, as it is for `python -m service results`.
"""
