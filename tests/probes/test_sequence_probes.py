"""Probes that read sequences: their optima, what each one finds in planted texts, and what must not matter."""

from __future__ import annotations

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jax_interp import UserError
from jax_interp.probes import (
    Adam,
    All,
    Attention,
    AttentionProbe,
    Kind,
    LabelledTokens,
    LastToken,
    Max,
    Mean,
    MeanExcess,
    MultiMax,
    RollingMax,
    Sequences,
    SoftmaxMean,
    TokenProbe,
    best_threshold,
    fit_probes,
)
from jax_interp.probes.descent import LBFGS
from jax_interp.probes.measures import auroc

N, POS, D = 300, 20, 8
TRAIN = np.arange(N) < 200


@pytest.fixture(scope="module")
def texts() -> Sequences:
    """In each text of the positive class one token, anywhere, holds the concept."""
    rng = np.random.default_rng(0)
    y, length = rng.integers(0, 2, N), rng.integers(8, POS + 1, N)
    read = np.arange(POS)[None, :] < length[:, None]
    x, at = rng.normal(size=(N, POS, D)), rng.integers(0, length)
    x[np.arange(N), at, 0] += 5 * y
    token_labels = np.where(read, 0, -1)
    token_labels[np.arange(N), at] = y
    x = np.where(read[:, :, None], 3 * x + np.linspace(-40, 40, D), 0).astype(np.float32)
    tokens = np.zeros((N, POS), np.int32)
    data = LabelledTokens(
        "planted", tokens, read, read, y.astype(np.int32), ("no", "yes"), token_labels=token_labels
    )  # fmt: skip
    return Sequences(data, All(), read, {"x": x})


THROUGH_MEAN = TokenProbe(Mean(), C=(0.01, 1.0, 100.0))
THROUGH_MAX = TokenProbe(Max(), adam=Adam(passes=150))
HEADS = AttentionProbe(heads=2, hidden=3, adam=Adam(passes=30))
ON_TOKENS = TokenProbe(Max(), train_on="tokens", class_weight="balanced")


@pytest.fixture(scope="module")
def fitted(texts):
    """Kinds fitted on the training part, each once."""

    @functools.cache
    def fit(kind: Kind):
        return fit_probes(kind, texts, train=TRAIN, seeds=(0, 1) if kind == HEADS else (0,))

    return fit


def held_out(fitted, texts: Sequences) -> float:
    scores = np.asarray(fitted.scores(texts).values).reshape(-1, N)
    return float(np.min(auroc(scores[:, ~TRAIN], texts.data.labels[~TRAIN] == 1)))


def standardised(texts: Sequences) -> np.ndarray:
    """Activations standardised on the training tokens, in float64."""
    x = texts.values["x"].astype(np.float64)
    tokens = x[TRAIN][texts.read[TRAIN]]
    return np.where(texts.read[:, :, None], (x - tokens.mean(axis=0)) / tokens.std(axis=0), 0)


def optimum(x: np.ndarray, y: np.ndarray, weight: np.ndarray, C: float) -> np.ndarray:
    """(w, b) of C Σ v log(1 + exp(∓(x·w + b))) + ½‖w‖² in float64, by Newton's method."""
    x, sign = np.c_[x, np.ones(len(x))], np.where(y == 1, 1.0, -1.0)
    ridge = np.r_[np.ones(x.shape[1] - 1), 0]
    p = lambda w: 1 / (1 + np.exp(sign * (x @ w)))
    loss = lambda w: C * weight @ np.logaddexp(0, -sign * (x @ w)) + ridge @ (w * w) / 2
    gradient = lambda w: -C * x.T @ (weight * sign * p(w)) + ridge * w
    curvature = lambda w: C * (x.T * (weight * p(w) * (1 - p(w)))) @ x + np.diag(ridge)
    found = scipy.optimize.minimize(
        loss, np.zeros(x.shape[1]), jac=gradient, hess=curvature, method="trust-exact", options={"gtol": 1e-9}
    )
    assert np.abs(gradient(found.x)).max() < 1e-6
    return found.x


def raw(w: np.ndarray, texts: Sequences) -> np.ndarray:
    """The weights for raw activations of weights for standardised ones."""
    return w[:-1] / texts.values["x"].astype(np.float64)[TRAIN][texts.read[TRAIN]].std(axis=0)


def test_through_the_mean_it_is_logistic_regression_on_the_means(texts, fitted):
    of_means = fitted(THROUGH_MEAN)
    means = standardised(texts).sum(axis=1) / texts.read.sum(axis=1, keepdims=True)
    for C in (0.01, 1.0, 100.0):
        w = optimum(means[TRAIN], texts.data.labels[TRAIN], np.ones(TRAIN.sum()), C)
        probe = of_means.probe(strength=C)
        np.testing.assert_allclose(probe.direction(), raw(w, texts), atol=1e-4 * np.abs(raw(w, texts)).max())
        scores = probe.score(texts.values["x"], texts.read)
        np.testing.assert_allclose(scores, means @ w[:-1] + w[-1], atol=1e-4 * np.abs(scores).max())


