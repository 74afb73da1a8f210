"""Edge scores and circuit runs equal those of EAP-IG (Hanna et al. 2024), on one random GPT-2-like model.

The learned positions of the model are zero: EAP-IG leaves them out of the source "input", here they belong to it. Where
both runs have the same positions this changes information-flow routes only.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import run_oracle
from small_models import GPT2_LIKE, peaky

from jax_interp.circuits import Circuit, LogitDifference, circuit_metrics, make_contrast, residual_graph
from jax_interp.circuits.edges import EAP, EAPIG, CleanCorrupted, ExactEdges, FlowRoutes, IGActivations, edge_scores

pytestmark = pytest.mark.parity

METHODS = {
    "EAP": EAP(),
    "EAP-IG-inputs": EAPIG(4),
    "clean-corrupted": CleanCorrupted(),
    "EAP-IG-activations": IGActivations(2, pooled=True),
    "information-flow-routes": FlowRoutes(),
    "exact": ExactEdges(),
}


def lens_weights(model):
    """The weights under the names and shapes of TransformerLens."""
    (stack,), heads = model.blocks, model.config.n_heads
    get = lambda leaf: np.asarray(leaf[...])
    weights = {"embed.W_E": get(model.embed.weight), "pos_embed.W_pos": get(model.pos_embed.weight)}
    weights |= {"ln_final.w": get(model.ln_final.weight), "ln_final.b": get(model.ln_final.bias)}
    weights |= {"unembed.W_U": get(model.embed.weight).T, "unembed.b_U": np.zeros(model.config.vocab_size, np.float32)}
    for i, block in enumerate(stack.unstack()):
        at = f"blocks.{i}"
        for name, linear in (("Q", block.attn.q), ("K", block.attn.k), ("V", block.attn.v)):
            weight = get(linear.weight)
            weights[f"{at}.attn.W_{name}"] = weight.reshape(len(weight), heads, -1).transpose(1, 0, 2)
            weights[f"{at}.attn.b_{name}"] = get(linear.bias).reshape(heads, -1)
        out = get(block.attn.o.weight)
        weights |= {f"{at}.attn.W_O": out.reshape(heads, -1, out.shape[1]), f"{at}.attn.b_O": get(block.attn.o.bias)}
        for name, linear in (("in", block.mlp.up), ("out", block.mlp.down)):
            weights |= {f"{at}.mlp.W_{name}": get(linear.weight), f"{at}.mlp.b_{name}": get(linear.bias)}
        for name, norm in (("ln1", block.ln1), ("ln2", block.ln2)):
            weights |= {f"{at}.{name}.w": get(norm.weight), f"{at}.{name}.b": get(norm.bias)}
    return weights


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    folder, model = tmp_path_factory.mktemp("eap_ig"), peaky(GPT2_LIKE)
    model.pos_embed.weight[...] = jnp.zeros_like(model.pos_embed.weight[...])
    clean, corrupted = np.random.default_rng(1).integers(0, 61, (2, 5, 7)).astype(np.int32)
    graph = residual_graph(model)
    rng = np.random.default_rng(2)
    circuits = np.stack([(rng.uniform(size=graph.shape) < kept) & graph.exists for kept in (0.05, 0.3, 0.9)])
    np.savez(folder / "model.npz", **lens_weights(model))
    sizes = np.asarray([3, 4, 32, 8])
    np.savez(folder / "data.npz", clean=clean, corrupted=corrupted, sizes=sizes, circuits=circuits.transpose(0, 2, 1))
    run_oracle("eap_ig", "eap_ig_scores.py", folder)
    pair = make_contrast(clean, corrupted, LogitDifference(3, 4))
    return model, pair, circuits, dict(np.load(folder / "scores.npz"))


def test_the_graphs_are_the_same(theirs):
    graph = residual_graph(theirs[0])
    assert (graph.exists == theirs[3]["real"].T).all()
    assert set(theirs[3]["edges"].tolist()) == set(graph.edge_names())


@pytest.mark.parametrize("name", METHODS)
def test_scores_of_all_edges(name, theirs):
    model, pair, _, found = theirs
    scores = edge_scores(model, pair, METHODS[name], prompts_at_once=2)
    expected = np.where(residual_graph(model).exists, found[name].T, 0)
    np.testing.assert_allclose(scores.mean, expected, atol=2e-6 + 1e-5 * np.abs(expected).max())
    print(name, "worst difference", np.abs(scores.mean - expected).max(), "largest score", np.abs(expected).max())
    assert np.abs(expected).max() > 0.01


def test_runs_of_circuits(theirs):
    model, pair, circuits, found = theirs
    ours = jax.jit(circuit_metrics)(model, pair, Circuit(jnp.asarray(circuits), residual_graph(model)))
    print("worst difference", np.abs(ours - found["circuits"]).max())
    np.testing.assert_allclose(ours, found["circuits"], atol=1e-5)
