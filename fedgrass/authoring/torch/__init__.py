"""PyTorch modules as models that authoring makes bundles of: traced once, and made again in TensorFlow's operators."""
