"""How rounds and devices look in a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fedgrass.protocol.device_messages import Heartbeat
from fedgrass.protocol.members import FleetMember
from fedgrass.protocol.records import Device, Participation, RoundRecord
from fedgrass.protocol.refusals import Refusals
from fedgrass.protocol.roster import may_count
from fedgrass.protocol.waiting import Waiting

_OUTCOME_STYLES = {
    "released": "green",
    "advanced": "green",
    "held": "yellow",
    "insufficient_updates": "yellow",
    "helpers_missing": "yellow",
    "failed": "red",
    "cancelled": "red",
    "active": "green",
    "refused": "red",
    "rolled_back": "red",
    "uploaded": "green",
    "evaluated": "green",
    "profiled": "green",
    "declined": "yellow",
}
_NOTHING = "–"
# One hour, by the clock of the cloud.
_WRONG_CLOCK_SECONDS = 3600.0
_SHARED_NAME = "two devices use this name and count as one: give each an identity of its own (scripts/provision)"
_SENTENCES = {"able to train", "refused", "trouble", "why"}  # columns that give way where there is not room for all
_WIDE = 160  # columns where there is no terminal to ask: a log or a pipe should not be folded


def console(*, quiet: bool = False) -> Console:
    """Return the console that commands print to; a ``quiet`` one prints nothing, where JSON follows."""
    return Console(width=None if sys.stdout.isatty() else _WIDE, quiet=quiet)


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        # Names and numbers stay whole; only sentences are folded.
        table.add_column(heading, no_wrap=heading not in _SENTENCES)
    return table


def outcome_text(outcome: str | None) -> Text:
    """Return an outcome in its colour."""
    return Text(outcome or _NOTHING, style=_OUTCOME_STYLES.get(outcome or "", ""))


def percent(value: float | None) -> str:
    """Return a share as a percentage."""
    return _NOTHING if value is None else f"{100 * value:.1f} %"


def print_json(rows: Iterable[Mapping[str, object]]) -> None:
    """Print one JSON object per line, unfolded: what a script reads of a command that otherwise prints a table."""
    out = console()
    for row in rows:
        out.print(json.dumps(row, default=str), markup=False, highlight=False, soft_wrap=True)


def size(count: int) -> str:
    """Return a number of bytes for people."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def round_line(record: RoundRecord) -> Text:
    """Return an open round in one line."""
    asked = f"{record.uploaded}/{record.asked} updates" + (f" and {record.joined} more" if record.joined else "")
    parts = {
        "collecting": f"collecting: {asked}, {record.declined} declined, {record.failed} failed",
        "aggregating": f"aggregating {asked}",
        "rolling_out": f"rolling out {record.version}: active on {record.active}/{record.alive}, refused by {record.refused}",
        "closed": f"closed: {record.outcome}",
    }
    return Text.assemble(("Round ", "bold"), (str(record.round), "bold"), "  ", parts[record.phase])


def rounds_table(records: Sequence[RoundRecord]) -> Table:
    """Return rounds as a table, the newest first; ``to active`` is from the last upload to the last device's word."""
    table = _table("round", "outcome", "model", "accuracy", "used", "quarantined", "active", "uploaded", "to active")
    for record in records:
        seconds = record.seconds_last_upload_to_active
        table.add_row(
            str(record.round),
            outcome_text(record.outcome) if record.outcome else Text(record.phase, style="cyan"),
            record.version if record.adopted else record.base.version,
            percent(record.accuracy),
            _NOTHING if record.participants is None else used_of(record),
            _NOTHING if record.quarantined is None else str(record.quarantined),
            f"{record.active} of {record.alive}" if record.outcome in {"released", "refused"} else _NOTHING,
            size(record.bytes_uploaded),
            _NOTHING if seconds is None else f"{seconds:.1f} s",
        )
    return table


