"""k-sparse probes: the right columns, from training rows only, and on the latents of a dictionary in a model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import toy

from jax_interp import UserError
from jax_interp.dictionaries.activations import TopK
from jax_interp.dictionaries.forms import init_sae
from jax_interp.probes import KSparse, LabelledTokens, Last, Logistic, fit_probes, from_activations, gather
from jax_interp.surgery import Splice, at, edit


def planted(n: int = 300, d: int = 20):
    """Columns 3 and 7 hold the label; column 7 is small, column 11 is large and holds nothing."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, n)
    x = rng.normal(size=(n, d))
    x[:, 3] += 1.5 * y
    x[:, 7] = 0.01 * (x[:, 7] + 6 * y)
    x[:, 11] *= 30
    return x.astype(np.float32), y


@pytest.mark.parametrize(("choose", "columns"), [("mean_difference", {3, 11}), ("logistic", {3, 7})])
def test_the_chosen_columns_and_the_fit_on_them(choose, columns):
    """The largest mean difference is that of the largest column; the largest standardised weight finds the label."""
    x, y = planted()
    vectors = from_activations(x, y)
    probe = fit_probes(KSparse(2, choose, C=(1e4,)), vectors).probe()
    found = set(np.flatnonzero(np.asarray(probe.weight)).tolist())
    assert found == columns
    chosen = sorted(columns)
    alone = fit_probes(Logistic(C=(1e4,)), from_activations(x[:, chosen], y)).probe()
    np.testing.assert_allclose(probe.weight[jnp.asarray(chosen)], alone.weight, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(probe.bias, alone.bias, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("choose", ["mean_difference", pytest.param("logistic", marks=pytest.mark.slow)])
def test_test_rows_do_not_choose_columns(choose):
    x, y = planted()
    train = np.arange(len(y)) < 200
    x[~train, 15] += 1000 * y[~train]
    probe = fit_probes(KSparse(2, choose), from_activations(x, y), train=train).probe()
    assert probe.weight[15] == 0
    assert np.count_nonzero(probe.weight) == 2


def test_latents_of_a_dictionary_in_a_model():
    """`gather` reads the latents of a spliced dictionary, and the probe is 0 at all but k of them."""
    model, sae = toy(), init_sae(jax.random.key(1), 16, 48, TopK(6), jnp.zeros(16))
    tokens = np.asarray(jax.random.randint(jax.random.key(2), (60, 5), 2, 40))
    mask, labels = np.ones(tokens.shape, bool), (tokens[:, -1] < 20).astype(np.int32)
    data = LabelledTokens("words", tokens, mask, mask, labels, ("high", "low"))
    spliced = edit(model, at("blocks.1.resid_post", Splice(sae, error=True)))
    vectors = gather(spliced, data, "blocks.1.resid_post.latents", Last())
    x = vectors.values["blocks.1.resid_post.latents"][0]
    assert ((x != 0).sum(axis=1) <= 6).all()
    fitted = fit_probes(KSparse(8), vectors)
    weight = np.asarray(fitted.probe().weight)
    assert weight.shape == (48,)
    assert np.count_nonzero(weight) <= 8
    best = np.argsort(-np.abs(x[labels == 1].mean(0) - x[labels == 0].mean(0)))[:8]
    assert set(np.flatnonzero(weight)) <= set(best.tolist())
    right = (np.asarray(fitted.scores(vectors).values).ravel() > 0) == (labels == 1)
    assert right.mean() > max(labels.mean(), 1 - labels.mean()) + 0.05


def test_more_columns_than_there_are_is_refused():
    x, y = planted()
    with pytest.raises(UserError, match="at least as many columns"):
        fit_probes(KSparse(21), from_activations(x, y))
    with pytest.raises(UserError, match="at least 1"):
        KSparse(0)
