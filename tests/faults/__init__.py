"""Faults put into a running fleet of real processes, and what became of it."""
