"""A Flower app of the tests: it adds a step to every parameter, and counts its rounds in its state."""
