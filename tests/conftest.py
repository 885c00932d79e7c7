"""What holds for every test.

They run beside others and on machines of any speed, so hypothesis judges values and not time.
"""

from hypothesis import HealthCheck, settings

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
