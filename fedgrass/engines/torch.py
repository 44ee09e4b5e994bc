"""Training with PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedgrass.bundle import (
    Bundle,
    Head,
    InitialParameters,
    Manifest,
    Optimizer,
    Parameters,
    Statistic,
    check_parameters,
)
from fedgrass.engines.base import Batch, FitSettings
from fedgrass.engines.builders import builder_of, the_manifests
from fedgrass.engines.loop import OutputEngine, check_state
from fedgrass.engines.metrics import CLASSIFIERS, sigmoid, softmax
from fedgrass.engines.several import apart, labels
from fedgrass.errors import EngineError
from fedgrass.logs import Log
from fedgrass.own_code import own_code
from fedgrass.tensors import Array

try:
    import torch
except ImportError as error:
    raise EngineError("engine torch: torch is not installed; pip install 'fedgrass[torch]'") from error

Builder = str | Callable[[], torch.nn.Module]

_LOG = Log("fedgrass.engines.torch")

_functional = torch.nn.functional
_LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    # PyTorch wants the classes in the second axis, bundles have them in the last.
    "sparse_categorical_crossentropy": lambda output, y, **options: _functional.cross_entropy(
        output.movedim(-1, 1), y.long(), **options
    ),
    "categorical_crossentropy": _functional.cross_entropy,
    "binary_crossentropy": _functional.binary_cross_entropy_with_logits,
    "mean_squared_error": _functional.mse_loss,
    "mean_absolute_error": _functional.l1_loss,
    "huber": _functional.huber_loss,
}


def initial_parameters(builder: Builder) -> InitialParameters:
    """Return every float entry of the module's ``state_dict``, running statistics included, as float32.

    Buffers are statistics; the running variance of a normalization, and no other buffer, is held above zero. What is no float,
    such as counters and masks, is named as local: each device has it as its builder makes it.
    """
    module = _build(builder)
    entries = _entries(module)
    buffers = {name for name, _ in module.named_buffers()} & entries.keys()
    statistics: dict[str, Statistic] = {name: "mean" for name in entries if name in buffers}
    for path, layer in module.named_modules():
        name = f"{path}.running_var" if path else "running_var"
        if isinstance(layer, torch.nn.modules.batchnorm._NormBase) and name in statistics:
            statistics[name] = "variance"
    local = tuple(name for name in module.state_dict() if name not in entries)
    return InitialParameters({name: _array(tensor) for name, tensor in entries.items()}, statistics, local=local)


class TorchEngine(OutputEngine):
    """A module that holds the bundle's parameters at first.

    Parameters
    ----------
    builder
        Makes an ``nn.Module`` that takes x as the data loader gives it, [n, …], and gives logits of classifiers. Its
        ``state_dict`` has the manifest's parameters.
    threads
        For PyTorch's kernels, in the whole process.
    """

    takes_builder = True
    takes_correction = True

    def __init__(self, bundle: Bundle, *, threads: int = 1, builder: Builder = "") -> None:
        super().__init__(bundle)
        _check(self.manifest)
        torch.set_num_threads(threads)
        self._module = _build(builder)
        self._entries = the_manifests(_entries(self._module), self.manifest, builder)
        names = {name for name, parameter in self._module.named_parameters() if parameter.requires_grad}
        # A parameter that the manifest does not name stays as the builder makes it: nobody would carry its change to
        # the cloud.
        for name, parameter in self._module.named_parameters():
            parameter.requires_grad_(name in names and name in self._entries)
        self._trained = [p for p in self._module.parameters() if p.requires_grad]
        self.set_parameters(bundle.parameters())

    def save(self, path: Path) -> None:
        """Write the module for inference.

        Parameters
        ----------
        path
            Ends in ``.pt2``: the exported program of ``torch.export``, for any number of examples, which
            ``torch.export.load`` reads where the builder's code is not. Or in ``.pt``: the ``state_dict``.

        Raises
        ------
        EngineError
            If it ends otherwise, or the module cannot be exported.
        """
        self._module.eval()
        if path.suffix == ".pt":
            torch.save(self._module.state_dict(), path)
            return
        if path.suffix != ".pt2":
            raise EngineError(f"{path}: engine torch writes .pt2 (torch.export) or .pt (state_dict)")
        # Of one example PyTorch would take it that there is always one.
        x = self._tensor(np.zeros((2, *self.manifest.x.shape), self.manifest.x.dtype), self.manifest.x.dtype)
        with torch.no_grad(), own_code("torch.export"):
            program = torch.export.export(self._module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, path)

    def get_parameters(self) -> Parameters:
        """Return a copy of the trainable parameters, in the manifest's order."""
        return {name: _array(tensor) for name, tensor in self._entries.items()}

    def set_parameters(self, parameters: Parameters) -> None:
        """Replace the trainable parameters; raises `BundleError` if they are another model's."""
        for name, value in check_parameters(parameters, self.manifest).items():
            self._entries[name].copy_(torch.from_numpy(np.array(value)))

    def _begin(self, settings: FitSettings) -> None:
        # Dropout draws from PyTorch's one global generator.
        torch.manual_seed(settings.masks_seed())
        self._settings = settings
        self._anchor = [parameter.detach().clone() for parameter in self._trained]
        self._optimizer = _optimizer(self.manifest.optimizer, self._trained, settings.learning_rate)
        given = settings.correction or {}
        self._added = [
            (entry, torch.from_numpy(np.array(given[name])))
            for name, entry in self._module.named_parameters()
            if entry.requires_grad and name in given
        ]

    def _step(self, batch: Batch) -> float:
        self._module.train()
        self._optimizer.zero_grad()
        self._match_keras_epsilon()
        loss = self._loss(batch)
        loss.backward()
        # Proximal term, then correction, then clipping: the order of the LiteRT graph, which the engines are compared
        # with.
        if self._settings.proximal_mu:
            for parameter, anchor in zip(self._trained, self._anchor, strict=True):
                parameter.grad += self._settings.proximal_mu * (parameter.detach() - anchor)
        for parameter, added in self._added:
            parameter.grad += added
        if self._settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(self._trained, self._settings.clip_norm)
        self._optimizer.step()
        return float(loss.detach())

    def _match_keras_epsilon(self) -> None:
        """Let Adam divide by √v + ε as Keras does, and by √v̂ + ε no more: ε grows less than PyTorch's by √(1 − β₂ᵗ)."""
        if self.manifest.optimizer.name not in ("adam", "adamw"):
            return
        number = 1 + max((int(entry["step"]) for entry in self._optimizer.state.values() if "step" in entry), default=0)
        for group in self._optimizer.param_groups:
            group["eps"] = self.manifest.optimizer.epsilon / math.sqrt(1 - group["betas"][1] ** number)

    def _set_rate(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def _loss(self, batch: Batch) -> Any:
        heads = self.manifest.heads
        given = zip(heads, self._forward(batch.x), labels(batch.y, heads), strict=True)
        return sum(head.weight * self._loss_of(head, output, y, batch.weights) for head, output, y in given)

    def _loss_of(self, head: Head, output: Any, labels: Array, weights: Array | None) -> Any:
        # Weights are applied by hand: PyTorch's own `weight` divides by the sum of weights, Keras' mean by the number
        # of examples.
        function, y = _LOSSES[head.loss], self._tensor(labels, head.y.dtype)
        if weights is None:
            return function(output, y)
        each = function(output, y, reduction="none").reshape(len(labels), -1).mean(1)
        return (each * torch.from_numpy(np.asarray(weights, np.float32))).mean()

    def _outputs(self, x: Array) -> Array:
        self._module.eval()
        with torch.no_grad():
            found = self._forward(x)
        if self.manifest.outputs:
            return np.concatenate([output.reshape(len(x), -1).numpy() for output in found], axis=1)
        outputs: Array = found[0].numpy()
        if self.manifest.loss not in CLASSIFIERS:
            return outputs
        return sigmoid(outputs) if self.manifest.loss == "binary_crossentropy" else softmax(outputs)

    def _forward(self, x: Array) -> list[Any]:
        """Return what each output gives."""
        inputs = self.manifest.inputs or (self.manifest.x,)
        arrays = apart(x, inputs) if self.manifest.inputs else [x]
        found = self._module(*(self._tensor(array, part.dtype) for array, part in zip(arrays, inputs, strict=True)))
        outputs = [found] if isinstance(found, torch.Tensor) else list(getattr(found, "values", lambda: found)())
        # PyTorch has the classes of each pixel first, a bundle last.
        return [
            output if tuple(output.shape[1:]) == head.output.shape else output.movedim(1, -1)
            for output, head in zip(outputs, self.manifest.heads, strict=True)
        ]

    def _tensor(self, array: Array, dtype: str) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype))

    def _optimizer_state(self) -> list[Array]:
        values = (value for entry in self._optimizer.state_dict()["state"].values() for value in _values(entry))
        return [torch.get_rng_state().numpy().copy(), *map(_array, values)]

    def _set_optimizer_state(self, state: Sequence[Array]) -> None:
        # What the optimizer keeps comes into being at the first step: take one with no gradient, and overwrite its effect.
        parameters = [parameter.detach().clone() for parameter in self._trained]
        for parameter in self._trained:
            parameter.grad = torch.zeros_like(parameter)
        self._optimizer.step()
        # By name within each parameter, so that the order is the same in the process that wrote the checkpoint.
        held = [value for entry in self._optimizer.state.values() for value in _values(entry)]
        draws = torch.get_rng_state()
        check_state(state, [tuple(value.shape) for value in (draws, *held)])
        with torch.no_grad():
            for target, value in zip(
                [draws, *held, *self._trained], [*map(torch.from_numpy, state), *parameters], strict=True
            ):
                target.copy_(value)
        torch.set_rng_state(draws)


