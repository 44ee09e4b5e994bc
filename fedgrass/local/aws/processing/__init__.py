"""SageMaker Processing: the container contract, run as processes."""
