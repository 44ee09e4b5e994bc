"""Training data on a device: loaders by name, and the split that keeps some for admission."""
