"""For all tests: a busy machine is no bug."""

from hypothesis import HealthCheck, settings

settings.register_profile("namm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("namm")
