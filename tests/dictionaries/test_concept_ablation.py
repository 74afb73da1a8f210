"""TPP and SCR where it is known which latent carries which attribute."""

import jax.numpy as jnp
import numpy as np
import pytest
from world_texts import codes, compared, oracle, place, texts, world

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.evaluation.benchmarks.concept_ablation import (
    SCR_WARNING,
    TPP_WARNING,
    PooledTexts,
    measures,
    pooled_texts,
    scr,
    tpp,
)
from jax_interp.dictionaries.evaluation.benchmarks.measure import DICTIONARY

RNG = np.random.default_rng(0)
N = 240


def given(features: np.ndarray, d: int = 8):
    """Texts whose activations are their features in orthonormal directions, beside those of a mixed dictionary.

    The latents of "mixed" are sums of two features, so an ablation always removes two.
    """
    W = np.linalg.qr(RNG.normal(size=(d, d)))[0][: features.shape[1]].astype(np.float32)
    x = (features @ W).astype(np.float32)
    pairs = np.kron(np.eye(features.shape[1] // 2), np.ones((2, 2))).astype(np.float32)
    mixed = PooledTexts(x, (features @ pairs / 2).astype(np.float32), jnp.asarray(pairs @ W))
    of = {DICTIONARY: PooledTexts(x, features.astype(np.float32), jnp.asarray(W)), "mixed": mixed}
    return lambda name, reseed: of[name]


def test_the_true_features_change_only_their_own_probe():
    """Each class has one feature. Without it, the accuracy of probe i falls from 1 to 0.5, which is chance."""
    labels = np.arange(N) % 4
    features = np.eye(4)[labels] * RNG.uniform(0.9, 1.1, (N, 1))
    found = tpp(given(features), [DICTIONARY, "mixed"], labels, top=(1,), reseeds=2)
    np.testing.assert_allclose(found[DICTIONARY][1], 0.5, atol=0.02)
    assert max(found["mixed"][1]) < 0.4
    first = next(iter(measures("TPP", found, TPP_WARNING, "")))
    assert first.name == "TPP, top 1"
    assert "23 %" in first.warning


def test_the_spurious_feature_is_removed():
    """Two attributes, the spurious one three times as strong: the biased probe follows it, and its ablation frees it.
    Latents are signed, so 0 is in the middle of both classes."""
    target, spurious = RNG.random(N) < 0.5, RNG.random(N) < 0.5
    features = np.stack([target, spurious, RNG.random(N) < 0.5, RNG.random(N) < 0.5], axis=1) - 0.5
    features[:, 1] *= 3
    found = scr(given(features), [DICTIONARY, "mixed"], target, spurious, top=(1,), reseeds=2)
    np.testing.assert_allclose(found[DICTIONARY][1], 1.0, atol=0.05)
    assert max(found["mixed"][1]) < 0.5
    assert "-0.31 to -0.64" in next(iter(measures("SCR", found, SCR_WARNING, ""))).warning


def test_no_gap_no_score():
    """Where the activations know neither attribute, the fair probe is no better than the biased one: the score is 0."""
    target, spurious = RNG.random(N) < 0.5, RNG.random(N) < 0.5
    features = np.zeros((N, 4))  # nothing is known: biased and fair probes are at chance
    assert scr(given(features), [DICTIONARY], target, spurious, top=(1,), reseeds=1) == {DICTIONARY: {1: [0.0]}}


def test_the_ablation_of_means_is_the_mean_of_ablations():
    """On a world that reads texts: pooled x minus pooled z d is what ablating at each token gives."""
    W = world()
    samples, tokens = texts(4, 3)
    of = pooled_texts(place(W), compared(W, reseeds=1), samples)(DICTIONARY, 0)
    x = place(W).model(jnp.asarray(tokens))
    z = oracle(W).encode(x)
    error = x - oracle(W).decode(z)
    each = jnp.mean(oracle(W).decode(z.at[..., 2].set(0.0)) + error, axis=1)
    np.testing.assert_allclose(of.x - of.z[:, [2]] @ np.asarray(of.directions[jnp.asarray([2])]), each, atol=1e-5)
    assert codes(W, 12).shape == (12, 20)


def test_too_few_texts_are_refused():
    features = np.zeros((N, 2))
    with pytest.raises(UserError, match="two or more classes"):
        tpp(given(features), [DICTIONARY], np.zeros(N, int))
    with pytest.raises(UserError, match=r"at least 10 texts of each of four.*\[\d+, 0"):
        scr(given(features), [DICTIONARY], np.arange(N) % 2 == 0, np.zeros(N, bool))
