from __future__ import annotations

import ast
import operator

import pytest

from tests.fixtures.places import ROOT

FLEETS = (10, 1_000, 100_000)


OPERATORS = {ast.Add: operator.add, ast.Mult: operator.mul, ast.Div: operator.truediv}


def calculated(formula: str, values: dict[str, float]) -> float:
    """Value of a formula of numbers, names, +, × and /."""

    def value(node: ast.expr) -> float:
        match node:
            case ast.Constant(value=int() | float() as number):
                return float(number)
            case ast.Name(id=name):
                return values[name]
            case ast.BinOp(left=left, op=sign, right=right):
                return float(OPERATORS[type(sign)](value(left), value(right)))
        raise ValueError(f"{formula}: expected numbers, names, +, × and /, found {ast.unparse(node)}")

    return value(ast.parse(formula.replace("×", "*"), mode="eval").body)


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
            value = calculated(formula, {"N": devices, "B": 1, "M": 4, "H": 24})
            assert float(figures[position].replace(",", "")) == pytest.approx(value, rel=0.05, abs=5e-5), name
            sums[position] += value
    assert [float(figure.replace(",", "")) for figure in total[2:]] == pytest.approx(sums, rel=0.01)
