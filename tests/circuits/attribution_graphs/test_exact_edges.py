"""In the linear model of a prompt, changing a node changes every target by exactly the weight of the edge."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.circuits.attribution_graphs import Change, Limits, attribution_graph, intervene
from jax_interp.dictionaries.activations import BatchTopK, JumpReLU, ReLU, TopK
from tests.circuits.attribution_graphs.graph_models import TOKENS, local_model

GPT2 = {"norm": "layernorm", "positions": "learned", "gated_mlp": False, "qkv_bias": True, "mlp_bias": True}
GEMMA = {"norm_places": "around", "norm_offset": True, "attn_softcap": 20.0, "logit_softcap": 3.0, "qk_norm": "head"}
CASES = {
    "scanned transcoders": {"activation": ReLU()},
    "layernorm, topk, skip": {"activation": TopK(5), "skip": True, "config": GPT2},
    "cross-layer, gemma": {"activation": JumpReLU(), "window": 3, "skip": True, "config": GEMMA},
    "unrolled, batchtopk": {"activation": BatchTopK(4, threshold=jnp.float32(0.3)), "layout": "*"},
    "parallel blocks, window of 2": {"activation": ReLU(), "window": 2, "config": {"parallel": "two norms"}},
}


def worst_difference(local, dtype, limits=None):
    """The largest difference between an edge and the effect of an intervention, over nodes of every kind."""
    graph = attribution_graph(local, TOKENS, limits or Limits(batch=16, programs=2))
    assert np.isfinite(graph.weights).all()
    assert graph.weights.dtype == dtype
    rng, kinds = np.random.default_rng(0), (range(graph.n_features), graph.error_nodes, graph.token_nodes)
    worst = 0.0
    for nodes in kinds:
        numbers = np.arange(graph.n_nodes)[nodes] if isinstance(nodes, slice) else np.asarray(nodes)
        strongest = numbers[np.argsort(-np.abs(graph.weights[:, numbers]).sum(0))[:2]]
        for number in {*strongest.tolist(), int(rng.choice(numbers))}:
            before, after = intervene(local, TOKENS, [Change(graph.node(number), factor=0.0)]).on(graph.targets)
            np.testing.assert_allclose(before, graph.values, rtol=1e-3, atol=1e-3)
            worst = max(worst, np.abs(before - after - graph.weights[:, number]).max())
    assert np.abs(graph.weights[:, : graph.n_features]).max() > 0.1
    return worst


@pytest.mark.parametrize(
    "case", [name if i == 2 else pytest.param(name, marks=pytest.mark.slow) for i, name in enumerate(CASES)]
)
def test_an_intervention_changes_a_target_by_the_weight_of_the_edge(case):
    with jax.enable_x64():
        assert worst_difference(local_model(**CASES[case], dtype=jnp.float64), np.float64) < 1e-12


@pytest.mark.parametrize("case", ["scanned transcoders"])
def test_edges_are_exact_up_to_rounding_in_float32(case):
    assert worst_difference(local_model(**CASES[case]), np.float32) < 1e-5
