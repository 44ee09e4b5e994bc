"""AWS IoT Greengrass v2: components, deployments and core devices."""
