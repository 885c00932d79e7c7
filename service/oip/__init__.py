"""The Open Inference Protocol v2 over REST, as KServe, MLServer and Triton speak it (docs/oip.md).

    tensors.py      a tensor as JSON or as bytes, and the raw values it stands for
    request.py      the body of an inference: tensors in, outputs wanted
    features.py     a model's tensors to encoded rows, exactly as /predict encodes
    inference.py    the route's work, bytes to bytes
    statistics.py   Triton's statistics, over all workers
    metadata.py     what the server and its models say of themselves
    routes.py       all of it as routes

Scores are those of `/models/{name}/predict`: the protocol is another envelope, not another way to score.
"""
