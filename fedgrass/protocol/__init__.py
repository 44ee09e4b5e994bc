"""What a device and the cloud say to each other: names, keys and messages. Needs pydantic and nothing else."""