def used_of(record: RoundRecord) -> str:
    """Return how many updates a round used: of so many devices, or in a stream with those of earlier rounds."""
    if record.settings.is_asynchronous:
        return f"{record.participants}, {record.from_earlier} of earlier rounds"
    return f"{record.participants} of {record.taking_part}"


def round_panel(record: RoundRecord) -> Panel:
    """Return one round's facts."""
    facts = Table(show_header=False, box=None)
    facts.add_row("phase", record.phase)
    facts.add_row("outcome", outcome_text(record.outcome))
    if record.reason:
        facts.add_row("reason", record.reason)
    if record.alarm:
        facts.add_row("look", Text(record.alarm, style="bold red"))
    facts.add_row("opened", f"{record.opened_at:%Y-%m-%d %H:%M:%S} UTC, deadline {record.deadline:%H:%M:%S}")
    if record.of_run:
        facts.add_row("run", f"{record.of_run}. Then no more: {record.ended}" if record.ended else record.of_run)
    # Rounds of other tasks have a version too, and make nothing of it.
    trains = record.settings.task == "fit"
    facts.add_row(
        "base → model" if trains else "model",
        f"{record.base.version} → {record.version}" if trains else record.base.version,
    )
    facts.add_row("devices", f"{record.alive} alive, {record.asked} asked, quorum {record.quorum}")
    facts.add_row(
        "updates", f"{record.uploaded} uploaded, {record.declined} declined, {record.failed} failed, {record.late} late"
    )
    if record.settings.is_asynchronous:
        facts.add_row("stream", f"goes on at {record.quorum} updates, those of earlier rounds among them")
    if record.joined:
        facts.add_row("joined", f"{record.joined} uploaded that were silent or unable at the opening")
    _add_figures(facts, record)
    if record.costs:
        facts.add_row("cost", record.costs)
    return Panel(facts, title=f"Round {record.round} of {record.fleet}", title_align="left", expand=False)


def _add_figures(facts: Table, record: RoundRecord) -> None:
    if record.participants is not None:
        late = f" ({record.from_earlier} of earlier rounds)" if record.settings.is_asynchronous else ""
        refused = "" if record.quarantined is None else f", {record.quarantined} quarantined"
        facts.add_row("used", f"{record.participants} used{late}{refused}")
    if record.accuracy is not None:
        facts.add_row("accuracy", percent(record.accuracy))
    if record.privacy is not None and record.privacy.said:
        facts.add_row("privacy", record.privacy.said)
    if record.loss is not None:
        facts.add_row("loss", f"{record.loss:.4g}")
    for name, said in (
        ("figures", figures_line(record.metrics)),
        ("devices say", figures_line(record.reported)),
        ("own models", record.personal.said if record.personal else ""),
    ):
        if said:
            facts.add_row(name, said)


