"""Probes on tokens against scikit-learn: the optima of the convex ones, and stacking."""

from __future__ import annotations

import numpy as np
import pytest

from jax_interp.probes import (
    All,
    LabelledTokens,
    Last,
    MassMean,
    Mean,
    Sequences,
    TokenProbe,
    Vectors,
    fit_ensemble,
    fit_probes,
    grouped_folds,
)

pytestmark = pytest.mark.parity
linear_model = pytest.importorskip("sklearn.linear_model")


def drawn() -> tuple[Sequences, np.ndarray]:
    """Texts of 3 to 9 tokens, and their standardised activations in float64."""
    rng = np.random.default_rng(0)
    read = np.arange(9)[None, :] < rng.integers(3, 10, 150)[:, None]
    y = rng.integers(0, 2, 150).astype(np.int32)
    x = rng.normal(size=(150, 9, 7)) * np.geomspace(0.1, 10, 7) + 0.5 * y[:, None, None]
    x = np.where(read[:, :, None], x, 0).astype(np.float32)
    token_labels = np.where(read, (rng.random(read.shape) < 0.2) * y[:, None], -1)
    tokens = np.zeros(read.shape, np.int32)
    data = LabelledTokens("drawn", tokens, read, read, y, ("no", "yes"), token_labels=token_labels)
    of = x[read].astype(np.float64)
    return Sequences(data, All(), read, {"x": x}), (x - of.mean(axis=0)) / of.std(axis=0)


@pytest.mark.parametrize("C", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("train_on", ["examples", "tokens"])
def test_linear_probes_have_its_optimum(C, class_weight, train_on):
    on, z = drawn()
    probe = fit_probes(TokenProbe(Mean(), train_on, C=(C,), class_weight=class_weight), on).probe()
    rows = np.where(on.read[:, :, None], z, 0).sum(axis=1) / on.read.sum(axis=1, keepdims=True)
    x, y = (rows, on.data.labels) if train_on == "examples" else (z[on.read], on.data.token_labels[on.read])
    theirs = linear_model.LogisticRegression(C=C, class_weight=class_weight, tol=1e-10, max_iter=5000).fit(x, y)
    expected = rows @ theirs.coef_[0] + theirs.intercept_[0]
    found = np.asarray(probe.score(on.values["x"], on.read))
    np.testing.assert_allclose(found, expected, atol=1e-4 * max(1.0, np.abs(expected).max()))


def test_stacking_is_its_logistic_regression_on_out_of_fold_scores():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 120)
    x = rng.normal(size=(3, 120, 5)) + y[None, :, None] * np.linspace(0.2, 0.8, 3)[:, None, None]
    ones = np.ones((120, 1), bool)
    tokens, labels = np.arange(120, dtype=np.int32)[:, None], y.astype(np.int32)
    data = LabelledTokens("drawn", tokens, ones, ones, labels, ("no", "yes"))
    on = Vectors(data, (Last(),), {f"site {s}": of[None].astype(np.float32) for s, of in enumerate(x)})
    ensemble, fold = fit_ensemble(MassMean(), on), grouped_folds(data, 5)
    seen, new = np.empty((2, 120, 3))
    for s, of in enumerate(x.astype(np.float32).astype(np.float64)):
        for number in (-1, *range(5)):
            rows = fold != number
            means = [of[rows & (y == k)].mean(axis=0) for k in (0, 1)]
            scores = (of - (means[0] + means[1]) / 2) @ (means[1] - means[0])
            if number < 0:
                new[:, s] = scores
            else:
                seen[~rows, s] = scores[~rows]
    z = lambda of: (of - seen.mean(axis=0)) / seen.std(axis=0)
    theirs = linear_model.LogisticRegression(tol=1e-10).fit(z(seen), y)
    np.testing.assert_allclose(ensemble.scores(on).values, theirs.decision_function(z(new)), atol=2e-3)