def _check(manifest: Manifest) -> None:
    """Refuse what this engine would train otherwise than the bundle says."""
    settings = manifest.optimizer
    for head in manifest.heads:
        options = head.loss_options
        if head.loss in _LOSSES and not options.label_smoothing and options.delta == 1:
            continue
        raise EngineError(
            f"engine torch: model {manifest.name!r} has loss {head.loss} ({options}); it takes {', '.join(_LOSSES)}, "
            "without options"
        )
    others = (settings.clipnorm, settings.clipvalue, settings.global_clipnorm)
    if settings.name not in ("sgd", "momentum", "adam", "adamw") or any(others):
        raise EngineError(
            f"engine torch: model {manifest.name!r} has optimizer {settings.name}; it takes sgd, momentum, adam and adamw, "
            "without their own clipping; use gradient_clip_norm of the fleet's settings"
        )


def _build(builder: Builder) -> torch.nn.Module:
    module = builder_of("torch", builder)()
    if not isinstance(module, torch.nn.Module):
        raise EngineError(f"builder {builder!r}: gave {type(module).__name__}, expected a torch.nn.Module")
    # float64 modules train here as float32, which is what bundles hold; said once in the log.
    kinds = {str(value.dtype) for value in module.state_dict().values() if value.is_floating_point()}
    if odd := sorted(kinds - {"torch.float32"}):
        _LOG.log_event("parameters_cast", dtypes=", ".join(odd))
    return module.float()


def _entries(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in module.state_dict().items() if value.is_floating_point()}


def _values(entry: dict[str, object]) -> list[torch.Tensor]:
    return [value for _, value in sorted(entry.items()) if isinstance(value, torch.Tensor)]


def _array(tensor: torch.Tensor) -> Array:
    return np.array(tensor.detach().numpy(), np.float32)


def _optimizer(
    settings: Optimizer, parameters: list[torch.nn.Parameter], learning_rate: float
) -> torch.optim.Optimizer:
    if settings.name in ("adam", "adamw"):
        betas = (settings.beta_1, settings.beta_2)
        # AdamW without decay is Adam; Adam's own decay is another thing in PyTorch than in Keras.
        return torch.optim.AdamW(
            parameters, learning_rate, betas, settings.epsilon, settings.decay, amsgrad=settings.amsgrad
        )
    momentum = settings.momentum if settings.name == "momentum" else 0.0
    return torch.optim.SGD(parameters, learning_rate, momentum, nesterov=bool(settings.nesterov and momentum))


engine = TorchEngine
