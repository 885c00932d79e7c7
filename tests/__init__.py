"""Tests mirror the rooms; each name is a sentence, each docstring a promise."""

import os

# Before any test imports it: ONNX Runtime's Linux wheels report to their maker unless told not to.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
