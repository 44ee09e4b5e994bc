"""A Keras model in, a trainable LiteRT bundle out; the only part that needs TensorFlow."""
