from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from fedgrass import tensors
from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.aggregate import aggregate
from fedgrass.cloud.aggregator.sources import UpdateReference
from fedgrass.cloud.aggregator.validation import Expected
from fedgrass.partial import StepPlan
from fedgrass.protocol.check_settings import Checks
from fedgrass.protocol.cohort import is_member
from fedgrass.protocol.messages import Cohort
from fedgrass.strategies import strategy_named
from fedgrass.update.header import Reason
from tests.fedgrass.cloud.aggregator.conftest import FLEET, ROUND, header, update_bytes
from tests.fedgrass.cloud.aggregator.updates import Memory, combine


def rewritten(content: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The same tensors under another header."""
    (length,) = struct.unpack("<Q", content[:8])
    document = json.loads(content[8 : 8 + length])
    change(document)
    text = json.dumps(document).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def stored(base: Bundle, thing: str, change: Callable[[dict[str, tensors.Array]], dict[str, tensors.Array]]) -> bytes:
    values = change({n: np.zeros_like(v) for n, v in base.parameters().items()})
    head = tensors.encode_header([(n, v.dtype, v.shape) for n, v in values.items()], header(base, thing).to_metadata())
    return head + b"".join(v.tobytes() for v in values.values())


Maker = Callable[[Bundle, Path], bytes]


def _metadata(**changes: str) -> Maker:
    def make(base: Bundle, folder: Path) -> bytes:
        return rewritten(update_bytes(base, "b", 1, folder), lambda d: d["__metadata__"].update(changes))

    return make


def _last(value: float) -> Maker:
    def make(base: Bundle, folder: Path) -> bytes:
        return update_bytes(base, "b", 1, folder)[:-4] + struct.pack("<f", value)

    return make


def _stored(change: Callable[[dict[str, tensors.Array]], dict[str, tensors.Array]]) -> Maker:
    return lambda base, _: stored(base, "b", change)


def _damaged_frame(base: Bundle, folder: Path) -> bytes:
    content = update_bytes(base, "b", 1, folder, codec="int8+zstd")
    return content[:-1] + bytes([content[-1] ^ 1])


BAD: list[tuple[str, Maker]] = [
    ("truncated", lambda base, folder: update_bytes(base, "b", 1, folder)[:-1]),
    ("truncated", lambda base, folder: b""),
    ("corrupt_header", lambda base, folder: b"PK\x03\x04" + bytes(200)),
    ("corrupt_header", lambda base, folder: update_bytes(base, "b", 1, folder) + b"\0"),
    (
        "corrupt_header",
        lambda base, folder: rewritten(update_bytes(base, "b", 1, folder), lambda d: d.pop("__metadata__")),
    ),
    ("corrupt_header", _metadata(base_sha256="x")),
    ("wrong_schema", _metadata(schema="9")),
    ("unknown_codec", _metadata(codec="zip")),
    ("bad_examples", _metadata(num_examples="-1")),
    ("bad_examples", _metadata(num_examples="0")),
    ("bad_examples", _metadata(num_examples="1e30")),
    ("wrong_fleet", _metadata(fleet="other")),
    ("wrong_round", _metadata(round=str(ROUND - 1))),
    ("foreign_thing", _metadata(thing="a")),
    ("wrong_base", _metadata(base_sha256="1" * 64)),
    ("wrong_graph", _metadata(graph_sha256="1" * 64)),
    ("corrupt_data", _damaged_frame),
    ("not_finite", _last(float("nan"))),
    ("not_finite", _last(float("inf"))),
    ("norm_exceeded", _last(1e9)),
    ("norm_exceeded", _last(3e38)),
    ("wrong_dtype", _stored(lambda v: {n: a.astype(np.float16) for n, a in v.items()})),
    ("wrong_shape", _stored(lambda v: {n: a.reshape(-1) for n, a in v.items()})),
    ("wrong_parameters", _stored(lambda v: dict(list(v.items())[1:]))),
    ("too_large", lambda base, folder: bytes(10 * base.manifest.files["parameters.safetensors"].bytes)),
]


@pytest.mark.parametrize(("reason", "make"), BAD, ids=[f"{i}-{reason}" for i, (reason, _) in enumerate(BAD)])
def test_a_bad_update_is_quarantined_with_its_reason_and_the_rest_is_as_without_it(
    digits: Bundle, tmp_path: Path, reason: str, make: Maker
) -> None:
    good = {thing: update_bytes(digits, thing, seed, tmp_path) for seed, thing in enumerate("ac")}
    bad = make(digits, tmp_path)
    checks = Checks(max_norm=1000.0)
    alone = combine(digits, Memory(good), checks)
    found = combine(digits, Memory({**good, "b": bad}), checks)
    assert [(q.thing, q.reason, q.bytes) for q in found.quarantined] == [("b", reason, len(bad))]
    assert found.quarantined[0].detail
    assert found.updates == alone.updates
    assert alone.parameters is not None
    assert found.parameters is not None
    for name, value in alone.parameters.items():
        assert found.parameters[name].tobytes() == value.tobytes()


@pytest.mark.parametrize(
    ("steps", "planned", "right"),
    [
        (1, 12, True),  # 3 epochs of 10 examples in batches of 3
        (12, 12, True),
        (1, 1, True),
        (12, 13, False),
        (0, 12, False),
        (-1, 12, False),
        (13, 12, False),
        (1.5, 12, False),
        (1, 11.5, False),
        (None, 12, False),
        (1, 0, False),
        (1, 1e300, False),
    ],
)
def test_a_claim_of_partial_work_is_of_whole_steps_within_what_a_training_has(
    steps: float | None, planned: float, right: bool
) -> None:
    told = {"planned_steps": float(planned)} | ({} if steps is None else {"steps": float(steps)})
    assert bool(StepPlan(epochs=3, batch_size=3).problem(10, told)) is not right
    # Where all are whole nobody reads the claim, and no claim is no lie.
    assert not StepPlan(epochs=3, batch_size=3).problem(10, {"steps": 1e9})


def test_an_update_that_claims_more_steps_than_there_are_is_quarantined(digits: Bundle, tmp_path: Path) -> None:
    def claiming(thing: str, **metrics: float) -> bytes:
        return update_bytes(digits, thing, 1, tmp_path, metrics=metrics)

    source = Memory({"a": claiming("a", steps=2, planned_steps=4), "b": claiming("b", steps=2, planned_steps=10**6)})
    expected = Expected(digits.manifest.parameters_sha256, digits.manifest.graph_sha256, plan=StepPlan(4, 10**9))
    strategy = strategy_named("fedavg").with_partial_work()
    found = aggregate(digits, source, source.list(), strategy, expected)
    assert [(q.thing, q.reason) for q in found.quarantined] == [("b", "implausible_steps")]
    assert "2 of 1e+06 steps" in found.quarantined[0].detail
    assert [u.thing for u in found.updates] == ["a"]


def test_storage_that_breaks_off_early_truncates_only_that_update(digits: Bundle, tmp_path: Path) -> None:
    contents = {thing: update_bytes(digits, thing, seed, tmp_path) for seed, thing in enumerate("abc")}
    size = len(contents["b"])
    found = combine(digits, Memory({**contents, "b": contents["b"][: size // 2]}, claimed={"b": size}))
    assert [(q.thing, q.reason) for q in found.quarantined] == [("b", "truncated")]
    assert [u.thing for u in found.updates] == ["a", "c"]


def test_a_thing_has_one_update_whatever_else_lies_there(digits: Bundle, tmp_path: Path) -> None:
    content = update_bytes(digits, "a", 1, tmp_path)

    class Odd(Memory):
        def list(self) -> list[UpdateReference]:
            size = len(content)
            return [
                UpdateReference(thing="a", key="z", bytes=size),
                UpdateReference(thing="a", key="k", bytes=size),
                UpdateReference(thing="", key="updates/readme.txt", bytes=5),
            ]

    found = combine(digits, Odd({"a": content}))
    assert [u.key for u in found.updates] == ["k"]
    assert [(q.key, q.reason) for q in found.quarantined] == [
        ("updates/readme.txt", "unexpected_key"),
        ("z", "duplicate"),
    ]


def test_only_the_cohort_is_heard(digits: Bundle, tmp_path: Path) -> None:
    cohort = Cohort(salt="pepper", fraction=0.5)
    things = [f"press-{i}" for i in range(20)]
    source = Memory({thing: update_bytes(digits, thing, 1, tmp_path) for thing in things})
    expected = Expected(digits.manifest.parameters_sha256, digits.manifest.graph_sha256, FLEET, ROUND, cohort, Checks())
    found = aggregate(digits, source, source.list(), strategy_named("fedavg"), expected)
    invited = {thing for thing in things if is_member("pepper", 0.5, thing)}
    assert {u.thing for u in found.updates} == invited
    assert 0 < len(invited) < 20
    assert {(q.thing, q.reason) for q in found.quarantined} == {(t, "uninvited") for t in things if t not in invited}


def test_a_claim_of_many_examples_counts_as_the_cap(digits: Bundle, tmp_path: Path) -> None:
    contents = {
        "a": update_bytes(digits, "a", 1, tmp_path, num_examples=100),
        "b": update_bytes(digits, "b", 2, tmp_path, num_examples=10**12),
    }
    found = combine(digits, Memory(contents), Checks(max_examples=300))
    assert [(u.num_examples, u.weight) for u in found.updates] == [(100, 0.25), (300, 0.75)]


def test_a_hostile_header_cannot_make_the_report_unreadable(digits: Bundle, tmp_path: Path) -> None:
    content = rewritten(
        update_bytes(digits, "a", 1, tmp_path), lambda d: d.update({"\ud800\x00" * 50: d.pop("conv/bias")})
    )
    found = combine(digits, Memory({"a": content}))
    assert found.quarantined[0].reason == "wrong_parameters"
    assert len(found.quarantined[0].model_dump_json()) < 2000


def test_every_reason_is_tried_here_and_told_in_the_docs() -> None:
    reasons = set(get_args(Reason))
    # Above, in test_s3, test_late, test_strategies and test_secure_job
    elsewhere = {"unexpected_key", "duplicate", "replayed", "uninvited", "unknown_thing", "missing", "missing_metric"}
    elsewhere |= {"implausible_steps", "unopened_seeds", "small_group", "implausible_group"}
    assert {reason for reason, _ in BAD} | elsewhere == reasons
    page = (Path(__file__).parents[4] / "docs" / "reference" / "quarantine.md").read_text()
    assert {reason for reason in reasons if f"`{reason}`" in page} == reasons
