"""Deployments as the job and the command line use them: those of `cloud.ending.deployment`."""

from __future__ import annotations

from cloud.ending.deployment import SupersededError, deploy_version, history

__all__ = ["SupersededError", "deploy_version", "history"]
