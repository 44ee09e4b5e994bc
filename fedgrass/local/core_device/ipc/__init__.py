"""Greengrass IPC: event-stream RPC on a Unix socket, as the unmodified ``awsiotsdk`` speaks it."""
