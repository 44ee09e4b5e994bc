"""A stand-in for a Greengrass v2 core device: one process that runs components built for the real nucleus."""
