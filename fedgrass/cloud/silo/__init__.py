"""A participant that is not a device: a training job, in whatever AWS account the data are."""
