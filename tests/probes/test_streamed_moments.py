"""Moments of a stream: float64 sums of many batches, probes that equal those of kept activations, exact resume."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp import UserError
from jax_interp.core.leaves import flatten
from jax_interp.probes import (
    LDA,
    PCA,
    All,
    LabelledTokens,
    LinearRegression,
    MassMean,
    Ridge,
    RidgeClassifier,
    Vectors,
    fit_probes,
    from_tokens,
    gather_tokens,
)
from jax_interp.probes.erasure.moments import moments_of
from jax_interp.probes.rows_of_moments import rows_of
from jax_interp.probes.streamed_moments import RunningMoments, stream_moments, used_and_columns
from jax_interp.probes.token_streams import TokenStream, stream_of
from jax_interp.training import Log, NonFinite, SaveTo
from tests.toy import toy

SITES = ("blocks.0.resid_post", "blocks.2.resid_post")
KINDS = {
    "mass-mean": MassMean(),
    "mass-mean with a covariance": MassMean(covariance=True),
    "LDA": LDA(shrinkage=(0.1, 0.5)),
    "PCA": PCA(),
    "ridge": RidgeClassifier(),
}


@functools.cache
def setting():
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 40, (60, 12))
    tokens[:, 0] = 0
    data = from_tokens(tokens, label=lambda t: t % 3 == 0, special_ids=[0])
    return toy(), data


@functools.cache
def streamed():
    model, data = setting()
    return stream_moments(model, SITES, stream_of(data, batch=7))


@functools.cache
def kept() -> Vectors:
    """Each token as an example."""
    model, data = setting()
    sequences, labels = gather_tokens(model, data, SITES, batch=60), data.token_labels
    assert labels is not None
    real = np.ones((int(data.readable.sum()), 1), bool)
    rows = LabelledTokens("tokens", real.astype(np.int32), real, real, labels[data.readable], data.classes)
    return Vectors(rows, (All(),), {site: x[data.readable][None] for site, x in sequences.values.items()})


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def test_sums_of_many_batches_are_those_of_float64():
    """A mean 3000 times as long as the spread, and 1500 batches: float32 sums of squares would have no digit left."""
    rng, d, batches = np.random.default_rng(0), 5, 1500
    mixing = rng.normal(size=(d, d))
    add = jax.jit(RunningMoments.add)
    running, rows, labels = RunningMoments.empty(d, 1), [], []
    for i in range(batches):
        y = rng.integers(0, 2, 16)
        x = (3000 + rng.normal(size=(16, d)) @ mixing + y[:, None] * 0.3).astype(np.float32)
        used, z = used_and_columns(jnp.asarray(np.where(np.arange(16) < 15, y, -1)), 2)
        x[15] = np.nan if i % 2 else 0  # not used
        running = add(running, jnp.asarray(x), z, used)
        rows.append(x[:15].astype(np.float64))
        labels.append(y[:15])
    x, y = np.concatenate(rows), np.concatenate(labels)
    found = jax.device_get(running.whole())
    centred = x - x.mean(axis=0)
    assert found.n == len(x)
    assert relative(found.xx, centred.T @ centred) < 3e-6
    np.testing.assert_allclose(found.mean_z, [y.mean()], rtol=1e-5)
    difference = x[y == 1].mean(axis=0) - x[y == 0].mean(axis=0)
    share = y.mean()
    assert relative(found.xz[:, 0] / (len(y) * share * (1 - share)), difference) < 1e-3
    np.testing.assert_allclose(found.mean_x, x.mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_probes_of_a_stream_are_those_of_kept_activations(name):
    kind, vectors = KINDS[name], kept()
    own, other = fit_probes(kind, vectors), streamed().fit(kind)
    assert streamed().rows == len(vectors.data)
    assert other.axes == own.axes
    scores, expected = other.scores(vectors).values, own.scores(vectors).values
    np.testing.assert_allclose(scores, expected, atol=2e-3 * expected.std())
    for found, wanted in zip(jax.tree.leaves(other.probes), jax.tree.leaves(own.probes), strict=True):
        assert found.shape == wanted.shape


@pytest.mark.parametrize("kind", [Ridge(alpha=(1.0, 100.0)), LinearRegression()], ids=["ridge", "least squares"])
def test_a_regression_of_a_stream_is_that_of_kept_activations(kind):
    model, data = setting()
    target = lambda step: np.where(data.readable, data.tokens / 10, np.nan)[10 * step : 10 * step + 10]
    stream = TokenStream(
        lambda step: (data.tokens[10 * step : 10 * step + 10], None, target(step).astype(np.float32)), 6, ()
    )
    found = stream_moments(model, SITES, stream).fit(kind)
    rows = dataclasses.replace(
        kept().data, labels=(data.tokens[data.readable] / 10).astype(np.float32), classes=()
    )  # fmt: skip
    vectors = dataclasses.replace(kept(), data=rows)
    expected = fit_probes(kind, vectors).scores(vectors).values
    np.testing.assert_allclose(found.scores(vectors).values, expected, atol=1e-3 * expected.std())


@pytest.mark.parametrize("seed", [0, 1])
def test_rows_of_moments_have_these_moments(seed):
    rng, d, classes = np.random.default_rng(seed), 7, ("a", "b", "c")
    y = rng.choice(3, 90, p=[0.2, 0.5, 0.3])
    x = rng.normal(size=(90, d)) @ rng.normal(size=(d, d)) + 3 * np.eye(3, d)[y] + 5
    z = (y[:, None] == np.arange(1, 3)[None, :]).astype(np.float32)
    vectors, weight = rows_of("x", jax.device_get(moments_of(jnp.asarray(x, jnp.float32), jnp.asarray(z))), classes, 3)
    rows, labels = vectors.values["x"][0].astype(np.float64), vectors.data.labels
    np.testing.assert_allclose(np.bincount(labels, weight), np.bincount(y), rtol=1e-5)
    for c in range(3):
        mean = np.average(rows[labels == c], axis=0, weights=weight[labels == c])
        np.testing.assert_allclose(mean, x[y == c].mean(axis=0), rtol=1e-4, atol=1e-4)
    centred = rows - np.average(rows, axis=0, weights=weight)
    expected = (x - x.mean(axis=0)).T @ (x - x.mean(axis=0))
    assert relative((centred.T * weight) @ centred, expected) < 1e-5


def test_a_kind_that_needs_more_than_moments_is_refused():
    with pytest.raises(UserError, match="LDA does not follow from the means and the covariance"):
        streamed().fit(LDA())  # its shrinkage depends on fourth moments


class Stopped(Exception):
    pass


def test_a_killed_stream_goes_on_with_the_same_bits(tmp_path):
    model, data = setting()
    stream = stream_of(data, batch=7)

    def stop(record):
        if record["step"] == 4:
            raise Stopped

    with pytest.raises(Stopped):
        stream_moments(
            model, SITES, stream, run=SaveTo(tmp_path, every=2), log=Log(every=1, on_record=stop, quiet=True)
        )
    steps: list[int] = []
    log = Log(every=1, on_record=lambda record: steps.append(record["step"]), quiet=True)
    found = stream_moments(model, SITES, stream, run=SaveTo(tmp_path, every=2), log=log)
    assert steps[0] > 1
    alone = flatten(dict(streamed().of))
    for name, leaf in flatten(dict(found.of)).items():
        np.testing.assert_array_equal(leaf, alone[name])
    with pytest.raises(UserError, match="holds a run of another config"):
        stream_moments(model, SITES, stream_of(data, batch=7, seed=1), run=tmp_path)


@pytest.mark.parametrize(
    ("batch", "classes", "message"),
    [
        ((np.full((2, 4), 3), None, np.full((2, 4), -1)), ("a", "b"), "no token of the stream has a label"),
        ((np.full((2, 4), 3), None, np.zeros((2, 4), int)), ("a", "b"), "has the class 'b'"),
        ((np.full((2, 4), 3), None, np.zeros((2, 4))), ("a", "b"), "give numbers of classes"),
        ((np.full((2, 4), 3), None, np.zeros((2, 4), int)), (), "give real numbers"),
        ((np.full((2, 4), 3), None, np.zeros((2, 3), int)), ("a", "b"), "labels of a batch have shape"),
        ((np.full((2, 4), 3), np.ones((2, 4), bool), np.zeros((2, 4), int)), ("a", "b"), "takes no mask"),
    ],
)
def test_a_stream_that_does_not_fit_is_refused(batch, classes, message):
    with pytest.raises(UserError, match=message):
        stream_moments(toy(), SITES, TokenStream(lambda i: batch, 1, classes))


def test_a_number_that_names_no_class_stops_the_stream():
    batch = (np.full((2, 4), 3), None, np.full((2, 4), 2))
    with pytest.raises(NonFinite):
        stream_moments(toy(), SITES, TokenStream(lambda i: batch, 1, ("a", "b")))
