"""Fixtures for all tests."""

pytest_plugins = [
    "tests.fixtures.any_machine",
    "tests.fixtures.local_aws",
    "tests.fixtures.scalars",
    "tests.fixtures.greengrass",
    "tests.fixtures.processor",
]