def figures_line(metrics: Mapping[str, float]) -> str:
    """Return figures in one line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def participants_table(participants: Sequence[Participation], record: RoundRecord) -> Table:
    """Return what each device did in a round."""
    # Where an update may count in a later round, nothing is wrong with one that comes then.
    late = Text(" (after its round)") if record.settings.is_asynchronous else Text(" (late)", style="yellow")
    table = _table("device", "update", "examples", "bytes", "trained", "model", "why")
    for entry in participants:
        status = outcome_text(entry.status)
        if entry.late:
            status.append(late)
        elif entry.status and not entry.asked:
            status.append(" (not asked)", style="dim")
        table.add_row(
            entry.thing,
            status,
            f"{entry.num_examples:,}",
            size(entry.bytes),
            f"{entry.seconds_train:.1f} s",
            outcome_text(entry.model_outcome),
            entry.reason or entry.model_reason,
        )
    return table


def waiting_line(one: Waiting, now_ms: float) -> Text:
    """Return whom a round waits for, and what is known of that device."""
    return Text(f"no answer yet of {one.thing}: {one.said(now_ms)}", style="red" if one.gone else "yellow")


def fleet_table(
    members: Sequence[FleetMember],
    refused: Mapping[str, Refusals],
    *,
    now_ms: float,
    silos: Collection[str] | None = None,
    shared: Collection[str] = (),
) -> Table:
    """Show the fleet's devices as a table.

    Parameters
    ----------
    members
        The devices.
    refused
        How often the updates of some of them were refused, by thing name.
    now_ms
        Unix time in milliseconds, by which a device is alive or silent.
    silos
        Silos of the fleet's settings; a silo that is not among them is shown as not counted. None knows none.
    shared
        Names that several devices use.

    Returns
    -------
    Table
        A row for each device.
    """
    table = _table(
        "device",
        "state",
        "able to train",
        "model",
        "examples",
        "refused",
        "trainer",
        "cpu",
        "memory",
        "disk free",
        "trouble",
        *(["tags"] if any(member.heartbeat and member.heartbeat.tags for member in members) else []),
    )
    for member in members:
        beat = member.heartbeat
        model = member.model.active_version if member.model else None
        if beat is None:
            # A model's notice can come before the first heartbeat.
            never = Text("never seen", style="yellow")
            refusal = refusals_text(refused.get(member.thing))
            table.add_row(member.thing, never, _NOTHING, model or _NOTHING, _NOTHING, refusal)
            continue
        alive = beat.alive(now_ms)
        silence = f"silent for {(now_ms - beat.received_at) / 1000:.0f} s"
        table.add_row(
            member.thing,
            Text("alive", style="green") if alive else Text(silence, style="red"),
            _able(beat, counts=silos is None or may_count(member.thing, silos)),
            beat.model_version or model or _NOTHING,
            f"{beat.examples:,}",
            refusals_text(refused.get(member.thing)),
            beat.trainer.state,
            f"{beat.cpu_percent:.0f} %",
            f"{beat.memory_percent:.0f} %",
            size(beat.disk_free_bytes),
            _trouble(beat, shares_its_name=member.thing in shared),
            *([", ".join(f"{name}={value}" for name, value in beat.tags.items())] if beat.tags else []),
        )
    return table


def _able(beat: Heartbeat, *, counts: bool) -> Text:
    if not counts:
        return Text("not counted: the settings do not list this silo (silos)", style="red")
    return Text("yes", style="green") if beat.able else Text(f"no: {beat.reason}", style="yellow")


def refusals_text(refused: Refusals | None) -> Text:
    """Return how often a device's updates were refused, and why the last time."""
    if refused is None:
        return Text("0")
    return Text(f"{refused.count}, last {refused.reason} in round {refused.round}", style="red")


def _trouble(beat: Device, *, shares_its_name: bool) -> Text:
    """Return what is wrong: another of its name, its clock, components that are silent, and the last errors."""
    lines = [_SHARED_NAME] if shares_its_name else []
    lines += [wrong] if (wrong := _wrong_clock(beat)) else []
    lines += [f"{_short(name)} is silent" for name in beat.silent]
    lines += [f"{_short(name)}: {error}" for name, error in beat.errors.items()]
    return Text("\n".join(lines), style="yellow") if lines else Text("")


def _wrong_clock(beat: Device) -> str:
    """Say it from an hour on: that is no slow link, and certificates and signatures go by the clock."""
    # Both clocks at once: the device wrote one time, the cloud the other when it arrived.
    ahead = beat.sent_at.timestamp() - beat.received_at / 1000
    if abs(ahead) < _WRONG_CLOCK_SECONDS:
        return ""
    days = abs(ahead) / 86_400
    by = f"{days / 365.25:.1f} years" if days > 365 else f"{days:.1f} days" if days > 2 else f"{24 * days:.1f} hours"
    return f"its clock is {by} {'ahead' if ahead > 0 else 'behind'}"


def _short(component: str) -> str:
    return component.rpartition(".")[2]
