"""Log lines: one JSON object per event, with the fleet, the round and the thing where there are such."""

from __future__ import annotations

import json
import logging
from typing import Any

log = logging.getLogger("fedgrass.rounds")
log.setLevel(logging.INFO)


def tell(event: str, **fields: Any) -> None:
    """Log what happened."""
    log.info(json.dumps({"event": event, **{key: value for key, value in fields.items() if value is not None}}))
