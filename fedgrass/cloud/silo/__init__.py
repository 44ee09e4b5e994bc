"""A participant that is no device: a training job, in whatever AWS account the data are."""
