"""Fixtures for all tests."""

from hypothesis import HealthCheck, settings

pytest_plugins = [
    "tests.fixtures.local_aws",
    "tests.fixtures.scalars",
    "tests.fixtures.greengrass",
    "tests.fixtures.processor",
]

# How long an example takes on a busy machine is no verdict on it.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
