"""A Flower app of the tests: every participant fits a line to points of its own."""
