"""Where the journal goes when a folder of segments is outgrown (docs/journal.md). In a worker
nothing of it runs but `lag.py`.

tables.py     a record's bytes -> a row of the tables; the tables themselves, the same in every engine
views.sql     the one text of the views: what is joined with what, and what is counted
compact.py    sealed segments -> Parquet files by day                 (python -m service compact; extra `analysis`)
merge.py      parts of a day that is over -> one part
parquet.py    a folder of these: its parts, its views in DuckDB, one unit out of it
answers.py    the views -> the rows that answers are made of
follow.py     what is new in the segments since one last looked
ship.py       the follower that hands it on                           (python -m service ship)
lag.py        how far that is behind, for the service's metrics
postgres.py   to PostgreSQL                                           (extra `postgres`)
kafka.py      to Kafka                                                (extra `kafka`)
"""
