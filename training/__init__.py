"""The offline program: from a click log to exported models. The only room with torch.

`python -m training --help` lists what it does; `training/pipeline/plan.py` is the road from end to end.
"""

import os

# Before anything imports onnxruntime, whose Linux wheels report to its maker otherwise; see service/__init__.py.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# Torch's threads would wait for one another by spinning: with anything else on the machine, our own pieces of work
# included (`threads.py`), that took a step of two threads up to twice its processor time. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
