"""Attribution graphs equal those of circuit-tracer, on the same random models and transcoders."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.circuits.attribution_graphs import Limits, attribution_graph, prune, scores
from jax_interp.circuits.attribution_graphs.viewer import viewer_graph
from jax_interp.dictionaries.activations import Jump, ReLU
from jax_interp.dictionaries.forms.cross_layer import CrossLayer, Source
from jax_interp.dictionaries.replacement import replacement
from jax_interp.models import load
from tests.parity.oracle import run_oracle

pytestmark = pytest.mark.parity
READS = {"jumprelu_skip": "ln2.normalized"}
LIMITS = {"limited": Limits(max_features=30, batch=5, update=2, without_nodes=(0,))}
CASES = ("relu", "jumprelu_skip", "cross_layer", "limited")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("graphs")
    run_oracle("circuit_tracer", "circuit_tracer_graphs.py", path)
    return path


def dictionary(data):
    """The transcoders of circuit-tracer, whose encoders are [feature, d] and whose skips are applied as x Wᵀ."""
    sources, n = [], sum(name.startswith("W_enc.") for name in data)
    for i in range(n):
        W_dec = jnp.asarray(data[f"W_dec.{i}"])
        W_dec = W_dec if W_dec.ndim == 3 else W_dec[:, None]
        on = Jump(jnp.log(jnp.asarray(data[f"threshold.{i}"]).reshape(-1))) if f"threshold.{i}" in data else ReLU()
        skip = jnp.asarray(data[f"W_skip.{i}"]).T if f"W_skip.{i}" in data else None
        sources.append(Source(jnp.asarray(data[f"W_enc.{i}"]).T, jnp.asarray(data[f"b_enc.{i}"]), W_dec, on, skip))
    return CrossLayer(tuple(sources), jnp.stack([jnp.asarray(data[f"b_dec.{i}"]) for i in range(n)]))


def ours(path, case):
    data = dict(np.load(path / "data.npz"))
    model, _ = load(path / "model")
    clt = dictionary(data)
    reads = [f"blocks.{i}.{READS.get(case, 'resid_mid')}" for i in range(len(clt.sources))]
    writes = [f"blocks.{i}.mlp_out" for i in range(len(clt.sources))]
    limits = LIMITS.get(case, Limits(without_nodes=(0,), programs=1))
    graph = attribution_graph(replacement(model, reads, writes, clt), data["tokens"], limits)
    texts = [f"t{i}" for i in data["tokens"]], [f"t{i}" for i in graph.logit_tokens]
    return data, graph.with_texts(*texts)


@pytest.mark.parametrize("case", CASES)
def test_graphs_are_those_of_circuit_tracer(folder, case):
    data, graph = ours(folder / case, case)
    active = graph.active
    np.testing.assert_array_equal(np.stack([active.layer, active.pos, active.feature], axis=1), data["active"])
    np.testing.assert_allclose(active.activation, data["activations"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(graph.selected, data["selected"])
    np.testing.assert_array_equal(graph.logit_tokens, data["logits"])
    np.testing.assert_allclose(graph.logit_probabilities, data["probabilities"], rtol=1e-4)
    scale = np.abs(data["adjacency"]).max()
    print(case, "largest edge", scale, "worst", np.abs(graph.adjacency() - data["adjacency"]).max())
    np.testing.assert_allclose(graph.adjacency(), data["adjacency"], rtol=1e-4, atol=1e-5 * scale)

    pruned = prune(graph)
    np.testing.assert_array_equal(pruned.nodes, data["node_mask"])
    rows = np.r_[0 : graph.n_features, graph.logit_nodes.start : graph.n_nodes]
    np.testing.assert_array_equal(pruned.edges, data["edge_mask"][rows][:, : graph.logit_nodes.start])
    np.testing.assert_allclose(pruned.cumulative, data["cumulative"], atol=1e-4)
    replacement_score, completeness = json.loads((folder / case / "scores.json").read_text())
    np.testing.assert_allclose(scores(graph).replacement, replacement_score, rtol=1e-4)
    np.testing.assert_allclose(scores(graph).completeness, completeness, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_the_viewer_gets_the_file_that_circuit_tracer_writes(folder, case):
    _, graph = ours(folder / case, case)
    theirs = json.loads((folder / case / "viewer" / "graph.json").read_text())
    found = viewer_graph(prune(graph), slug="graph", scan="test", prompt=theirs["metadata"]["prompt"])
    assert found["metadata"] == theirs["metadata"]
    assert found["qParams"] == theirs["qParams"]
    ids = [node["node_id"] for node in found["nodes"]]
    assert len(set(ids)) == len(ids)  # circuit-tracer gives some errors the id of a feature
    assert [plain(one) for one in ids] == [node["node_id"] for node in theirs["nodes"]]
    for mine, its in zip(found["nodes"], theirs["nodes"], strict=True):
        assert mine.keys() == its.keys()
        for name, value in its.items():
            if name == "node_id":
                continue
            if isinstance(value, float) and value:
                np.testing.assert_allclose(mine[name], value, atol=1e-4, err_msg=f"{its['node_id']} {name}")
            elif name != "influence":
                assert mine[name] == value, (its["node_id"], name)
    mine, its = (
        sorted((plain(one["source"]), plain(one["target"]), one["weight"]) for one in values["links"])
        for values in (found, theirs)
    )
    assert [one[:2] for one in mine] == [one[:2] for one in its]
    np.testing.assert_allclose([one[2] for one in mine], [one[2] for one in its], rtol=1e-3, atol=1e-5)


def plain(node_id):
    """The id that circuit-tracer gives a node."""
    return node_id.removesuffix("_error")
