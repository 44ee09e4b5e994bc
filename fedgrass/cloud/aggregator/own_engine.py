"""Evaluation of models that LiteRT does not run, with the operator's own code, in a process of its own.

What builds the model is code, and it is the operator's: the image of the job holds it, and names it in its environment
(`ENGINE`, `BUILDER`). No bundle, setting or message can. It runs in a child that gets two bundles and the evaluation set, and
gives figures; what it breaks is the evaluation, and not the round. The child's environment has none of AWS's variables.

``python -m fedgrass.cloud.aggregator.own_engine`` is the child: a `Case` on standard input, `Figures` on standard output.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.evaluate import Evaluator
from fedgrass.data.evaluation_set import read_evaluation_set
from fedgrass.engines.registry import open_engine
from fedgrass.errors import EngineError, FedgrassError
from fedgrass.own_code import own_code
from fedgrass.protocol.report import Evaluation

ENGINE, BUILDER = "FEDGRASS_EVALUATION_ENGINE", "FEDGRASS_EVALUATION_BUILDER"
"""Variables of the image's environment: as ``engine`` and ``builder`` of com.fedgrass.Runtime."""

_MODULE = "fedgrass.cloud.aggregator.own_engine"


class Case(BaseModel):
    """The child's input: folders of both models, the data's file, and the engine."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    engine: str
    builder: str
    base: Path
    new: Path
    data: Path


class Figures(BaseModel):
    """Figures of base and model. ``reason`` is why the model has none; a base may have none."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    base: Evaluation | None = None
    new: Evaluation | None = None
    reason: str = ""


@dataclass(frozen=True)
class OwnEngine:
    """The engine that the operator's image names."""

    engine: str
    builder: str

    @classmethod
    def named_in(cls, environment: Mapping[str, str]) -> OwnEngine | None:
        """Return what the environment names; None if it names no engine."""
        engine = environment.get(ENGINE, "")
        return cls(engine, environment.get(BUILDER, "")) if engine else None

    def evaluate(self, base: Bundle, new: Bundle, data: Path) -> tuple[Evaluation | None, Evaluation]:
        """Evaluate base and model on the evaluation set's file.

        Parameters
        ----------
        base, new
            The bundles.
        data
            The evaluation set, an ``.npz``.

        Returns
        -------
        tuple
            Figures of the base, if it has any, and of the model.

        Raises
        ------
        EngineError
            If the model has no figures: it or its code fails, or the process dies.
        """
        case = Case(engine=self.engine, builder=self.builder, base=base.folder, new=new.folder, data=data)
        # Standard error is inherited, so what the operator's code prints is in the job's log.
        run = subprocess.run(  # noqa: S603 - this interpreter, and a module of ours
            [sys.executable, "-m", _MODULE],
            input=case.model_dump_json().encode(),
            stdout=subprocess.PIPE,
            env=_without_aws(os.environ),
            check=False,
        )
        # What a child that was killed wrote is cut off, and no JSON: its exit code says why.
        try:
            found = Figures.model_validate_json(run.stdout)
        except ValidationError as error:
            raise EngineError(f"the evaluation with engine {self.engine!r} died {_of(run.returncode)}") from error
        if found.new is None:
            raise EngineError(f"the evaluation with engine {self.engine!r}: {found.reason}")
        return found.base, found.new


def _without_aws(environment: Mapping[str, str]) -> dict[str, str]:
    # The credentials of the job could publish models; code from a training image needs none of them.
    return {name: value for name, value in environment.items() if not name.startswith("AWS_")}


def _of(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"by signal {-code} ({signal.Signals(-code).name})"
    return f"by signal {-code}"


def figures(case: Case) -> Figures:
    """Evaluate in this process."""
    try:
        new, base = Bundle.open(case.new), Bundle.open(case.base)
        engine = open_engine(case.engine, new, builder=case.builder)
        evaluator = Evaluator(engine, read_evaluation_set(case.data, new.manifest))
        before = None
        with own_code("evaluating"):
            with contextlib.suppress(EngineError):  # a base without figures must not keep a model with some back
                before = evaluator.evaluate(base.parameters())
            return Figures(base=before, new=evaluator.evaluate(new.parameters()))
    except FedgrassError as error:
        return Figures(reason=str(error))


def main() -> int:
    """Run as the child process."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what the operator's code prints must not be taken for figures
    found = figures(Case.model_validate_json(sys.stdin.buffer.read()))
    with os.fdopen(answers, "wb") as stream:
        stream.write(found.model_dump_json().encode())
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # an engine's threads must not hold the process
