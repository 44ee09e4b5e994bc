"""Stream Manager: message streams on disk, exported to S3, as the unmodified ``stream-manager`` SDK speaks to it."""
