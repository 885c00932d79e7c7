"""The Open Inference Protocol v2 over gRPC, where the extra `grpc` is installed and `--grpc-port` is given.

    open_inference.proto   messages and methods, as clients in any language compile them
    messages.py            the same as Python classes, made when they are first needed
    convert.py             messages to requests, and scores to messages
    server.py              the methods, on the event loop of the worker

Nothing here is imported by a service that does not speak it.
"""
