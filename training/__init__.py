"""The offline program: from a click log to exported models. The only room with torch.

`python -m training --help` lists what it does; `training/pipeline.py` is the road from end to end.
"""
