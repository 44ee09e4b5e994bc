"""scikit-learn's estimators over a fleet, against scikit-learn itself on the same or on all data, and plain means in NumPy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import (
    ElasticNet,
    Lasso,
    LinearRegression,
    LogisticRegression,
    Ridge,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, PolynomialFeatures, StandardScaler

from fedgrass.architecture import NewModel, new_bundle
from fedgrass.bundle import Bundle, Loss, Parameters, TensorDescription
from fedgrass.data import ArrayDataset
from fedgrass.engines.base import FitSettings, FitState, Hooks, StopTraining
from fedgrass.engines.sklearn import SklearnEngine, initial_parameters
from fedgrass.errors import EngineError
from fedgrass.tensors import Array

DRAW = np.random.default_rng(4)
N, FEATURES, CLASSES = 240, 5, 3
X = DRAW.normal(size=(N, FEATURES)).astype(np.float32)
SLOPES = DRAW.normal(size=(FEATURES, CLASSES))
LABELS = (X @ SLOPES + DRAW.gumbel(size=(N, CLASSES))).argmax(axis=1).astype(np.int32)
BINARY = (LABELS > 0).astype(np.int32)
VALUES = (X @ SLOPES[:, :1] + 3 + DRAW.normal(size=(N, 1)) / 4).astype(np.float32)
TARGETS = (X @ SLOPES[:, :2] - 1).astype(np.float32)
PARTS = (slice(0, 30), slice(30, 100), slice(100, N))

Build = Callable[[], Any]


def made(folder: Path, build: Build, x: Array, y: Array, **options: Any) -> SklearnEngine:
    """Make an engine for labels [n] (as many classes as occur in y), for values [n, k], or for y that is x."""
    classes = 0 if y.dtype.kind == "f" else int(options.pop("classes", y.max() + 1))
    loss: Loss = "sparse_categorical_crossentropy" if classes else "mean_squared_error"
    outputs = (classes,) if classes else y.shape[1:]
    size = options.pop("batch_size", 16)
    parameters = initial_parameters(
        build, features=x[0].size, classes=classes, outputs=int(np.prod(outputs)), **options
    )
    bundle = new_bundle(
        folder,
        NewModel(
            engine="sklearn",
            name="m",
            parameters=parameters,
            loss=loss,
            batch_size=size,
            x=TensorDescription(name="x", shape=x.shape[1:], dtype="float32"),
            y=TensorDescription.model_validate({"name": "y", "shape": y.shape[1:], "dtype": y.dtype.name}),
            output=TensorDescription(name="y", shape=outputs, dtype="float32"),
        ),
    )
    return SklearnEngine(bundle, builder=build)


def round_of(engine: SklearnEngine, x: Array, y: Array, parts: Sequence[Any] = PARTS, **settings: Any) -> Parameters:
    """Do a round: each device trains on its part, and the engine takes the plain mean by examples."""
    base = engine.get_parameters()
    results = []
    for part in parts:
        engine.set_parameters(base)
        results.append(engine.fit(ArrayDataset(x[part], y[part]), FitSettings(**settings)))
    shares = np.array([result.num_examples for result in results], float)
    shares /= shares.sum()
    mean = {
        name: sum(s * r.parameters[name].astype(np.float64) for s, r in zip(shares, results, strict=True))
        for name in base
    }
    engine.set_parameters({name: np.asarray(value, np.float32) for name, value in mean.items()})
    return engine.get_parameters()


SOLVERS = ("lbfgs", "newton-cg", "newton-cholesky", "sag", "saga", "liblinear")


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("labels", [BINARY, LABELS], ids=["two classes", "three classes"])
def test_logistic_regression_is_the_mean_of_what_scikit_learn_fits(tmp_path: Path, solver: Any, labels: Array) -> None:
    def build() -> LogisticRegression:
        return LogisticRegression(solver=solver, C=0.7, tol=1e-10, max_iter=5000, random_state=0)

    if solver == "liblinear" and labels.max() > 1:
        with pytest.raises(EngineError, match="'liblinear', which tells two classes apart and not 3"):
            made(tmp_path, build, X, labels)
        return
    found = round_of(made(tmp_path, build, X, labels), X, labels)
    own = [build().fit(X[part].astype(float), labels[part]) for part in PARTS]
    sizes = [part.stop - part.start for part in PARTS]
    for name, value in found.items():
        mean = np.average([getattr(model, f"{name}_") for model in own], axis=0, weights=sizes)
        np.testing.assert_allclose(value, mean, atol=3e-5)


@pytest.mark.parametrize(
    ("build", "y"),
    [
        (LinearRegression, VALUES),
        (LinearRegression, TARGETS),
        (lambda: LinearRegression(fit_intercept=False), VALUES),
        (lambda: Ridge(2.0, fit_intercept=False), TARGETS),
        (lambda: Ridge(2.0), VALUES),
        (lambda: Ridge(2.0, solver="sag", tol=1e-9), VALUES),
        (lambda: Lasso(0.05), VALUES),
        (lambda: Lasso(0.05), TARGETS),
        (lambda: ElasticNet(0.05), VALUES),
    ],
)
def test_regressions_are_the_mean_of_what_scikit_learn_fits(tmp_path: Path, build: Build, y: Array) -> None:
    engine = made(tmp_path, build, X, y)
    found = round_of(engine, X, y)
    one = y[:, 0] if y.shape[1] == 1 else y
    own = [build().fit(X[part].astype(float), one[part].astype(float)) for part in PARTS]
    sizes = [part.stop - part.start for part in PARTS]
    coefficients = np.average([model.coef_ for model in own], axis=0, weights=sizes)
    np.testing.assert_allclose(found["coef"], coefficients, atol=3e-4)
    intercepts = [np.broadcast_to(model.intercept_, (y.shape[1],)) for model in own]
    np.testing.assert_allclose(found["intercept"], np.average(intercepts, axis=0, weights=sizes), atol=3e-4)
    expected = X @ np.atleast_2d(coefficients).T + found["intercept"]
    figures = engine.evaluate(ArrayDataset(X, y))
    assert figures["loss"] == pytest.approx(float(((expected - y) ** 2).mean()), rel=1e-3)


def test_a_round_of_one_iteration_goes_on_from_the_fleets_coefficients(tmp_path: Path) -> None:
    """The way of Flower's own scikit-learn examples: max_iter=1, and the server's coefficients as the start."""

    def build() -> LogisticRegression:
        return LogisticRegression(max_iter=1, solver="newton-cg")

    engine = made(tmp_path, build, X, LABELS)
    losses = []
    for _ in range(6):
        round_of(engine, X, LABELS)
        losses.append(engine.evaluate(ArrayDataset(X, LABELS))["loss"])
    assert losses == sorted(losses, reverse=True)
    whole = LogisticRegression(max_iter=1000).fit(X, LABELS)
    assert engine.evaluate(ArrayDataset(X, LABELS))["accuracy"] > whole.score(X, LABELS) - 0.05


def softmax_regression(x: Array, y: Array, classes: int, c: float) -> tuple[Array, Array]:
    """Minimise scikit-learn's documented objective over all classes: C × Σ −log p + ‖coef‖² / 2, in plain NumPy."""

    def objective(flat: Array) -> tuple[float, Array]:
        w = flat.reshape(classes, -1)
        scores = x @ w[:, :-1].T + w[:, -1]
        scores -= scores.max(axis=1, keepdims=True)
        logs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        error = np.exp(logs) - np.eye(classes)[y]
        gradient = c * np.concatenate([error.T @ x, error.sum(axis=0)[:, None]], axis=1)
        gradient[:, :-1] += w[:, :-1]
        return float(-c * logs[np.arange(len(y)), y].sum() + (w[:, :-1] ** 2).sum() / 2), gradient.ravel()

    found = minimize(objective, np.zeros(classes * (x.shape[1] + 1)), jac=True, tol=1e-12).x.reshape(classes, -1)
    return found[:, :-1], found[:, -1]


