"""The update file: what a device sends, encoded and decoded as a stream."""
