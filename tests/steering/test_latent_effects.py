"""Effects of latents against one run for each latent, and a concept that one latent reads and another one writes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.dictionaries import ReLU, TopK, init_sae
from jax_interp.dictionaries.forms import Dictionary, Normalised
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.steering.features import (
    gradient_effects,
    input_scores,
    means_by_group,
    measured_effects,
    output_scores,
    rank_features,
    steer_features,
    target_texts,
)
from jax_interp.surgery import call, edit, read
from tests.small_models import GPT2_LIKE, peaky
from tests.toy import toy

ADDRESS, D, M = "blocks.1.resid_post", GPT2_LIKE.d_model, 24
TARGETS = target_texts([[1, 2, 3], [4, 5], [6, 7, 8, 9]], [[10], [11, 12], [13]], ["a", "b", "a"])


@pytest.fixture(scope="module")
def model():
    return peaky(GPT2_LIKE)


def sae(activation=None) -> Dictionary:
    key = jax.random.key(0)
    made = init_sae(key, D, M, (activation or ReLU()).init(M, jnp.float32))
    return dataclasses.replace(made, b_enc=0.1 * jax.random.normal(key, (M,)))


def likelihoods(model) -> np.ndarray:
    """The mean log-probability of each continuation, in NumPy and float64."""
    logits = np.asarray(call(model, TARGETS.tokens), np.float64)[:, :-1]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return (np.take_along_axis(log_p, TARGETS.tokens[:, 1:, None], axis=-1)[..., 0] * TARGETS.weight[:, 1:]).sum(-1)


@pytest.mark.parametrize("how", ["add", pytest.param("clamp", marks=pytest.mark.slow)])
def test_measured_effects_are_those_of_one_run_for_each_latent(model, how):
    steering = steer_features(sae(), ADDRESS, [3, 8, 20], np.array([1.0, 3.0, 2.0], np.float32), how)
    found = measured_effects(model, steering, TARGETS, 1.5, batch=2 if how == "add" else 3, at_once=2)
    each = [steer_features(sae(), ADDRESS, i, a, how) for i, a in ((3, 1.0), (8, 3.0), (20, 2.0))]
    want = np.stack([likelihoods(edit(model, *one.edits(1.5))) for one in each], axis=1) - likelihoods(model)[:, None]
    np.testing.assert_allclose(found.values, want, atol=1e-4)
    assert found.axes == {"text": (0, 1, 2), "feature": (3, 8, 20)}
    groups = means_by_group(found, TARGETS)
    np.testing.assert_allclose(groups.values, [(want[0] + want[2]) / 2, want[1]], atol=1e-4)


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("clamp", "at_least", "normalised")]


@pytest.mark.parametrize("kind", ["add", *SLOW])
def test_the_first_order_is_the_slope_of_the_measured_effect(model, kind):
    dictionary = Normalised(sae(), "layer_norm") if kind == "normalised" else sae(TopK(5) if kind == "clamp" else None)
    steering = steer_features(dictionary, ADDRESS, range(M), 1.0, "add" if kind == "normalised" else kind)  # type: ignore[arg-type]
    if kind in ("clamp", "at_least"):  # the change of a clamp is not small at small strengths: compare the parts
        found = gradient_effects(model, steering, TARGETS, 0.5, at_once=10).values
        more = gradient_effects(model, steering, TARGETS, 1.5, batch=2, at_once=10).values
        added = gradient_effects(model, steering.using("add"), TARGETS, 1.0).values
        never_on = np.abs(read_latents(model, dictionary)).max((0, 1)) == 0
        if kind == "clamp":
            np.testing.assert_allclose(more - found, added, atol=1e-4)
        np.testing.assert_allclose(found[:, never_on], 0.5 * added[:, never_on], atol=1e-4)
        assert np.abs(found - 0.5 * added).max() > 1e-3
        return
    eps = 2e-2
    found = gradient_effects(model, steering, TARGETS, eps, at_once=10).values
    up, down = (measured_effects(model, steering, TARGETS, s * eps).values for s in (1, -1))
    np.testing.assert_allclose(found, (up - down) / 2, atol=2e-4)
    assert np.abs(found).max() > 5e-3


def read_latents(model, dictionary) -> np.ndarray:
    return np.asarray(dictionary.encode(read(model, ADDRESS)(TARGETS.tokens)[1][ADDRESS]))


@pytest.mark.slow
def test_output_scores_are_those_of_one_run_for_each_latent(model):
    from jax_interp.analysis import W_U

    dictionary, prompts = sae(), [[1, 2, 3], [9, 8, 7]]
    found = output_scores(
        model, steer_features(dictionary, ADDRESS, range(M), 2.0), prompts, 1.5, n_promoted=4, at_once=7
    )
    norm = np.asarray(model.ln_final.weight[...])
    centred = np.asarray(dictionary.W_dec) - np.asarray(dictionary.W_dec).mean(-1, keepdims=True)
    promoted = np.argsort(-(centred * norm) @ np.asarray(W_U(model)), axis=1)[:, :4]
    assert [set(row) for row in found.tokens.tolist()] == [set(row) for row in promoted.tolist()]
    for p, prompt in enumerate(prompts):
        clean = np.asarray(jax.nn.log_softmax(call(model, np.asarray([prompt]))[0, -1]))
        for i in range(0, M, 6):
            steered = edit(model, *steer_features(dictionary, ADDRESS, i, 2.0).edits(1.5))
            log_p = np.asarray(jax.nn.log_softmax(call(steered, np.asarray([prompt]))[0, -1]))
            best = log_p[promoted[i]].max()
            want = (1 - (log_p > best).sum() / log_p.size) * np.exp(best)
            np.testing.assert_allclose(found.score[p, i], want, rtol=2e-3, atol=1e-6)
            np.testing.assert_allclose(found.rise[p, i], (log_p - clean)[promoted[i]].mean(), atol=1e-3)


def planted():
    """A toy in which latent 0 fires on the token 5 and writes nothing that counts, and latent 1 writes the token 7."""
    model = toy(d=16)
    key, address = jax.random.key(3), "blocks.2.resid_post"
    W_dec = jax.random.normal(key, (12, 16))
    W_dec /= jnp.linalg.norm(W_dec, axis=1, keepdims=True)
    seven = model.U[:, 7] - jnp.mean(model.U, axis=1)
    nothing = jnp.linalg.svd(model.U.T, full_matrices=True)[2][-1]  # what changes the logits least
    W_dec = W_dec.at[0].set(nothing).at[1].set(seven / jnp.linalg.norm(seven))
    tokens = np.random.default_rng(0).integers(8, 40, (30, 6)).astype(np.int32)
    labels = np.arange(30) % 2
    tokens[labels == 1, 3] = 5
    values = np.asarray(read(model, address)(tokens)[1][address])
    at_five = values[labels == 1, 3].mean(0) - values[labels == 0].mean((0, 1))
    W_enc = 0.1 * jax.random.normal(key, (16, 12))
    W_enc = W_enc.at[:, 0].set(at_five / np.linalg.norm(at_five))
    b_enc = jnp.zeros(12).at[0].set(-jnp.asarray(values[labels == 0] @ np.asarray(W_enc[:, 0])).max())
    sae = Dictionary(W_enc, b_enc, W_dec, jnp.zeros(16), ReLU())
    every = np.ones_like(tokens, bool)
    data = LabelledTokens("token 5", tokens, every, every, labels, ("other", "five"))
    return model, sae, address, data


def test_the_latent_that_writes_the_concept_wins_and_not_the_one_that_fires_on_it():
    model, dictionary, address, data = planted()
    steering = steer_features(dictionary, address, range(12), 4.0)
    auroc = input_scores(model, address, dictionary, data)
    assert int(np.argmax(auroc)) == 0
    assert auroc[0] > 0.95
    prompts, unembed = [[9, 10], [20, 21]], lambda directions: directions @ model.U
    scores = output_scores(model, steering, prompts, tokens=[7], unembed=unembed)
    assert scores.best(1) == scores.best(1, "rise") == [1]
    targets = target_texts([[9, 10], [12, 13], [30, 31], [33, 8]], [[7], [7], [7], [7]], ["a", "a", "b", "b"])
    ranked = rank_features(model, steering, targets, prompts, top=12, data=data, unembed=unembed)
    assert ranked.rows[0].feature == 1
    assert int(np.argmax(ranked.gradient.values.mean(0))) == 1
    first, reads = ranked.rows[0], next(row for row in ranked.rows if row.feature == 0)
    assert first.effect.low > 1 > abs(reads.effect.value)
    assert first.output_score > reads.output_score
    assert first.input_score < reads.input_score == pytest.approx(auroc[0])
    assert set(first.by_group) == {"a", "b"}
    assert "least group" in ranked.table()
    assert len(ranked.table().splitlines()) == 13


def test_what_cannot_be_scored_is_refused(model):
    steering = steer_features(sae(), ADDRESS, [0, 1])
    for wrong, message in (
        (lambda: target_texts([[1]], [[]]), "at least one token"),
        (lambda: target_texts([[1], [2]], [[3]]), "as many continuations"),
        (lambda: target_texts([[1]], [[3]], ["a", "b"]), "2 groups for 1"),
        (lambda: gradient_effects(model, steering.using("add", pos=1), TARGETS), "without pos="),
        (lambda: measured_effects(model, steering, TARGETS, np.inf), "not finite"),
        (lambda: output_scores(model, steering, []), "at least one prompt"),
        (lambda: output_scores(model, steering, [[1]], tokens=[999]), "ids from 0 to 60"),
        (lambda: rank_features(model, steering, TARGETS, [[1]], top=3), "2 latents to measure"),
    ):
        with pytest.raises(UserError, match=message):
            wrong()
