"""Federated learning for AWS IoT Greengrass v2 fleets: what devices and cloud share."""

__version__ = "0.1.0"
