"""The fleet's settings, checked by the model that rounds read them with."""

from __future__ import annotations

import hashlib

from flask import Blueprint, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from fedgrass.cloud.console import forms
from fedgrass.cloud.console.context import Context
from fedgrass.cloud.console.notices import tell
from fedgrass.cloud.console.preview import PREVIEW, draw
from fedgrass.errors import ConfigurationError
from fedgrass.protocol import tables
from fedgrass.protocol.settings import FleetSettings


def pages(context: Context) -> Blueprint:
    """Return the page."""
    blueprint = Blueprint("settings", __name__, url_prefix="/settings")
    account = context.account

    def stored() -> tuple[FleetSettings, str]:
        try:
            return tables.load_settings(account.rounds_table, account.fleet), ""
        except ConfigurationError as error:  # saved by another version: shown, so that saving again mends it
            return FleetSettings(), str(error)

    @blueprint.get("/")
    def show() -> str:
        settings, problem = stored()
        form = forms.form_of(settings)
        form.error = problem
        draw(form, settings)
        return render_template("settings.html", form=form, seen=_digest(settings))

    @blueprint.post("/")
    def save() -> Response | tuple[str, int]:
        before, _ = stored()
        form, settings = forms.read(request.form)
        if settings is None:
            return render_template("settings.html", form=form, seen=request.form.get("seen", "")), 422
        draw(form, settings)
        if PREVIEW in request.form:
            return render_template("settings.html", form=form, seen=request.form.get("seen", "")), 200
        # Two people with the form open: the second would undo the first without seeing it.
        if request.form.get("seen") != _digest(before):
            form.error = "Someone else changed the settings meanwhile. Saving again replaces theirs by what is below."
            return render_template("settings.html", form=form, seen=_digest(before)), 409
        tables.save_settings(account.rounds_table, account.fleet, settings)
        changed = "Saved. Rounds that open from now on follow these settings."
        tell("Nothing was changed." if settings == before else changed)
        return redirect(url_for("settings.show"), 303)

    return blueprint


def _digest(settings: FleetSettings) -> str:
    return hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:16]
