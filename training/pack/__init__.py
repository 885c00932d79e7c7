"""`python -m training pack`: a bundle of an ONNX graph that was trained by another library.

    vocabularies.py   their tokens and ids, read as an encoder of ours and a table from our ids to theirs
    fuxictr.py        the same of a folder that FuxiCTR's feature processing left
    graph.py          what a graph takes and gives; what is refused about it before anything runs
    wrapping.py       nodes around a graph, after which it has the contract's inputs and outputs
    rows.py           a file of raw rows as ids, labels and their library's own predictions
    checks.py         does the wrapped graph answer as the graph that came, and as their library said?
    pack.py           all of it in order, and the bundle

The service learns nothing new: what it loads is a bundle like any other.
"""
