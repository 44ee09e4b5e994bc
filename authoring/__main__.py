"""``python -m authoring MODEL.py DIR``: export a model file that has ``build_model()`` and ``EXPORT`` (`export`'s options)."""

from __future__ import annotations

import argparse
import runpy
from pathlib import Path

from authoring.export import export


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m authoring", description=__doc__)
    parser.add_argument("model", type=Path, help="Python file with build_model() and EXPORT")
    parser.add_argument("folder", type=Path, help="where the bundle goes")
    arguments = parser.parse_args()
    namespace = runpy.run_path(str(arguments.model))
    bundle = export(namespace["build_model"](), arguments.folder, **namespace["EXPORT"])
    parser.exit(message=f"{bundle.folder}: model {bundle.manifest.name}, graph {bundle.manifest.graph_sha256[:12]}…\n")


if __name__ == "__main__":
    main()
