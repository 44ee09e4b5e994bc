"""The models: versions and their figures, where each is active, and roll-back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from flask import Blueprint, abort, redirect, render_template, url_for
from werkzeug.wrappers import Response

from fedgrass.cloud.aggregator import manual_release
from fedgrass.cloud.aggregator.release import Release
from fedgrass.cloud.console.context import Context
from fedgrass.cloud.console.curves import drawn
from fedgrass.cloud.console.notices import attempt
from fedgrass.cloud.console.paging import Page
from fedgrass.cloud.console.versions import VERSION
from fedgrass.protocol import tables
from fedgrass.protocol.names import version_order
from fedgrass.protocol.records import RoundRecord

_PER_PAGE = 25
_HELD_LOOKED_AT = 100


@dataclass(frozen=True)
class Entry:
    """A version that the fleet could have. ``record`` is of the round that made it, None for one of the operator's."""

    version: str
    record: RoundRecord | None
    active: int
    current: bool

    @property
    def released(self) -> bool:
        """Whether the devices were given it."""
        return self.record is None or self.record.outcome in {"released", "refused"}

    @property
    def to_release(self) -> bool:
        """Whether it is the base of the next round only, and the devices could be given it."""
        return self.current and not self.released

    @property
    def way_back(self) -> bool:
        """Whether the fleet had it before."""
        return not self.current and (self.record is None or self.record.adopted)


def pages(context: Context) -> Blueprint:
    """Return the pages."""
    blueprint = Blueprint("models", __name__, url_prefix="/models")
    account = context.account

    @blueprint.get("/")
    def models() -> str:
        state = tables.load_state(account.rounds_table, account.fleet)
        names = context.versions.all()
        page = Page.of(len(names), _PER_PAGE)
        look = context.index.look()
        current = state.model.version if state.model else ""
        active = Counter(brief.version for brief in look.devices)
        shown = names[page.first : page.end]
        records = _records(context, shown)
        # Held rounds after the current model only: an older one was overtaken.
        since = version_order(current)[1] if current else 0
        later = tables.rounds_between(
            account.rounds_table, account.fleet, max(since + 1, state.last - _HELD_LOOKED_AT + 1), state.last
        )
        return render_template(
            "models.html",
            current=current,
            entries=[Entry(name, records.get(name), active[name], name == current) for name in shown],
            held=[record for record in later if record.outcome == "held" and record.phase == "closed"],
            count=len(names),
            page=page,
            look=look,
            charts=drawn(sorted(records.values(), key=lambda record: -record.round))[:2],
        )

    @blueprint.post("/<version>/release")
    def release(version: str) -> Response:
        # A request cannot wait for canaries as the command does, so it says that it does without them.
        return _do(version, partial(manual_release.release, canaries=False), "is released")

    @blueprint.post("/<version>/roll-back")
    def go_back(version: str) -> Response:
        return _do(version, manual_release.roll_back, "is the fleet's model again")

    def _do(version: str, action: Callable[[Any, str], Release], done: str) -> Response:
        if not VERSION.match(version):
            abort(404, f"{version} is not a version.")

        def act() -> str:
            released = action(account, version)
            if released.deployment_id is None:
                return f"Model {version} {done}. There is no deployment yet: devices get it with their first one."
            return f"Model {version} {done}; its deployment {released.deployment_id} is on its way to the devices."

        # Then a redirect, whatever happened: loading the page again must not repeat the release.
        attempt(act)
        context.versions.changed()
        return redirect(url_for("models.models"), 303)

    return blueprint


def _records(context: Context, versions: list[str]) -> dict[str, RoundRecord]:
    """Return the records of the rounds that made some versions, by version."""
    numbers = [version_order(version)[1] for version in versions]
    account = context.account
    found = tables.rounds_numbered(account.rounds_table, account.fleet, [number for number in numbers if number])
    return {record.version: record for record in found}