@pytest.mark.parametrize("solver", ["lbfgs", "newton-cg", "newton-cholesky", "saga"])
def test_a_device_without_some_class_fits_all_the_same(tmp_path: Path, solver: Any) -> None:
    def build() -> LogisticRegression:
        return LogisticRegression(solver=solver, tol=1e-9, max_iter=3000)

    kept = LABELS != 1
    x, y = X[kept], LABELS[kept]
    engine = made(tmp_path, build, x, y, classes=3)
    engine.fit(ArrayDataset(x, y), FitSettings())
    coefficients, _ = softmax_regression(x.astype(float), y, 3, 1.0)
    # The intercept of a class that never occurs has no minimum: it sinks for as long as the solver looks.
    found = engine.get_parameters()["coef"]
    np.testing.assert_allclose(found[2] - found[0], coefficients[2] - coefficients[0], atol=2e-2)
    np.testing.assert_allclose(found[1], coefficients[1], atol=2e-2)
    assert engine.evaluate(ArrayDataset(x, y))["accuracy"] > 0.8


BUILDERS: dict[str, Build] = {
    **{f"logistic {solver}": partial(LogisticRegression, solver=solver) for solver in SOLVERS},
    "sgd": lambda: SGDClassifier(loss="log_loss"),
    "perceptron": lambda: MLPClassifier((8,), random_state=0),
    "bayes": GaussianNB,
    "pipeline": lambda: make_pipeline(StandardScaler(), LogisticRegression()),
}


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("only", [0, 1])
def test_a_device_with_one_class_trains_and_the_fleet_learns_both(tmp_path: Path, name: str, only: int) -> None:
    one = np.flatnonzero(only == BINARY)
    engine = made(tmp_path, BUILDERS[name], X, BINARY)
    for _ in range(5):
        round_of(engine, X, BINARY, [one[:20], slice(0, 120), slice(120, N)], epochs=3, learning_rate=0.05)
    assert engine.evaluate(ArrayDataset(X, BINARY))["accuracy"] > 0.75
    alone = made(tmp_path / "alone", BUILDERS[name], X, BINARY)
    for _ in range(3):
        alone.fit(ArrayDataset(X[one], BINARY[one]), FitSettings(epochs=5, learning_rate=0.5))
    assert alone.evaluate(ArrayDataset(X[one], BINARY[one]))["accuracy"] > 0.9


