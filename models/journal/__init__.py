"""How the exposure log is read: by the service, which judges experiments by it, and by training, which learns from it.

    frames.py        bytes of one record in a file: magic, length, checksum; what is damaged is skipped and counted
    reading.py       the files: their names, who writes to which, every record of a folder
    compacted.py     the same as Parquet: which parts of a folder there are
    attribution.py   which candidates of a request were shown and clicked, by the events that were told of it

What is in a record, and everything that writes one, is `service/journal/` (docs/journal.md).
"""
