"""A released model behind a SageMaker endpoint, for applications that are not on a device."""
