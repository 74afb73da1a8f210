"""Limits, files and refusals of attribution graphs."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.circuits.attribution_graphs import Limits, attribution_graph, intervene, scaled
from jax_interp.circuits.attribution_graphs.saving import load_attribution_graph, save_attribution_graph
from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations import AbsTopK, ReLU
from jax_interp.dictionaries.forms.cross_layer import CrossLayer
from jax_interp.dictionaries.replacement import replacement
from tests.circuits.attribution_graphs.graph_models import READS, TOKENS, WRITES, local_model

LIMITS = Limits(batch=16, programs=1)


@pytest.fixture(scope="module")
def local():
    return local_model(ReLU())


@pytest.fixture(scope="module")
def whole(local):
    return attribution_graph(local, TOKENS, LIMITS)


def test_the_bias_is_what_a_target_has_without_any_source(local, whole):
    assert (whole.activation > 0).all()
    np.testing.assert_allclose(whole.values[: whole.n_features], whole.activation)
    assert_biases(local, whole)


def assert_biases(local, graph):
    """Without features, errors and tokens, each target has its bias."""
    before, after = intervene(local, TOKENS, scaled(graph.sources, 0.0)).on(graph.targets)
    np.testing.assert_allclose(before, graph.values, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(after, graph.biases, rtol=1e-4, atol=1e-4)


def test_a_limited_graph_is_a_part_of_the_whole(local, whole):
    part = attribution_graph(local, TOKENS, dataclasses.replace(LIMITS, max_features=20, update=1))
    assert part.n_features == 20
    rows = np.r_[part.selected, np.arange(whole.n_features, len(whole.weights))]
    columns = np.r_[part.selected, np.arange(whole.n_features, whole.weights.shape[1])]
    np.testing.assert_allclose(part.weights, whole.weights[rows[:, None], columns], atol=1e-6)
    np.testing.assert_allclose(part.biases, whole.biases[rows], atol=1e-5)


def test_a_graph_that_is_ended_early_has_the_finished_features(local, whole, tmp_path):
    seen = []

    def stop(done, total):
        seen.append((done, total))
        return done >= 32

    part = attribution_graph(local, TOKENS, LIMITS, progress=stop, spill=tmp_path / "rows.npy")
    assert part.n_features == seen[-1][0] == 32
    assert seen[-1][1] == whole.n_features
    rows = np.r_[part.selected, np.arange(whole.n_features, len(whole.weights))]
    np.testing.assert_allclose(part.weights[:, 32:], whole.weights[rows, whole.n_features :], atol=1e-6)
    with pytest.raises(UserError, match="exists"):
        attribution_graph(local, TOKENS, LIMITS, spill=tmp_path / "rows.npy")


@pytest.mark.slow
def test_positions_without_nodes_have_no_features_and_errors(local, whole):
    graph = attribution_graph(local, TOKENS, dataclasses.replace(LIMITS, without_nodes=(0, 2)))
    assert not np.isin(graph.active.pos, (0, 2)).any()
    errors = graph.weights[:, graph.error_nodes].reshape(len(graph.weights), -1, len(TOKENS))
    assert not errors[:, :, [0, 2]].any()
    kept = np.flatnonzero(~np.isin(whole.active.pos, (0, 2)))
    np.testing.assert_allclose(graph.weights[: len(kept), : len(kept)], whole.weights[np.ix_(kept, kept)], atol=1e-6)


def test_given_logits_are_the_nodes(local, whole):
    graph = attribution_graph(local, TOKENS, dataclasses.replace(LIMITS, max_features=1), logits=[5, 0])
    assert graph.logit_tokens.tolist() == [5, 0]
    p = jax.nn.softmax(local.model(jnp.asarray(TOKENS)[None])[0, -1])
    np.testing.assert_allclose(graph.logit_probabilities, p[jnp.array([5, 0])], rtol=1e-5)
    first = np.argmax(np.asarray(p))
    assert whole.logit_tokens[0] == first
    assert np.cumsum(whole.logit_probabilities)[-1] >= 0.95 or len(whole.logit_tokens) == 10


@pytest.mark.slow
def test_bfloat16_models_have_nearly_the_edges_of_float32():
    wide = local_model(ReLU())
    half = dataclasses.replace(wide, model=jax.tree.map(lambda w: w.astype(jnp.bfloat16), wide.model))
    exact = dataclasses.replace(wide, model=jax.tree.map(lambda w: w.astype(jnp.float32), half.model))
    a, b = (attribution_graph(one, TOKENS, LIMITS) for one in (half, exact))
    assert a.weights.dtype == np.float32
    both = {(s, t): a.edge(s, t) - b.edge(s, t) for s in a.sources[::7] for t in a.targets if shared(b, s, t)}
    assert len(both) > 500
    assert max(abs(d) for d in both.values()) < 0.03 * np.abs(b.weights).max()


def shared(graph, *nodes):
    try:
        return all(graph.number(node) >= 0 for node in nodes)
    except UserError:
        return False


def test_a_graph_is_saved_and_loaded(whole, tmp_path):
    named = whole.with_texts([f"t{i}" for i in TOKENS], [f"<b>{i}" for i in whole.logit_tokens])
    found = load_attribution_graph(save_attribution_graph(tmp_path, named))
    np.testing.assert_array_equal(found.weights, whole.weights)
    np.testing.assert_array_equal(found.active.activation, whole.active.activation)
    assert (found.texts, found.logit_texts, found.n_layers) == (named.texts, named.logit_texts, whole.n_layers)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": TOKENS[None]}, "one prompt"),
        ({"tokens": np.array([], np.int32)}, "one prompt"),
        ({"limits": Limits(without_nodes=(9,))}, "position 9"),
        ({"logits": [999]}, "token ids"),
        ({"logits": []}, "token ids"),
    ],
)
def test_wrong_requests_are_refused(local, change, said):
    with pytest.raises(UserError, match=said):
        attribution_graph(**({"local": local, "tokens": TOKENS, "limits": LIMITS} | change))


def test_dictionaries_that_are_no_transcoders_of_all_mlps_are_refused(local):
    two = CrossLayer(local.dictionary.sources[:2], local.dictionary.b_dec[:2])
    with pytest.raises(UserError, match=r"blocks\.2\.mlp_out has no dictionary"):
        attribution_graph(replacement(local.model, READS[:2], WRITES[:2], two), TOKENS)
    for wrong in ({"batch": 0}, {"probability": 0.0}, {"max_features": 0}, {"max_logits": 0}):
        with pytest.raises(UserError):
            Limits(**wrong)


@pytest.mark.slow
def test_signed_activations_have_exact_edges_too():
    local = local_model(AbsTopK(4))
    graph = attribution_graph(local, TOKENS, LIMITS)
    assert (graph.activation < 0).any()
    assert_biases(local, graph)
