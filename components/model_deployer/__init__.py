"""The owner of the models on a device."""
