"""What runs in AWS: the aggregator, the rounds, the infrastructure."""
