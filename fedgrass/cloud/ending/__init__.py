"""How a round ends, for functions and job alike: the outcome is written once, and whoever comes does what it asks for."""
