"""The ad catalogue: raw candidates that are registered once, so that requests name them by id.

    PUT /catalogue (admin)   the whole catalogue, a candidate a line: {"id": "a17", "candidate": {"ad_id": "a17", …}}
    POST /predict            {"candidate_ids": ["a17", …], …}; an id that is not there answers null

A catalogue replaces the one before. It is one file (`--catalogue`), replaced atomically and followed by every worker,
so it survives restarts, and an operator may put a file there himself; its first line says what it is. Its version is
a hash of its lines.

Every loaded model version keeps the rows encoded as it means them: they are encoded before a version is served, and
before a new catalogue counts. That is done on the event loop, a millisecond at a time, because an encoder belongs to
one thread; requests are answered in between.

lines.py     a catalogue's lines, checked; the same lines as a model version encodes them
keeper.py    the file: read, replaced, followed
"""
