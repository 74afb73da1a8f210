"""Interventions on features against edits of the model that are written out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.circuits.attribution_graphs import Change, Error, Feature, Token, changed_model, intervene
from jax_interp.circuits.attribution_graphs.clean_run import clean_run
from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations import ReLU
from jax_interp.models.generation.generate import generate
from jax_interp.surgery import Add, Each, Freeze, at, call, edit, read
from tests.circuits.attribution_graphs.graph_models import TOKENS, WRITES, local_model


@pytest.fixture(scope="module")
def local():
    return local_model(ReLU(), window=3)


def by_hand(local, layer, pos, feature, value):
    """What holding a feature adds to each MLP output: nothing upstream of the feature changes, so it is a constant."""
    active = clean_run(local, TOKENS).active
    here = (active.layer == layer) & (active.pos == pos) & (active.feature == feature)
    z = float(active.activation[here].sum())
    W_dec = local.dictionary.sources[layer].W_dec[feature]
    return [at(WRITES[layer + j], Add((value - z) * W_dec[j]), pos=pos) for j in range(len(W_dec))]


@pytest.mark.parametrize("how", ["free", "frozen attention"])
def test_a_held_feature_is_its_decoders_added(local, how):
    edits = by_hand(local, 1, 4, 3, 5.0)
    if how == "frozen attention":
        _, acts = call(read(local.model, "blocks.*.attn.pattern"), TOKENS[None])
        edits.append(at("blocks.*.attn.pattern", Each(Freeze(acts["blocks.*.attn.pattern"]))))
    effect = intervene(local, TOKENS, [Change(Feature(1, 4, 3), value=5.0)], how=how)
    expected = call(edit(local.model, *edits), TOKENS[None])[0, -1]
    np.testing.assert_allclose(effect.logits, expected, atol=2e-5)
    assert abs(effect.logits - effect.clean_logits).max() > 0.01
    if how == "free":
        held = changed_model(local, [Change(Feature(1, 4, 3), value=5.0)])
        np.testing.assert_allclose(call(held, TOKENS[None])[0, -1], expected, atol=2e-5)


def test_generation_with_a_held_feature_is_that_of_whole_forward_passes(local):
    steered = changed_model(local, [Change(Feature(0, 0, 3), value=8.0)], everywhere=True)
    found = generate(steered, jnp.asarray(TOKENS)[None], 4)
    tokens = jnp.asarray(TOKENS)[None]
    for _ in range(4):
        tokens = jnp.concatenate([tokens, jnp.argmax(call(steered, tokens)[:, -1:], -1).astype(tokens.dtype)], axis=1)
    new = np.asarray(jax.tree.leaves(found)[0])[0]
    np.testing.assert_array_equal(new[-4:], tokens[0, -4:])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([Change(Feature(7, 0, 0), value=1.0)], "does not exist"),
        ([Change(Feature(0, 9, 0), value=1.0)], "does not exist"),
        ([Change(Feature(0, 0, 99), value=1.0)], "does not exist"),
        ([Change(Error(0, -1), factor=0.0)], "does not exist"),
        ([Change(Token(1), factor=0.0), Change(Token(1), factor=2.0)], "changed twice"),
    ],
)
def test_a_node_that_does_not_exist_is_refused(local, changes, said):
    with pytest.raises(UserError, match=said):
        intervene(local, TOKENS, changes)


def test_a_change_is_a_value_or_a_factor():
    for wrong in ({}, {"value": 1.0, "factor": 1.0}, {"value": float("nan")}):
        with pytest.raises(UserError):
            Change(Feature(0, 0, 0), **wrong)
    with pytest.raises(UserError, match="no activation"):
        Change(Token(0), value=1.0)
