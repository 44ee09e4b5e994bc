"""scikit-learn's estimators, each with what of it travels and what a round does to it."""
