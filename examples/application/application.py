"""An application that uses the fleet's model: a start for your own.

It shows the three things that an application shares with the suite, all of them optional:

1. the model at its stable path, reloaded when ModelDeployer says that another is active (``fedgrass/model/active``);
2. ``busy`` on ``fedgrass/application/status`` while it needs the processor, so that training waits;
3. ``healthy: false`` there when the model does it harm, so that ModelDeployer goes back to the one before.

What it classifies here are the device's own examples, one a second. Put your camera or sensor in their place.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from fedgrass import data
from fedgrass.bundle import Bundle
from fedgrass.edge import settings
from fedgrass.edge.component import Component, Device, main
from fedgrass.edge.model_store import ModelStore
from fedgrass.edge.settings import RuntimeSettings
from fedgrass.errors import DataError, IpcError
from fedgrass.protocol.device_messages import ApplicationStatus
from fedgrass.protocol.names import APPLICATION_TOPIC, MODEL_ACTIVE_TOPIC, RUNTIME
from fedgrass.tensors import Array

SECONDS = 1.0
LOOKED_AT = 20
"""Predictions over which the model's confidence is averaged."""
COLLAPSE = 0.6
"""A model whose confidence falls below this share of the former one's is reported as harmful."""


class Application:
    """Classifies; its methods run on the device's loop."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._store = ModelStore(device.store)
        self._model: Bundle | None = None
        self._infer: Any = None
        self._examples: Iterator[Array] = iter(())
        self._confidences: deque[float] = deque(maxlen=LOOKED_AT)
        self._usual = 0.0
        self.predictions: deque[tuple[str, int]] = deque(maxlen=1000)

    def start(self) -> None:
        """Load the model, and follow it."""
        self.load()
        post = self._device.loop.post
        self._device.ipc.on_local(MODEL_ACTIVE_TOPIC, lambda _payload: post(self.load))
        self._device.loop.every(lambda: SECONDS, self.classify)

    def stop(self) -> None:
        """Nothing is left to do."""

    def load(self) -> None:
        """Take over the active model, if it is another than the one at work."""
        from ai_edge_litert.interpreter import Interpreter

        active = self._store.applied()
        if active is None or (self._model is not None and active.manifest == self._model.manifest):
            return
        if len(self._confidences) == LOOKED_AT:
            self._usual = float(np.mean(self._confidences))
        self._confidences.clear()
        path = self._store.folder / "active" / active.manifest.application_file
        self._infer = Interpreter(model_path=str(path)).get_signature_runner("infer")
        self._model = active
        self._examples = self._stream()
        self._device.log.log_event("application_model_loaded", version=active.manifest.version)

    def classify(self) -> None:
        """Classify the next example, and judge the model by how sure of itself it is."""
        if self._model is None or (example := next(self._examples, None)) is None:
            return
        self._say(ApplicationStatus(busy=True, valid_seconds=10))
        output = self._infer(x=example)["y"][0]
        self._say(ApplicationStatus(busy=False))
        version = self._model.manifest.version
        self.predictions.append((version, int(np.argmax(output))))
        chances = np.exp(output - output.max())
        self._confidences.append(float((chances / chances.sum()).max()))
        confidence = float(np.mean(self._confidences))
        if len(self._confidences) == LOOKED_AT and confidence < COLLAPSE * self._usual:
            reason = f"its confidence is {confidence:.2f}, the former model's was {self._usual:.2f}"
            self._say(ApplicationStatus(model_version=version, healthy=False, reason=reason))

    def _stream(self) -> Iterator[Array]:
        if self._model is None:
            return
        configuration = settings.read(self._device.ipc, RUNTIME, RuntimeSettings)
        try:
            examples = data.load(configuration.data, self._model.manifest).train
        except DataError as error:
            self._device.log.log_event("application_input_missing", reason=str(error))
            return
        for _ in itertools.count():
            for batch in examples.batches(1):
                yield batch.x

    def _say(self, status: ApplicationStatus) -> None:
        try:
            self._device.ipc.publish_local(APPLICATION_TOPIC, status.encode())
        except IpcError as error:
            self._device.log.log_event("status_not_published", error=str(error))


def start(device: Device) -> Component:
    """Make and start the application."""
    application = Application(device)
    application.start()
    return application


if __name__ == "__main__":
    main("application", "Classifies with the fleet's model.", start)