@pytest.mark.parametrize("solver", SOLVERS)
def test_balanced_weights_are_scikit_learns(tmp_path: Path, solver: Any) -> None:
    rare = np.concatenate([np.flatnonzero(BINARY == 0), np.flatnonzero(BINARY == 1)[:12]])
    x, y = X[rare], BINARY[rare]

    def build() -> LogisticRegression:
        return LogisticRegression(solver=solver, class_weight="balanced", tol=1e-9, max_iter=5000, random_state=0)

    engine = made(tmp_path, build, x, y)
    engine.fit(ArrayDataset(x, y), FitSettings())
    expected = build().fit(x.astype(float), y)
    np.testing.assert_allclose(engine.get_parameters()["coef"], expected.coef_, atol=1e-3)
    plain = made(tmp_path / "plain", lambda: LogisticRegression(solver=solver), x, y)
    plain.fit(ArrayDataset(x, y), FitSettings())
    assert np.abs(plain.get_parameters()["intercept"] - expected.intercept_).max() > 0.1
    # The round's weights are the operator's: they take the place of the estimator's.
    engine.set_parameters(made(tmp_path / "new", build, x, y).get_parameters())
    engine.fit(ArrayDataset(x, y), FitSettings(class_weight={"1": 2.0}))
    other = LogisticRegression(solver=solver, class_weight={0: 1, 1: 2}, tol=1e-9, max_iter=5000, random_state=0).fit(
        x.astype(float), y
    )
    np.testing.assert_allclose(engine.get_parameters()["coef"], other.coef_, atol=1e-3)


