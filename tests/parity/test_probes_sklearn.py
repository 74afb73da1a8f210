"""Convex kinds of probes against scikit-learn, the same optimum in weights and in scores."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from jax_interp.probes import (
    LabelledTokens,
    Last,
    LinearRegression,
    Logistic,
    Ridge,
    RidgeClassifier,
    Softmax,
    Vectors,
    fit_probes,
)

sklearn = pytest.importorskip("sklearn")
pytestmark = pytest.mark.parity

STRENGTHS = (1e-4, 1e-2, 1.0, 1e2, 1e4)
SHAPES = {"tall": (300, 12), "wide": (40, 90)}


def examples(shape: str, classes: int, seed: int = 0) -> tuple[Vectors, np.ndarray]:
    """(activations with columns of different scale and mean, a weight for each example)."""
    rng = np.random.default_rng(seed)
    n, d = SHAPES[shape]
    x = rng.normal(size=(n, d)) * 10 ** rng.uniform(-0.7, 0.7, d) + rng.normal(size=d)
    signal = (x - x.mean(0)) @ rng.normal(size=(d, max(classes, 1))) / np.sqrt(d)
    noisy = signal + 1.5 * rng.normal(size=signal.shape)
    if classes == 0:
        y: Any = noisy[:, 0].astype(np.float32)
    else:
        y = (noisy[:, 0] > 0.5).astype(np.int32) if classes == 2 else noisy.argmax(1).astype(np.int32)
    readable = np.ones((n, 1), bool)
    names = tuple(f"class {i}" for i in range(classes))
    data = LabelledTokens("generated", np.zeros((n, 1), np.int32), readable, readable, y, names)
    return Vectors(data, (Last(),), {"x": x[None].astype(np.float32)}), rng.uniform(0.2, 3, n).astype(np.float32)


def compare(fitted, oracle, on: Vectors, strength: float | None, weights: bool = True, tolerance: float = 1e-4):
    probe = fitted.probe(strength=strength)
    x = on.values["x"][0].astype(np.float64)
    theirs = oracle.decision_function(x) if hasattr(oracle, "decision_function") else oracle.predict(x)
    pairs = [(np.asarray(probe.score(on.values["x"][0])), theirs)]
    if weights:
        pairs.append((np.asarray(probe.weight).T, np.asarray(oracle.coef_).T.reshape(np.shape(probe.weight.T))))
    for ours, theirs in pairs:
        if ours.ndim == 2:  # what is added to all classes changes nothing, and scikit-learn leaves some of it
            ours, theirs = (a - a.mean(axis=1, keepdims=True) for a in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max())


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("classes", [2, 4])
def test_logistic_and_softmax(classes, shape, bias, class_weight):
    from sklearn.linear_model import LogisticRegression

    on, weight = examples(shape, classes)
    kind = (Logistic if classes == 2 else Softmax)(C=STRENGTHS, bias=bias, class_weight=class_weight)
    fitted = fit_probes(kind, on, weight=weight)
    x = on.values["x"][0].astype(np.float64)
    for C in STRENGTHS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            solver = {"solver": "newton-cholesky"} if bias or classes == 2 else {"solver": "lbfgs"}
            oracle = LogisticRegression(
                C=C, fit_intercept=bias, class_weight=class_weight, tol=1e-10, max_iter=20_000, **solver
            )
            oracle.fit(x, on.data.labels, sample_weight=weight)
        compare(fitted, oracle, on, C)


@pytest.mark.parametrize("bias", [True, False])
def test_standardised(bias):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    on, _ = examples("tall", 2)
    train = np.arange(len(on.data)) % 3 > 0
    fitted = fit_probes(Logistic(C=STRENGTHS, bias=bias, standardise=True), on, train=train)
    x = on.values["x"][0].astype(np.float64)
    for C in STRENGTHS:
        one = LogisticRegression(C=C, fit_intercept=bias, tol=1e-10, max_iter=20_000, solver="newton-cholesky")
        oracle = make_pipeline(StandardScaler(with_mean=bias), one).fit(x[train], on.data.labels[train])
        compare(fitted, oracle, on, C, weights=False)


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_ridge_classifier(shape, bias, class_weight):
    from sklearn.linear_model import RidgeClassifier as Oracle

    on, weight = examples(shape, 2)
    if class_weight:  # scikit-learn counts rows here, whatever their weight
        weight = np.ones_like(weight)
    fitted = fit_probes(RidgeClassifier(alpha=STRENGTHS, bias=bias, class_weight=class_weight), on, weight=weight)
    for alpha in STRENGTHS:
        oracle = Oracle(alpha=alpha, fit_intercept=bias, class_weight=class_weight, solver="cholesky")
        oracle.fit(on.values["x"][0].astype(np.float64), on.data.labels, sample_weight=weight)
        compare(fitted, oracle, on, alpha)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_ridge_and_linear_regression(shape, bias):
    from sklearn.linear_model import LinearRegression as LeastSquares
    from sklearn.linear_model import Ridge as Oracle

    on, weight = examples(shape, 0)
    x = on.values["x"][0].astype(np.float64)
    fitted = fit_probes(Ridge(alpha=STRENGTHS, bias=bias), on, weight=weight)
    for alpha in STRENGTHS:
        oracle = Oracle(alpha=alpha, fit_intercept=bias, solver="cholesky")
        compare(fitted, oracle.fit(x, on.data.labels, sample_weight=weight), on, alpha)
    oracle = LeastSquares(fit_intercept=bias).fit(x, on.data.labels, sample_weight=weight)
    compare(fit_probes(LinearRegression(bias=bias), on, weight=weight), oracle, on, None)
