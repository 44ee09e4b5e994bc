"""Local training: one answer to each round."""
