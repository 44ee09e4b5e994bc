"""The app's server side."""

from __future__ import annotations

from benchmarks.flower_server import timed
from sklearn_app.client_app import initial

app = timed(initial())
