"""A round, down to its updates and each device's word."""

from __future__ import annotations

from collections import Counter

from flask import Blueprint, render_template, request

from fedgrass.cloud.console import forms, streams
from fedgrass.cloud.console.context import Context
from fedgrass.cloud.console.paging import Page
from fedgrass.cloud.console.panel import PHASES
from fedgrass.cloud.console.waited import WaitedFor, waited_for
from fedgrass.protocol import tables
from fedgrass.protocol.participations import participations_after
from fedgrass.protocol.settings import FleetSettings

_UPDATES_PER_PAGE = 25


def add_view(blueprint: Blueprint, context: Context) -> None:
    """Add the page to those of the rounds."""
    account = context.account

    @blueprint.get("/<int:number>")
    def one(number: int) -> str:
        record = tables.load_round(account.rounds_table, account.fleet, number)
        # Only a round that was aggregated has one: S3 need not be asked for the others.
        report = context.report(record) if record.aggregated_at else None
        after, place = request.args.get("after", ""), request.args.get("waiting", "")
        parts, following = participations_after(account.rounds_table, account.fleet, number, after)
        updates = report.updates if report else ()
        page = Page.of(len(updates), _UPDATES_PER_PAGE, "updates")
        shown = updates[page.first : page.end]
        last = tables.load_state(account.rounds_table, account.fleet).last
        return render_template(
            "round.html",
            record=record,
            report=report,
            parts=parts,
            after=after,
            following=following,
            page=page,
            updates=shown,
            with_ages=report is not None and streams.has_ages(record, report),
            trained_on=streams.trained_on(account, record, shown),
            later_turns=streams.later_turns(account, record, last),
            quarantined=Counter(entry.reason for entry in report.quarantined).most_common() if report else (),
            refused=Page.of(len(report.quarantined) if report else 0, _UPDATES_PER_PAGE, "refused"),
            waited=waited_for(account, record, place) if record.phase == "collecting" else WaitedFor(),
            place=place,
            now_ms=context.now_ms,
            changed=forms.differences(FleetSettings(), record.settings),
            phases=PHASES,
        )
