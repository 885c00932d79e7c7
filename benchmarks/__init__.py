"""Commands that measure us beside peers and floors in one run; results with their conditions are in docs/benchmarks.md.

python -m benchmarks.predict --help     /predict beside session.run alone and beside the service written first
python -m benchmarks.peeking            whether looking every day fools an experiment's answer
python -m benchmarks.guard_rails        how soon a harmful arm is off, how often a harmless one
"""

import os

# The peers' ONNX Runtime reports to its maker no more than ours does (see service/__init__.py).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
