"""Translate Keras' losses and optimizers, as objects, names or aliases, into a bundle's description."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, cast, get_args

import keras
from pydantic import ValidationError

from fedgrass.authoring.errors import UnsupportedModelError, first_line
from fedgrass.bundle import Loss, LossOptions, Optimizer, OptimizerName, Schedule
from fedgrass.errors import first_problem

Tell = Callable[[str], None]
Config: TypeAlias = Mapping[str, Any]
"""What ``get_config()`` of an optimizer or a schedule gives: numbers, truth values, texts and lists of them, by name."""

_LOSS_NAMES = ", ".join(get_args(Loss))
_OPTIMIZER_NAMES = ", ".join(get_args(OptimizerName))
_REDUCTIONS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")


class Objective(NamedTuple):
    """A loss with its options, and whether it says that outputs are logits; None: it does not say."""

    loss: Loss
    options: LossOptions
    from_logits: bool | None = None


class Several(NamedTuple):
    """Losses of several outputs, by name, in order or one for all; and their weights likewise."""

    losses: object
    weights: object = None


def objective(given: object) -> Objective:
    """Return a loss by its name, Keras' alias, function, object or configuration.

    Raises
    ------
    UnsupportedModelError
        If devices cannot train with it.
    """
    if isinstance(given, Objective):
        return given
    try:
        found = keras.losses.get(given)
    except (ValueError, TypeError) as error:
        raise _no_loss(given, "a loss that Keras does not know") from error
    function = getattr(found, "fn", found)
    name = str(getattr(function, "__name__", type(found).__name__))
    # By module, too: a function of the user's own may be called like one of Keras'.
    if name not in get_args(Loss) or not getattr(function, "__module__", "").startswith("keras."):
        raise _no_loss(given if isinstance(given, str) else name, "this loss")
    options = dict(getattr(found, "_fn_kwargs", {}))
    # A sum grows with the batch, and so would the step; devices divide by the examples that count.
    if getattr(found, "reduction", "mean") not in _REDUCTIONS:
        raise UnsupportedModelError(
            f"loss {name}", f"reduction {found.reduction!r}", "use sum_over_batch_size, and scale the learning rate"
        )
    for option, only in (("axis", -1), ("ignore_class", None)):
        if options.pop(option, only) != only:
            raise UnsupportedModelError(f"loss {name}", f"{option} other than {only}", f"leave {option} out")
    # A bare function says nothing of logits; only an object was given options.
    from_logits = options.pop("from_logits", None) if found is not function else None
    known = {key: value for key, value in options.items() if key in LossOptions.model_fields}
    return Objective(cast(Loss, name), LossOptions(**known), from_logits)


def _no_loss(given: object, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"loss {given!r}", what, f"use one of {_LOSS_NAMES}")


def optimizer(given: object) -> Optimizer:
    """Return an optimizer by its name, Keras' object or configuration, with its learning rate.

    Raises
    ------
    UnsupportedModelError
        If devices cannot train with it.
    """
    if isinstance(given, Optimizer):
        return given
    if isinstance(given, str) and given.lower() in get_args(OptimizerName):
        return Optimizer(name=cast(OptimizerName, given.lower()))
    try:
        found = keras.optimizers.get(given)
    except (ValueError, TypeError) as error:
        raise _no_optimizer(given) from error
    config = found.get_config()
    kind = type(found).__name__
    # A subclass of Adam is not Adam: its step may be anything.
    if kind not in _KINDS or type(found).__module__.split(".")[0] != "keras":
        raise _no_optimizer(kind)
    # Each keeps state or changes steps in a way that no signature of a bundle describes.
    for option in ("use_ema", "loss_scale_factor", "gradient_accumulation_steps"):
        if config.get(option):
            raise UnsupportedModelError(f"optimizer {kind}", option, f"compile it without {option}")
    if getattr(found, "_exclude_from_weight_decay", None):
        raise UnsupportedModelError(
            f"optimizer {kind}",
            "weight decay that leaves variables out",
            "let it decay all, or use a kernel_regularizer",
        )
    rate, schedule = _rate(found, kind)
    clips = {key: config[key] for key in ("clipnorm", "clipvalue", "global_clipnorm") if config.get(key)}
    options = {"learning_rate": rate, "schedule": schedule, "weight_decay": config.get("weight_decay"), **clips}
    given_options = {key: value for key, value in options.items() if value is not None}
    try:
        return Optimizer.model_validate({**_KINDS[kind](config), **given_options})
    except ValidationError as error:
        # A rate of 0, say: Keras takes it.
        raise UnsupportedModelError(
            f"optimizer {kind}", first_problem(error), "compile it with another value"
        ) from error


def _no_optimizer(given: object) -> UnsupportedModelError:
    return UnsupportedModelError(f"optimizer {given!r}", "this optimizer", f"use one of {_OPTIMIZER_NAMES}")


def _sgd(config: Config) -> dict[str, object]:
    if not config["momentum"]:
        return {"name": "sgd"}
    return {"name": "momentum", "momentum": config["momentum"], "nesterov": config["nesterov"]}


def _adam(name: str) -> Callable[[Config], dict[str, object]]:
    return lambda config: {
        "name": name,
        **{key: config[key] for key in ("beta_1", "beta_2", "epsilon", "amsgrad")},
    }


def _rmsprop(config: Config) -> dict[str, object]:
    same = {key: config[key] for key in ("rho", "epsilon", "centered")}
    return {"name": "rmsprop", "rmsprop_momentum": config["momentum"], **same}


def _adagrad(config: Config) -> dict[str, object]:
    return {"name": "adagrad", **{key: config[key] for key in ("initial_accumulator_value", "epsilon")}}


_KINDS: dict[str, Callable[[Config], dict[str, object]]] = {
    "SGD": _sgd,
    "Adam": _adam("adam"),
    "AdamW": _adam("adamw"),
    "RMSprop": _rmsprop,
    "Adagrad": _adagrad,
}


def _rate(found: keras.optimizers.Optimizer, kind: str) -> tuple[float, Schedule | None]:
    schedule = found._learning_rate
    if callable(schedule) and not isinstance(
        schedule, (keras.Variable, keras.optimizers.schedules.LearningRateSchedule)
    ):
        raise UnsupportedModelError(
            f"optimizer {kind}",
            "a learning rate that a function gives",
            f"give a number, or a schedule: {', '.join(_SCHEDULES)}",
        )
    if not isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        # As it was written down: 0.001 and not float32's neighbour of it.
        # Seven digits are what float32 has.
        return float(f"{float(schedule):.7g}"), None
    name, config = type(schedule).__name__, schedule.get_config()
    if name not in _SCHEDULES:
        raise UnsupportedModelError(
            f"optimizer {kind}", f"learning-rate schedule {name}", f"use one of {', '.join(_SCHEDULES)}"
        )
    return _SCHEDULES[name](config)


def _exponential(
    config: Config, name: Literal["exponential", "inverse_time"] = "exponential"
) -> tuple[float, Schedule]:
    same = {key: config[key] for key in ("decay_steps", "decay_rate", "staircase")}
    return config["initial_learning_rate"], Schedule(name=name, **same)


def _inverse_time(config: Config) -> tuple[float, Schedule]:
    return _exponential(config, "inverse_time")


def _polynomial(config: Config) -> tuple[float, Schedule]:
    rate = config["initial_learning_rate"]
    same = {key: config[key] for key in ("decay_steps", "power", "cycle")}
    # As a share of the first rate, so the schedule holds for a round's own learning rate.
    return rate, Schedule(name="polynomial", end=config["end_learning_rate"] / rate, **same)


def _cosine(config: Config) -> tuple[float, Schedule]:
    first, target = config["initial_learning_rate"], config["warmup_target"]
    schedule = {"name": "cosine", "decay_steps": config["decay_steps"], "end": config["alpha"]}
    if target is None:
        return first, Schedule(**schedule)
    return target, Schedule(**schedule, warmup_steps=config["warmup_steps"], warmup_from=first / target)


def _piecewise(config: Config) -> tuple[float, Schedule]:
    first = config["values"][0]
    # As multiples: a round's own learning rate takes the first one's place, and the schedule still holds.
    multiples = tuple(value / first for value in config["values"])
    return first, Schedule(name="piecewise", boundaries=tuple(config["boundaries"]), multiples=multiples)


_SCHEDULES: dict[str, Callable[[Config], tuple[float, Schedule]]] = {
    "ExponentialDecay": _exponential,
    "InverseTimeDecay": _inverse_time,
    "PolynomialDecay": _polynomial,
    "CosineDecay": _cosine,
    "PiecewiseConstantDecay": _piecewise,
}


def chosen(
    model: keras.Model, loss: object, given: object, tell: Tell, loss_weights: object = None
) -> tuple[Objective | Several, Optimizer]:
    """Choose loss and optimizer: what is asked for, else what the model was compiled with; say what is not taken.

    Parameters
    ----------
    model
        A Keras model, compiled or not.
    loss
        Name or Keras object of the loss that is asked for; None takes the model's.
    given
        Name or Keras object of the optimizer that is asked for; None takes the model's, else plain gradient descent.
    tell
        Called with a line for whatever the model was compiled with and is not taken.
    loss_weights
        What the losses of several outputs are times; None takes the model's, if its losses are taken, else 1.

    Returns
    -------
    tuple
        The objective, or `Several` as they were given where there is more than one loss, weight or output; and the optimizer.

    Raises
    ------
    UnsupportedModelError
        If there is no loss, or devices cannot train with what there is.
    """
    compiled = bool(getattr(model, "compiled", False)) and hasattr(model, "optimizer")
    own_loss, own_optimizer = (getattr(model, "loss", None), model.optimizer) if compiled else (None, None)
    # Weights belong to the losses: those of the compiled model only count where its losses do.
    if loss_weights is None and loss is None and compiled and getattr(model, "_compile_loss", None) is not None:
        loss_weights = getattr(model._compile_loss, "_user_loss_weights", None)
    if loss is None and own_loss is None:
        raise UnsupportedModelError(
            getattr(model, "name", str(model)), "a model without a loss", f"compile it, or give one of {_LOSS_NAMES}"
        )
    taken = own_loss if loss is None else loss
    nested = _is_nested(taken) or loss_weights is not None or len(_outputs(model)) > 1
    # Said only if they differ: an option that repeats what is there needs no note.
    if loss is not None and own_loss is not None and not nested and not _is_nested(own_loss):
        _tell_other("loss", loss, own_loss, objective, tell)
    if given is not None and own_optimizer is not None:
        _tell_other("optimizer", given, own_optimizer, optimizer, tell)
    found = Several(taken, loss_weights) if nested else objective(taken)
    chosen_optimizer = given if given is not None else own_optimizer
    return found, Optimizer() if chosen_optimizer is None else optimizer(chosen_optimizer)


def _is_nested(loss: object) -> bool:
    # Keras' configuration of one loss is a mapping too.
    return (isinstance(loss, (list, tuple)) and not isinstance(loss, Objective)) or (
        isinstance(loss, Mapping) and "class_name" not in loss
    )


def _outputs(model: keras.Model) -> Sequence[keras.KerasTensor]:
    try:
        return list(model.outputs or ())
    except (AttributeError, ValueError):  # a subclassed model that is not built; a PyTorch module
        return ()


def _tell_other(what: str, given: object, own: object, read: Callable[[object], object], tell: Tell) -> None:
    try:
        theirs = read(own)
    except UnsupportedModelError as error:
        tell(f"the model was compiled with another {what}, which is not taken ({first_line(error)})")
        return
    if read(given) != theirs:
        tell(f"the model was compiled with {what} {getattr(theirs, 'loss', theirs)}; the one given is taken")
