"""Settings of the property tests: a busy machine is no failure, so nothing is timed."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("rtg", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rtg")