@pytest.mark.parametrize("weight", ["balanced", {0: 0.25, 2: 4.0}])
def test_an_sgd_classifiers_own_class_weights_train_as_the_rounds_do(tmp_path: Path, weight: Any) -> None:
    own = made(tmp_path, lambda: SGDClassifier(loss="log_loss", class_weight=weight), X, LABELS)
    given = made(tmp_path / "given", lambda: SGDClassifier(loss="log_loss"), X, LABELS)
    data = ArrayDataset(X, LABELS)
    named: Any = weight if isinstance(weight, str) else {str(key): value for key, value in weight.items()}
    left = own.fit(data, FitSettings(learning_rate=0.05)).parameters
    right = given.fit(data, FitSettings(learning_rate=0.05, class_weight=named)).parameters
    plain = made(tmp_path / "plain", lambda: SGDClassifier(loss="log_loss"), X, LABELS).fit(
        data, FitSettings(learning_rate=0.05)
    )
    np.testing.assert_array_equal(left["coef"], right["coef"])
    assert np.abs(left["coef"] - plain.parameters["coef"]).max() > 1e-3


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("priors", [None, [0.2, 0.3, 0.5]])
def test_naive_bayes_is_that_of_all_data_in_one_place(tmp_path: Path, offset: float, priors: Any) -> None:
    x = (X * [1, 2, 30, 0.1, 1] + offset).astype(np.float32)
    one = np.flatnonzero(LABELS == 2)
    rest = np.flatnonzero(LABELS != 2)
    engine = made(tmp_path, lambda: GaussianNB(priors=priors), x, LABELS)
    assert engine.evaluate(ArrayDataset(x, LABELS))["loss"] == pytest.approx(np.log(3), abs=1)
    for _ in range(2 if offset else 1):  # the second counts from the means that the first has found
        round_of(engine, x, LABELS, [one, rest[:10], rest[10:]], epochs=2)
    whole = GaussianNB(priors=priors).fit(x.astype(float), LABELS)
    found = engine.estimator
    np.testing.assert_allclose(found.theta_, whole.theta_, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.var_, whole.var_, rtol=1e-4)
    np.testing.assert_allclose(found.class_prior_, whole.class_prior_, rtol=1e-6)
    np.testing.assert_allclose(found.predict_proba(x), whole.predict_proba(x), atol=2e-3)


