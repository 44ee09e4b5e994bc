"""A Greengrass core device and an AWS account on this machine: a stand-in for development.

``docs/local.md`` says, point by point, where it differs from the real thing.
"""
