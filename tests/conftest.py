"""What holds for every test.

They run beside others and on machines of any speed, so hypothesis judges values and not time, and torch takes one
thread: tensors here are too small for two, which only wait for each other.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import HealthCheck, settings

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
