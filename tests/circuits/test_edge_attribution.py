"""Edge scores against gradients of a transformer that is written as a graph, and against the laws that they keep."""

from __future__ import annotations

import edge_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import GPT2_LIKE, LLAMA_LIKE, peaky

from jax_interp.circuits import Circuit, LogitDifference, baseline, circuit_metric, make_contrast, residual_graph
from jax_interp.circuits.edges import EAP, EAPIG, CleanCorrupted, IGActivations, edge_scores
from jax_interp.core.errors import UserError
from jax_interp.surgery import replan

CLEAN, CORRUPTED = np.random.default_rng(1).integers(0, 50, (2, 3, 6)).astype(np.int32)
PAIR = make_contrast(CLEAN, CORRUPTED, LogitDifference(3, 4))
METRIC = lambda logits: logits[:, -1, 3] - logits[:, -1, 4]


@pytest.fixture(scope="module")
def expected():
    """For each method, the score of each edge for each prompt, in float64, from the reference."""
    model = peaky(GPT2_LIKE)
    graph = residual_graph(model)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        w = reference.weights_of(model)
        own, other = (
            np.stack([reference.forward(w, tokens)[1][s] for s in graph.source_names]) for tokens in (CLEAN, CORRUPTED)
        )
        gradients = reference.input_gradients(w, CLEAN, graph, METRIC)
        none = np.zeros(len(own), bool)
        between = lambda fraction: fraction * own + (1 - fraction) * other
        given = lambda *sources: np.isin(np.arange(len(own)), sources)
        product = lambda gradient: np.einsum("sbpd,tbpd->bts", other - own, gradient)
        groups = [[0], *([*range(1 + 5 * i, 5 + 5 * i)] for i in range(3)), *([5 + 5 * i] for i in range(3))]
        of_group = {tuple(g): sum(gradients(between(k / 2), given(*g)) for k in (1, 2)) / 2 for g in groups}
        each = np.zeros((3, *graph.shape))
        for group, gradient in of_group.items():
            each[:, :, group] = product(gradient)[:, :, group]
        inputs = sum(gradients(between(k / 3), given(0)) for k in range(3)) / 3
        at_corrupted = reference.input_gradients(w, CORRUPTED, graph, METRIC)(own, none)
        found = {
            EAP(): product(gradients(own, none)),
            EAPIG(3): product(inputs),
            CleanCorrupted(): product((gradients(own, none) + at_corrupted) / 2),
            IGActivations(2): each,
            IGActivations(2, pooled=True): product(sum(of_group.values()) / len(groups)),
        }
        return {method: np.where(graph.exists, scores, 0) for method, scores in found.items()}


SLOW = [pytest.param(IGActivations(2, pooled=pooled), marks=pytest.mark.slow) for pooled in (False, True)]


@pytest.mark.parametrize("method", [EAP(), EAPIG(3), CleanCorrupted(), *SLOW])
def test_scores_are_differences_times_gradients(method, expected):
    scores = edge_scores(peaky(GPT2_LIKE), PAIR, method, prompts_at_once=2)
    np.testing.assert_allclose(scores.mean, expected[method].mean(0), atol=1e-5)
    np.testing.assert_allclose(scores.variance, expected[method].var(0, ddof=1), atol=1e-5)
    assert np.abs(expected[method]).max() > 0.1


@pytest.mark.parametrize("layout", ["*", "1"])
def test_layouts_agree(layout, expected):
    scores = edge_scores(replan(peaky(GPT2_LIKE), layout), PAIR, EAP())
    np.testing.assert_allclose(scores.mean, expected[EAP()].mean(0), atol=1e-5)


def test_integrated_gradients_of_the_input_sum_to_the_difference_of_the_runs():
    model = peaky(LLAMA_LIKE)
    scores = edge_scores(model, PAIR, EAPIG(60, "midpoint"))
    clean, corrupted = baseline(model, PAIR)
    assert abs(scores.mean[:, 0].sum() - (corrupted - clean).mean()) < 2e-3
    assert abs((corrupted - clean).mean()) > 0.1


def test_eap_is_the_derivative_of_the_circuit_at_all_edges():
    """d m / d edge at the full graph is minus the score: score = effect of removing an edge, to first order."""
    model = peaky(LLAMA_LIKE)
    graph = residual_graph(model)
    mask = np.ones((3, 6), bool)
    mask[0, :2] = mask[2, :1] = False
    pair = make_contrast(CLEAN, CORRUPTED, LogitDifference(3, 4), mask=mask)
    loss = lambda edges: jnp.mean(circuit_metric(model, pair, Circuit(edges, graph)))
    slope = jax.jit(jax.grad(loss))(jnp.asarray(graph.exists, jnp.float32))
    np.testing.assert_allclose(edge_scores(model, pair, EAP()).mean, -slope, atol=2e-5)


def test_what_scores_give():
    model = peaky(GPT2_LIKE)
    scores = edge_scores(model, PAIR, EAP())
    best, values = scores.largest(3), np.asarray(scores.mean)
    places = [residual_graph(model).index(edge) for edge, _, _ in best]
    assert [values[at] for at in places] == [score for _, score, _ in best]
    assert sorted(np.abs(values).ravel())[-3:] == sorted(abs(score) for _, score, _ in best)
    assert np.isnan(scores.labelled().values).sum() == 40 * 16 - 262
    assert set(scores.circuit(3).edge_names()) == {edge for edge, _, _ in best}
    one = edge_scores(model, PAIR.rows(slice(0, 1)), EAP())
    assert np.isnan(one.standard_error).all()
    assert np.isfinite(one.mean).all()


def test_refusals():
    model = peaky(GPT2_LIKE)
    for wrong in ({"steps": 0}, {"steps": 2.5}, {"rule": "up"}):
        with pytest.raises(UserError, match=r"steps=|rule="):
            EAPIG(**wrong)
    with pytest.raises(UserError, match="EAPIG"):
        edge_scores(model, PAIR, "eap")
    with pytest.raises(UserError, match="prompts_at_once=0"):
        edge_scores(model, PAIR, EAP(), prompts_at_once=0)
