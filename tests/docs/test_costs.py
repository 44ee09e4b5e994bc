from __future__ import annotations

import pytest

from cloud.infrastructure.package import ROOT

FLEETS = (10, 1_000, 100_000)


def rows() -> list[list[str]]:
    text = (ROOT / "docs/costs.md").read_text()
    table = text.split("| part |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in table]


def test_each_figure_follows_from_its_formula_and_the_sum_from_the_figures() -> None:
    *parts, total = rows()
    assert len(parts) > 8
    sums = [0.0] * len(FLEETS)
    for name, formula, *figures in parts:
        for position, devices in enumerate(FLEETS):
            value = float(eval(formula.replace("×", "*"), {"N": devices, "B": 1, "M": 4, "H": 24}))
            assert float(figures[position].replace(",", "")) == pytest.approx(value, rel=0.05, abs=5e-5), name
            sums[position] += value
    assert [float(figure.replace(",", "")) for figure in total[2:]] == pytest.approx(sums, rel=0.01)
