"""The operator's commands to this one device, done one after the other on a thread of their own.

A command never runs beside a round's training: both hold the lock on data and engine. A kill has it done again from the
start at the next one; it is answered once.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from components.trainer.attempts import MOST_DEATHS, Attempts, died
from components.trainer.job import Workshop, be_nice
from fedgrass import data, tensors
from fedgrass.bundle import PARAMETERS, Bundle
from fedgrass.edge.commands import Commands, answer_name
from fedgrass.edge.guard import HeldError, Pause
from fedgrass.edge.uploads import Upload, Uploads
from fedgrass.engines.base import Engine, FitSettings, Hooks, StopTraining
from fedgrass.engines.registry import open_engine
from fedgrass.errors import DataError, FedgrassError, MessageError
from fedgrass.files import copy_atomically, sha256_of, write_atomically
from fedgrass.protocol.messages import Base, Command, Reply
from fedgrass.protocol.names import command_key, model_prefix

_TELL_OF_THE_DATA = frozenset({"fit", "evaluate"})


class _Set(BaseModel):
    """The model that the operator set, in force until another is."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    base: Base
    bucket: str


class CommandDesk:
    """Does the trainer's commands.

    Parameters
    ----------
    workshop
        Asked for each command, as settings change.
    data_in_use
        Held while data and engine are.
    privacy
        Says why nothing exact about the data may be told, or nothing.
    """

    def __init__(
        self,
        commands: Commands,
        workshop: Callable[[], Workshop],
        uploads: Uploads,
        data_in_use: threading.Lock,
        *,
        privacy: Callable[[], str],
    ) -> None:
        self._commands = commands
        self._workshop = workshop
        self._uploads = uploads
        self._data_in_use = data_in_use
        self._privacy = privacy
        self._stopping = threading.Event()
        self._todo: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="commands", daemon=True)

    def start(self) -> None:
        """Take up what a former process left, and work."""
        for command in self._commands.waiting():
            if not self._uploads.waits(answer_name(command.id)):
                self._todo.put(command)
        self._thread.start()

    def stop(self) -> None:
        """End after the batch at hand; what is not answered waits on disk."""
        self._stopping.set()
        self._todo.put(None)

    def received(self, payload: bytes) -> None:
        """Take a message from the command topic in."""
        command = self._commands.received(payload)
        if command is None:
            return
        if self._workshop().settings.allow_commands:
            self._todo.put(command)
        else:
            self._commands.answer(
                self._commands.reply(command, "refused", "this device takes no commands (allowCommands)")
            )

    def uploaded(self, upload: Upload, outcome: Literal["uploaded", "failed"], reason: str) -> None:
        """Answer the command whose parameters have arrived; runs on the uploads' thread."""
        reply = Reply.decode(upload.message.encode())
        if outcome == "failed":
            reply = reply.model_copy(update={"status": "failed", "reason": reason, "key": None, "sha256": None})
        self._commands.answer(reply)

    def _run(self) -> None:
        be_nice(self._workshop().settings.nice_level)
        attempts = Attempts(self._workshop().work / "attempts" / "command.json")
        while (command := self._todo.get()) is not None and not self._stopping.is_set():
            try:
                deaths = attempts.begins(command.id)
                if deaths >= MOST_DEATHS:
                    reply: Reply | None = self._commands.reply(command, "failed", died(deaths, "at this command"))
                else:
                    reply = self._do(command)
            except StopTraining:
                continue
            except (DataError, HeldError, MessageError) as error:
                reply = self._commands.reply(command, "refused", str(error))
            except FedgrassError as error:
                reply = self._commands.reply(command, "failed", str(error))
            except OSError as error:
                reply = self._commands.reply(command, "failed", f"{error.filename or 'a file'}: {error.strerror}")
            except Exception as error:  # noqa: BLE001 - a loader or an engine of the user's own may raise anything
                self._workshop().log.error("a command failed unexpectedly", trace=True, command=command.id)
                reply = self._commands.reply(command, "failed", f"{type(error).__name__}: {error}")
            finally:
                attempts.rests()
            if reply is not None:
                self._commands.answer(reply)

    def _do(self, command: Command) -> Reply | None:
        """Return the answer; None if it follows when an upload has ended."""
        shop = self._workshop()
        if command.kind == "set_parameters":
            return self._set_parameters(command, shop)
        if command.kind in _TELL_OF_THE_DATA and (reason := self._privacy()):
            return self._commands.reply(
                command, "refused", f"{reason}; {command.kind} would tell of this device's data without noise"
            )
        bundle = self._model(command, shop)
        if command.kind == "get_parameters":
            copy = shop.work / f"{answer_name(command.id)}.safetensors"
            copy_atomically(bundle.path(PARAMETERS), copy)
            self._send(command, copy, version=bundle.manifest.version)
            return None
        while not self._data_in_use.acquire(timeout=0.2):
            if self._stopping.is_set():
                raise StopTraining
        try:
            engine = open_engine(
                shop.runtime.engine, bundle, threads=shop.runtime.threads, builder=shop.runtime.builder
            )
            split = data.load(shop.runtime.data, bundle.manifest)
            if command.kind == "fit":
                self._fit(command, shop, bundle, engine, split)
                return None
            if len(split.validation) == 0:
                raise DataError("no examples are held back for validation (validationFraction)")
            metrics = engine.evaluate(split.validation)
        finally:
            self._data_in_use.release()
        version = bundle.manifest.version
        return self._commands.reply(
            command, "done", version=version, metrics=metrics, num_examples=len(split.validation)
        )

    def _set_parameters(self, command: Command, shop: Workshop) -> Reply:
        if command.base is None:
            raise MessageError("set_parameters: base is missing; it names the model by version, key and digests")
        bundle = self._model(command, shop)
        bundle.verify()
        write_atomically(self._set(shop), _Set(base=command.base, bucket=command.bucket).model_dump_json().encode())
        manifest = bundle.manifest
        return self._commands.reply(command, "done", version=manifest.version, sha256=manifest.parameters_sha256)

    def _model(self, command: Command, shop: Workshop) -> Bundle:
        """Return the model that a command is about: the one it names, else the one that was set, else the active one."""
        named = _Set(base=command.base, bucket=command.bucket) if command.base is not None else _read(self._set(shop))
        if named is None:
            active = shop.store.active()
            if active is None:
                raise MessageError(f"{command.kind}: no model is active on this device, and base names none")
            return active
        if not named.base.parameters_key.startswith(model_prefix(shop.runtime.fleet, named.base.version)):
            raise MessageError("base.parameters_key is not under the fleet's models")
        bundle = shop.bundle(named.base, named.bucket, self._stopping)
        if bundle is None:
            raise StopTraining
        return bundle

    def _fit(self, command: Command, shop: Workshop, bundle: Bundle, engine: Engine, split: data.Split) -> None:
        pause = Pause(shop.guard, shop.settings.wait_seconds, lambda _reason: None)

        def after_batch(_epoch: int, _step: int) -> None:
            pause(self._stopping)
            if self._stopping.is_set():
                raise StopTraining

        after_batch(0, 0)
        began = pause.clock()
        result = engine.fit(
            split.train,
            FitSettings(
                epochs=command.fit.epochs,
                learning_rate=command.fit.learning_rate,
                proximal_mu=command.fit.proximal_mu,
                clip_norm=command.fit.gradient_clip_norm,
                seed=int.from_bytes(hashlib.sha256(command.id.encode()).digest()[:4], "big"),
            ),
            hooks=Hooks(after_batch),
        )
        path = shop.work / f"{answer_name(command.id)}.safetensors"
        tensors.save(path, result.parameters)
        self._send(
            command,
            path,
            version=bundle.manifest.version,
            num_examples=result.num_examples,
            metrics=result.metrics,
            seconds_train=round(pause.clock() - began, 3),
        )

    def _send(self, command: Command, file: Path, **fields: Any) -> None:
        """Upload what a command gives; the answer follows when it has arrived."""
        if not command.bucket:
            raise MessageError(f"{command.kind}: bucket is missing; it names where the parameters go")
        shop = self._workshop()
        key = command_key(shop.runtime.fleet, shop.thing, command.id)
        reply = self._commands.reply(
            command,
            "done",
            bucket=command.bucket,
            key=key,
            sha256=sha256_of(file),
            bytes=file.stat().st_size,
            **fields,
        )
        self._uploads.submit(
            answer_name(command.id), file, bucket=command.bucket, key=key, message=reply.encode().decode()
        )

    @staticmethod
    def _set(shop: Workshop) -> Path:
        return shop.work / "parameters-set.json"


def _read(path: Path) -> _Set | None:
    try:
        return _Set.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
