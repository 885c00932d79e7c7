"""What a model is on disk, and how raw values become ids: the contract that training and service share.

Start with `schema.py` (what a field is), then `encoder.py` (values to ids) and `bundle.py` (a version on
disk). This room imports numpy and pydantic only, and neither of the two programs.
"""
