"""The online program: raw ad requests in over HTTP, calibrated click probabilities out.

Imports `models/` and never `training/`; starts where torch is not installed. `python -m service --help`
teaches the rest.
"""

import os

# ONNX Runtime from 1.29 on, in its Linux wheels too, reports a model's names and hashes and how it is run to its
# maker, unless this is set before it is imported; it also leaves a file in the temporary folder. Nothing here phones
# home.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
