from __future__ import annotations

import ast
import operator
import re

import pytest

from fedgrass.protocol.costs import Work, parts
from fedgrass.protocol.prices import Prices
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


def test_the_formulas_are_those_that_estimate_a_round() -> None:
    documented = {name.split(":")[0]: formula for name, formula, *_ in rows()[:-1]}
    for devices in FLEETS:
        work = Work(
            uploads=devices,
            upload_bytes=devices * 1e6,
            notices=2 * devices,
            deployed=devices,
            model_bytes=4e6,
            machines=(("ml.m5.large", 300 + devices / 300),),
        )
        found = parts(work, Prices())
        assert found.pop("base") == 0
        # What a fleet costs whether it trains or not is no round's.
        assert documented.keys() - found.keys() == {
            "heartbeats",
            "processes that name themselves",
            "connection",
            "Greengrass",
        }
        for name, value in found.items():
            calculation = calculated(documented[name], {"N": devices, "B": 1, "M": 4, "H": 24})
            assert value == pytest.approx(calculation, rel=0.02), name


def test_the_prices_are_those_of_the_settings() -> None:
    table = (ROOT / "docs/costs.md").read_text().split("| price |")[1].split("\n\n")[0]
    named = {float(number) for number in re.findall(r"\d+\.\d+", table)}
    settings = Prices().model_dump()
    assert {*settings.pop("machines").values(), *settings.values()} <= named