def test_trained_on_tokens_it_is_logistic_regression_on_tokens(texts, fitted):
    labels = texts.data.token_labels
    of = TRAIN[:, None] & (labels >= 0)
    x, y = standardised(texts)[of], labels[of]
    share = np.where(y == 1, 1 / (y == 1).mean(), 1 / (y == 0).mean()) / 2
    w, probe = optimum(x, y, share, 1.0), fitted(ON_TOKENS).probe()
    np.testing.assert_allclose(probe.direction(), raw(w, texts), atol=1e-4 * np.abs(raw(w, texts)).max())
    log_odds = standardised(texts) @ w[:-1] + w[-1]
    tokens = np.asarray(probe.token_scores(texts.values["x"]))[texts.read]
    np.testing.assert_allclose(tokens, log_odds[texts.read], atol=1e-4 * np.abs(tokens).max())
    scores = np.where(texts.read, log_odds, -np.inf).max(axis=1)
    np.testing.assert_allclose(probe.score(texts.values["x"], texts.read), scores, atol=1e-4 * np.abs(tokens).max())
    of = lambda t: balanced_accuracy(scores[TRAIN], texts.data.labels[TRAIN], np.ones(TRAIN.sum()), t)
    assert of(float(probe.threshold)) == pytest.approx(max(of(t) for t in scores[TRAIN]))


def test_one_token_of_a_text_is_found_by_what_looks_at_single_tokens(texts, fitted):
    """The mean dilutes it. The maximum does not, nor does a probe that was told which token it is."""
    mean, highest, told = (held_out(fitted(kind), texts) for kind in (THROUGH_MEAN, THROUGH_MAX, ON_TOKENS))
    assert mean < 0.93
    assert highest > mean + 0.03
    assert told > mean + 0.03


@pytest.mark.slow
def test_the_last_token_does_not_hold_it(texts, fitted):
    assert held_out(fitted(TokenProbe(LastToken())), texts) < 0.8


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        *(TokenProbe(a) for a in (Attention(), RollingMax(2), SoftmaxMean(), MultiMax(2))),
        TokenProbe(MultiMax(2), hidden=(8,)),
        TokenProbe(Max(), hidden=(8,), adam=Adam(passes=60, batch=50)),
        TokenProbe(Max(), hidden=(8,), train_on="tokens"),
        AttentionProbe(),
        AttentionProbe(heads=2, hidden=4),
    ],
    ids=repr,
)
def test_all_others_find_it_too(texts, kind):
    assert held_out(fit_probes(kind, texts, train=TRAIN, seeds=(0, 1)), texts) > 0.93


@pytest.mark.slow
def test_the_mean_excess_learns_its_level(texts, fitted):
    """It is never below the mean: a level under all readings makes it the mean."""
    excess = held_out(fitted(TokenProbe(MeanExcess())), texts)
    assert excess > held_out(fitted(THROUGH_MEAN), texts) - 0.01


def test_attention_is_the_equation(texts, fitted):
    """The fitted probe against its equation in float64, and its weights as probabilities."""
    one, other = (fitted(HEADS).probe(seed=seed) for seed in (0, 1))
    assert not np.allclose(one.value.weight, other.value.weight)
    same = fit_probes(HEADS, texts, train=TRAIN, seeds=(1,)).probe()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), same, other)
    as64 = lambda a: np.asarray(a, np.float64)
    for text in (0, 1, 2):
        x = as64(texts.values["x"][text][texts.read[text]])
        q = x @ as64(one.query.weight) + as64(one.position)[None, :] * np.arange(len(x))[:, None]
        p = np.exp(q - q.max(axis=0))
        p /= p.sum(axis=0)
        o = (p.T @ x).ravel() @ as64(one.value.weight) + as64(one.value.bias)
        score = np.maximum(o, 0) @ as64(one.out.weight)[:, 0] + as64(one.out.bias)[0]
        np.testing.assert_allclose(one.score(texts.values["x"][text], texts.read[text]), score, rtol=1e-3, atol=1e-3)
        weights = np.asarray(one.attention(texts.values["x"][text], texts.read[text]))
        np.testing.assert_allclose(weights[:, texts.read[text]], p.T, atol=1e-3)
        assert not weights[:, ~texts.read[text]].any()


