"""Models of the kinds that people train, modelled on what the public examples of each kind do, small enough for a device.

A family is a module with ``MODELS``: names and functions that give a built Keras model.
"""
