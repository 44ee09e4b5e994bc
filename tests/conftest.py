"""Fixtures for all tests."""

pytest_plugins = ["tests.fixtures.local_aws", "tests.fixtures.scalars", "tests.fixtures.greengrass"]