@pytest.mark.parametrize(
    "kind",
    [TokenProbe(Max(), hidden=(4,)), pytest.param(AttentionProbe(heads=2), marks=pytest.mark.slow)],
    ids=["hidden", "heads"],
)
def test_pieces_change_the_memory_and_not_the_probe(texts, kind):
    kind = dataclasses.replace(kind, adam=Adam(passes=20))
    whole, pieces = (
        fit_probes(dataclasses.replace(kind, at_once=at_once), texts, train=TRAIN).scores(texts).values
        for at_once in (None, 70)
    )
    np.testing.assert_allclose(pieces, whole, atol=2e-3 * np.abs(whole).max())


def test_the_score_of_a_token_is_that_of_a_text_of_this_token(texts, fitted):
    for probe in (fitted(THROUGH_MAX).probe(), fitted(HEADS).probe(seed=0)):
        x = jnp.asarray(texts.values["x"][:3])
        np.testing.assert_allclose(probe.token_scores(x)[1, 4], probe.score(x[1, 4:5]), rtol=1e-4, atol=1e-4)
        assert np.isnan(probe.score(x[0], jnp.zeros(POS, bool)))
        spoilt = jnp.where(texts.read[:3, :, None], x, jnp.nan)
        np.testing.assert_allclose(probe.score(spoilt, texts.read[:3]), probe.score(x, texts.read[:3]), rtol=1e-5)


def test_what_does_not_fit_is_refused(texts):
    on_tokens = TokenProbe(train_on="tokens")
    without = dataclasses.replace(texts, data=dataclasses.replace(texts.data, token_labels=None))
    with pytest.raises(UserError, match="has no labels of tokens"):
        fit_probes(on_tokens, without)
    with pytest.raises(UserError, match="those of examples"):
        fit_probes(on_tokens, texts, labels={"shuffled": texts.data.labels[::-1]})
    one = dataclasses.replace(texts.data, token_labels=np.minimum(texts.data.token_labels, 0))
    with pytest.raises(UserError, match="there must be 0 and 1"):
        fit_probes(on_tokens, dataclasses.replace(texts, data=one))
    with pytest.raises(UserError, match="train on examples"):
        TokenProbe(Attention(), train_on="tokens")
    for build in (lambda: TokenProbe(C=(0.0,)), lambda: TokenProbe(hidden=(0,)), lambda: TokenProbe(at_once=0)):
        with pytest.raises(UserError, match="must be"):
            build()
    probe = fit_probes(TokenProbe(MultiMax(2), adam=Adam(passes=1)), texts).probe()
    with pytest.raises(UserError, match="no single direction"):
        probe.direction()


def test_descents():
    """L-BFGS solves a quadratic; Adam never returns worse than its best step, under vmap too."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(6, 6))
    matrix, target = jnp.asarray(a @ a.T + np.eye(6), jnp.float32), jnp.asarray(rng.normal(size=6), jnp.float32)
    quadratic = lambda w: 0.5 * w @ matrix @ w - target @ w
    found = jax.jit(lambda: LBFGS().minimise(quadratic, jnp.zeros(6)))()
    np.testing.assert_allclose(found, np.linalg.solve(np.asarray(matrix, np.float64), target), atol=1e-4)
    rows = jnp.asarray(rng.normal(size=(40, 3)), jnp.float32)
    spread = lambda m, rows: jnp.mean(jnp.square(rows - m[None, :]))
    for batch in (None, 8):
        adam = Adam(passes=200, learning_rate=0.3, batch=batch)
        keys = jax.random.split(jax.random.key(0), 2)
        means = jax.jit(jax.vmap(partial(adam.minimise, spread, jnp.zeros(3), rows)))(keys)
        np.testing.assert_allclose(means, np.broadcast_to(rows.mean(axis=0), (2, 3)), atol=0.03)
    wild = Adam(passes=5, learning_rate=1e6).minimise(spread, rows.mean(axis=0), rows, jax.random.key(0))
    np.testing.assert_array_equal(wild, rows.mean(axis=0))


def test_the_threshold_is_the_best_one():
    rng = np.random.default_rng(0)
    n, best = 12, jax.jit(best_threshold)
    for _ in range(30):
        scores = np.round(rng.normal(size=n), 1).astype(np.float32)
        y, weight = rng.integers(0, 2, n), rng.integers(0, 3, n).astype(np.float32)
        y[:2], weight[:2] = (0, 1), 1
        found = float(best(scores, y == 1, weight))
        inner = scores[weight > 0]
        cuts = [t for t in np.unique(scores) if inner.min() <= t < inner.max()] or [inner.min()]
        assert balanced_accuracy(scores, y, weight, found) == pytest.approx(
            max(balanced_accuracy(scores, y, weight, t) for t in cuts)
        )


def balanced_accuracy(scores: np.ndarray, y: np.ndarray, weight: np.ndarray, threshold: float) -> float:
    right = (scores > threshold) == y
    return float(np.mean([np.average(right[y == k], weights=weight[y == k]) for k in (0, 1)]))
