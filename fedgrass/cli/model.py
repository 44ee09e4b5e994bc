"""``fedgrass model``: look at model bundles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedgrass.cli import render
from fedgrass.cli.account import JsonOption
from fedgrass.cli.lazy import LazyGroup

if TYPE_CHECKING:
    from fedgrass.bundle import Head

app = typer.Typer(cls=LazyGroup, no_args_is_help=True, help="Look at model bundles, and publish them.")


def _told(head: Head, *, named: bool) -> str:
    label = f"{head.y.dtype}{list(head.y.shape)}, {len(head.class_names)} classes"
    return f"{head.name}: {label}, loss weighs {head.weight:g}" if named else label


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="A model bundle's folder.", exists=True, file_okay=False)],
    as_json: JsonOption = False,
) -> None:
    """Check a model bundle and show what it holds."""
    import numpy as np
    from rich.table import Table

    from fedgrass.bundle import Bundle

    bundle = Bundle.open(folder)
    bundle.verify()
    manifest = bundle.manifest
    if as_json:
        parameters = [
            {"name": name, "shape": list(array.shape), "dtype": str(array.dtype)}
            for name, array in bundle.parameters().items()
        ]
        render.print_json([{**manifest.model_dump(mode="json"), "parameters": parameters}])
        return
    console = render.console()
    console.print(f"[bold]{manifest.name}[/] {manifest.version}: every file matches its digest")
    facts = Table(show_header=False, box=None)
    facts.add_row("input", f"{manifest.x.dtype}{list(manifest.x.shape)}, batches of {manifest.batch_size}")
    for part in manifest.inputs:
        facts.add_row(f"  {part.name}", f"{part.dtype}{list(part.shape)}")
    for head in manifest.heads:
        facts.add_row("output" if manifest.outputs else "label", _told(head, named=bool(manifest.outputs)))
        facts.add_row("  loss" if manifest.outputs else "loss", head.loss)
    facts.add_row("optimizer", manifest.optimizer.name)
    facts.add_row("trainable", f"{manifest.parameter_count:,} parameters")
    console.print(facts)
    files = Table("file", "bytes", "sha256", title="Files", title_justify="left")
    for name, description in manifest.files.items():
        files.add_row(name, f"{description.bytes:,}", description.sha256[:16])
    console.print(files)
    listing = Table("parameter", "shape", "dtype", "mean", "deviation", title="Parameters", title_justify="left")
    for name, array in bundle.parameters().items():
        mean, deviation = (f"{value:.4g}" for value in (np.mean(array), np.std(array)))
        listing.add_row(name, "×".join(map(str, array.shape)), str(array.dtype), mean, deviation)
    console.print(listing)
