"""Many rounds under random faults, and what each process holds meanwhile."""