def nearest(x: Array, centres: Array) -> Array:
    return np.asarray(((x[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1))


def test_a_round_of_k_means_is_a_step_on_all_data_in_one_place(tmp_path: Path) -> None:
    first = X[:4].astype(float)
    far = np.full((1, FEATURES), 50.0)  # a cluster that nobody is in stays where it is
    start = np.concatenate([first, far])
    engine = made(tmp_path, lambda: MiniBatchKMeans(5, init=start), X, X, batch_size=N)
    assert engine.evaluate(ArrayDataset(X, X))["loss"] > 0
    for _ in range(3):
        round_of(engine, X, X)
        chosen = nearest(X, start)
        start = np.array([X[chosen == k].mean(axis=0) if (chosen == k).any() else start[k] for k in range(5)])
        np.testing.assert_allclose(engine.estimator.cluster_centers_, start, atol=1e-4)
    figures = engine.evaluate(ArrayDataset(X, X))
    assert figures["loss"] == pytest.approx(((X - start[nearest(X, start)]) ** 2).mean(), rel=1e-4)
    np.testing.assert_array_equal(engine.estimator.predict(X.astype(float)), nearest(X, start))


def test_k_means_steps_as_scikit_learns_partial_fit(tmp_path: Path) -> None:
    start = X[:4].astype(float)
    engine = made(tmp_path, lambda: MiniBatchKMeans(4, init=start), X, X, batch_size=40)
    data, settings = ArrayDataset(X, X), FitSettings(epochs=2, seed=9)
    engine.fit(data, settings)
    own = MiniBatchKMeans(4, init=start, n_init=1, reassignment_ratio=0)
    for epoch in range(2):
        for batch in data.batches(40, seed=settings.epoch_seed(epoch)):
            own.partial_fit(batch.x.astype(float))
    np.testing.assert_allclose(engine.estimator.cluster_centers_, own.cluster_centers_, atol=1e-4)


def test_k_means_finds_its_first_centres_in_a_sample_or_says_that_it_has_none(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="give initial_parameters a sample of x"):
        made(tmp_path, lambda: MiniBatchKMeans(4), X, X)
    engine = made(tmp_path, lambda: MiniBatchKMeans(4, random_state=0), X, X, sample=X)
    assert len(np.unique(nearest(X, engine.estimator.cluster_centers_))) == 4
    with pytest.raises(EngineError, match="y and output must be as x is"):
        made(tmp_path / "other", lambda: MiniBatchKMeans(4, random_state=0), X, VALUES, sample=X)


@pytest.mark.parametrize("offset", [0.0, 3000.0])
def test_a_scaler_is_that_of_all_data_in_one_place(tmp_path: Path, offset: float) -> None:
    x = (X * [1, 5, 100, 0.3, 0] + offset).astype(np.float32)  # the last column is constant
    engine = made(tmp_path, StandardScaler, x, x)
    for _ in range(2):
        round_of(engine, x, x)
    whole = StandardScaler().fit(x.astype(float))
    np.testing.assert_allclose(engine.estimator.mean_, whole.mean_, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(engine.estimator.transform(x), whole.transform(x), atol=2e-3)


@pytest.mark.parametrize("offset", [0.0, 3000.0])
def test_a_pipelines_scaler_is_measured_first_and_then_what_scikit_learn_fits(tmp_path: Path, offset: float) -> None:
    x = (X * [1, 5, 100, 0.3, 1] + offset).astype(np.float32)

    def build() -> Pipeline:
        return make_pipeline(StandardScaler(), LinearRegression())

    engine = made(tmp_path, build, x, VALUES)
    rounds = 0
    while not engine.get_parameters()["linearregression/coef"].any():
        round_of(engine, x, VALUES)
        rounds += 1
    assert rounds == (3 if offset else 2)
    whole = StandardScaler().fit(x.astype(float))
    own = [LinearRegression().fit(whole.transform(x[part].astype(float)), VALUES[part]) for part in PARTS]
    mean = np.average([model.coef_[0] for model in own], axis=0, weights=[p.stop - p.start for p in PARTS])
    np.testing.assert_allclose(engine.get_parameters()["linearregression/coef"], mean, atol=2e-3)
    one = made(tmp_path / "one", build, x, VALUES)
    for _ in range(rounds):
        one.fit(ArrayDataset(x, VALUES), FitSettings())
    expected = build().fit(x.astype(float), VALUES)
    np.testing.assert_allclose(
        one.estimator.predict(x.astype(float)), expected.predict(x.astype(float))[:, 0], atol=1e-2
    )


def test_a_pipeline_takes_transformers_that_need_no_fleet(tmp_path: Path) -> None:
    zeros = np.zeros((1, FEATURES))

    def build() -> Pipeline:
        return Pipeline(
            [
                ("square", PolynomialFeatures(2).fit(zeros)),
                ("plain", "passthrough"),
                ("same", FunctionTransformer()),
                ("scale", StandardScaler().fit(PolynomialFeatures(2).fit_transform(X.astype(float)))),
                ("last", LogisticRegression(class_weight="balanced")),
            ]
        )

    engine = made(tmp_path, build, X, LABELS)
    assert set(engine.get_parameters()) == {"last/coef", "last/intercept"}
    engine.fit(ArrayDataset(X, LABELS), FitSettings())  # nothing has to be measured
    expected = build().fit(X.astype(float), LABELS)
    np.testing.assert_allclose(engine.estimator.predict_proba(X), expected.predict_proba(X), atol=5e-3)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (
            lambda: make_pipeline(PCA(2), LogisticRegression()),
            r"step 'pca' \(PCA\) would be fitted otherwise on each device",
        ),
        (lambda: make_pipeline(StandardScaler(), StandardScaler(), LogisticRegression()), "second StandardScaler"),
        (lambda: make_pipeline(Normalizer(), StandardScaler()), "last step 'standardscaler' .* cannot follow"),
        (lambda: make_pipeline(Normalizer(), PCA()), "gave PCA; expected SGDClassifier"),
        (lambda: SGDClassifier(loss="log_loss", average=True), "average=True"),
        (lambda: SGDRegressor(average=10), "average=10"),
        (lambda: SGDClassifier(loss="hinge"), "loss='log_loss'"),
    ],
)
def test_what_a_fleet_cannot_train_is_refused_by_name(build: Build, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        initial_parameters(build, features=FEATURES, classes=3)


@pytest.mark.parametrize("build", [LogisticRegression, GaussianNB])
@pytest.mark.parametrize("term", ["proximal_mu", "clip_norm"])
def test_terms_of_a_gradient_are_refused_where_there_is_none(tmp_path: Path, build: Build, term: str) -> None:
    engine = made(tmp_path, build, X, LABELS)
    base = engine.get_parameters()
    with pytest.raises(EngineError, match=f"cannot honour fit.{'gradient_' * (term == 'clip_norm')}{term}"):
        engine.fit(ArrayDataset(X, LABELS), FitSettings(**{term: 0.1}))  # type: ignore[arg-type]
    assert all(np.array_equal(value, base[name]) for name, value in engine.get_parameters().items())


RESUMED: dict[str, tuple[Build, Array]] = {
    "sag": (lambda: LogisticRegression(solver="sag", max_iter=2), LABELS),
    "bayes": (GaussianNB, LABELS),
    "clusters": (lambda: MiniBatchKMeans(4, init=X[:4]), X),
    "measuring": (lambda: make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss")), LABELS),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", RESUMED)
def test_a_training_that_was_stopped_anywhere_gives_the_same(tmp_path: Path, name: str) -> None:
    build, y = RESUMED[name]
    data, settings = ArrayDataset(X, y), FitSettings(epochs=3, seed=5)
    whole = made(tmp_path, build, X, y).fit(data, settings)
    again = made(tmp_path / "again", build, X, y).fit(data, settings)
    assert all(np.array_equal(value, again.parameters[key]) for key, value in whole.parameters.items())
    for at in range(1, whole.steps, 7):
        states: list[FitState] = []
        count = 0

        def stop(epoch: int, step: int, *, at: int = at) -> None:
            nonlocal count
            count += 1
            if count == at:
                raise StopTraining

        with pytest.raises(StopTraining):
            made(tmp_path / f"{at}", build, X, y).fit(data, settings, hooks=Hooks(stop, stopped=states.append))
        resumed = made(tmp_path / f"{at} on", build, X, y).fit(data, settings, resume=states[0])
        assert resumed.steps == whole.steps
        for key, value in whole.parameters.items():
            np.testing.assert_allclose(resumed.parameters[key], value, rtol=1e-5, atol=1e-6)


def test_measured_arrays_are_statistics_that_no_server_optimizer_steps_along(tmp_path: Path) -> None:
    made(tmp_path, lambda: make_pipeline(StandardScaler(), LogisticRegression()), X, LABELS)
    statistics = Bundle.open(tmp_path).manifest.statistics
    assert statistics == {f"standardscaler/{name}": "mean" for name in ("shares", "sums", "squares", "origin")}
    made(tmp_path / "plain", LogisticRegression, X, LABELS)
    assert Bundle.open(tmp_path / "plain").manifest.statistics == {}


def test_no_warning_says_that_few_iterations_did_not_converge(tmp_path: Path) -> None:
    engine = made(tmp_path, lambda: LogisticRegression(max_iter=1), X, LABELS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.fit(ArrayDataset(X, LABELS), FitSettings())
