"""Edges: brute force in float64, the sum of what leaves a node, paths that must not count, layouts, files."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feature_worlds import addresses_of, as_float64, contrast_of, dictionaries_for, linear_model, transformer

from jax_interp.circuits import measure
from jax_interp.circuits.feature_circuits import (
    EffectsConfig,
    FeatureCircuit,
    feature_circuit_page,
    feature_edges,
    feature_effects,
    same_nodes,
    select_nodes,
)
from jax_interp.core.errors import UserError
from jax_interp.surgery import Replace, at, edit, grad_at, read, replan


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def all_nodes(model, contrast, saes, **kwargs):
    effects = feature_effects(model, contrast, saes, EffectsConfig("attribution", **kwargs))
    return select_nodes(effects, threshold=-1.0)


def leaving(circuit):
    return np.bincount(circuit.source, circuit.weight, minlength=circuit.n_nodes)


@pytest.mark.parametrize("positions", ["each", pytest.param("sum", marks=pytest.mark.slow)])
def test_the_edges_that_leave_a_node_add_up_to_its_effect(x64, positions):
    """The chain rule: all later latents and errors together are all that a node can write to."""
    model, contrast = as_float64(transformer("llama-like")), contrast_of(64, prompts=2, length=4, padded=True)
    saes = as_float64(dictionaries_for(32, addresses_of(2 if positions == "sum" else 1), features=4))
    nodes = all_nodes(model, contrast, saes, positions=positions)
    circuit = feature_edges(model, contrast, saes, nodes, batch=1, targets=5)
    np.testing.assert_allclose(leaving(circuit), nodes.effect, atol=1e-10)
    assert np.abs(nodes.effect).max() > 0.1
    stream = circuit.addresses.index("blocks.0.resid_post")
    past = (circuit.site[circuit.source] < stream) & np.append(circuit.site > stream, True)[circuit.target]
    assert not past.any(), "nothing goes past the residual stream"


@pytest.mark.slow
def test_edges_equal_brute_force(x64):
    """Move one latent, hold every site between, and look at the target: finite differences, one pair at a time."""
    model, contrast = as_float64(transformer("gpt2-like")), contrast_of(61, padded=True)
    saes = as_float64(dictionaries_for(32, addresses_of(2), features=4))
    circuit = feature_edges(model, contrast, saes, all_nodes(model, contrast, saes))
    inputs = {"mask": contrast.mask}
    reading = lambda tokens: read(model, *saes)(tokens, **inputs)[1]
    clean, corrupted = reading(contrast.clean), reading(contrast.corrupted)
    gradients = grad_at(model, *saes)(lambda logits: jnp.sum(contrast.metric(logits)))(contrast.clean, **inputs)[1]
    named = {
        (circuit.name(s), circuit.name(t)): w
        for s, t, w in zip(circuit.source, circuit.target, circuit.weight, strict=True)
    }

    def arrived(u, d, value):
        order = [*circuit.addresses, None]
        held = [at(a, Replace(clean[a])) for a in order[order.index(u) + 1 : order.index(d)]]
        changed = edit(model, at(u, Replace(value)), *held)
        if d is None:
            return measure(changed, contrast.clean, contrast)
        return edit(read(model, d), at(u, Replace(value)), *held)(contrast.clean, **inputs)[1][d]

    pairs = [
        ("blocks.0.resid_post", 1, "blocks.1.mlp_out", 2),
        ("blocks.0.resid_post", 0, "blocks.1.resid_post", "error"),
        ("blocks.0.attn_out", "error", "blocks.0.resid_post", 3),
        ("blocks.0.mlp_out", 2, "blocks.0.resid_post", 0),
        ("blocks.1.resid_post", 1, None, None),
    ]
    for u, i, d, j in pairs:
        f, g = saes[u].encode(clean[u]), saes[u].encode(corrupted[u])
        step = (
            corrupted[u] - clean[u] - (g - f) @ saes[u].W_dec
            if i == "error"
            else (g - f)[..., i, None] * saes[u].W_dec[i][None, None]
        )
        step = jnp.where(contrast.mask[..., None], step, 0.0)
        moved = [arrived(u, d, clean[u] + h * step) for h in (1e-5, -1e-5)]
        ends = [x.sum() if d is None else value_of(saes[d], x, j, gradients[d]) for x in moved]
        slope = (ends[0] - ends[1]) / 2e-5
        expected = float(slope) / len(contrast.clean)
        assert named.get((f"{u}/{i}", "metric" if d is None else f"{d}/{j}"), 0.0) == pytest.approx(expected, abs=1e-7)


def value_of(sae, x, j, gradient):
    """∇_d m · d for a latent or the error."""
    z = sae.encode(x)
    if j == "error":
        return jnp.sum(gradient * (x - sae.decode(z)))
    return jnp.sum(z[..., j] * (gradient @ sae.W_dec[j]))


def test_a_latent_that_only_acts_through_another_has_no_edge_around_it(x64):
    """In a linear model with one site per block, the edge to the metric is exactly the rest of the effect."""
    model, contrast = as_float64(linear_model()), contrast_of(9)
    saes = as_float64(dictionaries_for(6, ["blocks.0.resid_post", "blocks.1.resid_post"]))
    circuit = feature_edges(model, contrast, saes, all_nodes(model, contrast, saes))
    first = circuit.site[circuit.source] == 0
    assert first.any()
    assert (circuit.target[first] < circuit.n_nodes).all()
    np.testing.assert_allclose(leaving(circuit), circuit.effect, atol=1e-12)


@pytest.mark.slow
def test_layouts_and_groups_of_targets_agree():
    model, contrast = transformer("llama-like"), contrast_of(64, padded=True)
    saes = dictionaries_for(32, ["blocks.0.mlp_out", "blocks.1.attn_out", "blocks.1.resid_post"], features=4)
    nodes = all_nodes(replan(model), contrast, saes)
    one = feature_edges(replan(model), contrast, saes, nodes, targets=16)
    other = feature_edges(replan(model, "*"), contrast, saes, nodes, batch=2, targets=3)
    dense = lambda c: np.stack(
        [np.bincount(c.source[c.target == t], c.weight[c.target == t], c.n_nodes) for t in range(c.n_nodes + 1)]
    )
    np.testing.assert_allclose(dense(one), dense(other), atol=2e-5)


@pytest.fixture(scope="module")
def circuit():
    model, contrast = linear_model(), contrast_of(9)
    saes = dictionaries_for(6, ["blocks.0.resid_post", "blocks.1.resid_post"])
    return feature_edges(model, contrast, saes, all_nodes(model, contrast, saes, positions="each"))


def test_thresholds_leave_the_nodes_and_edges_above_them(circuit):
    small = circuit.threshold(node=0.1, edge=0.05)
    assert 0 < small.n_nodes < circuit.n_nodes
    kept = {(s, t) for s, t, _ in small.edges()}
    names = {small.name(i) for i in range(small.n_nodes + 1)}
    expected = {(s, t) for s, t, w in circuit.edges() if s in names and t in names and abs(w) > 0.05}
    assert kept
    assert kept == expected
    assert same_nodes(small, circuit) == pytest.approx(small.n_nodes / circuit.n_nodes)
    latents, errors = small.keep(5)
    assert sum(m.sum() for m in latents) + sum(m.sum() for m in errors) == small.n_nodes


def test_a_circuit_is_the_same_after_a_file(circuit, tmp_path):
    circuit.save(tmp_path / "circuit.json")
    again = FeatureCircuit.load(tmp_path / "circuit.json")
    assert jax.tree.structure(again) == jax.tree.structure(circuit)
    for a, b in zip(jax.tree.leaves(circuit), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(UserError, match="do not fit together"):
        dataclasses.replace(circuit, source=circuit.source + 10_000).check()


def test_other_dictionaries_are_refused(circuit):
    with pytest.raises(UserError, match="with which it was found"):
        feature_edges(linear_model(), contrast_of(9), dictionaries_for(6, ["blocks.1.resid_post"]), circuit)
    with pytest.raises(UserError, match="3 positions"):
        feature_edges(linear_model(), contrast_of(9, length=3), dictionaries_for(6, list(circuit.addresses)), circuit)
    effects = feature_effects(linear_model(), contrast_of(9), dictionaries_for(6, list(circuit.addresses)))
    with pytest.raises(UserError, match="one of the two"):
        select_nodes(effects)


def test_the_page_shows_every_node_and_edge_and_text_stays_text(circuit):
    small = circuit.threshold(node=0.1)
    name = small.name(int(np.flatnonzero(small.feature >= 0)[0])).partition("@")[0]
    page = feature_circuit_page(small, title="<b>", tokens=list("abcde"), descriptions={name: "</script><i>"})
    data = unpacked(page)
    assert [node["label"] for node in data["nodes"]] == [small.name(i) for i in range(small.n_nodes + 1)]
    kinds = ["error" if f < 0 else "feature" for f in small.feature] + ["logit"]
    assert [node["kind"] for node in data["nodes"]] == kinds
    assert [node["pos"] for node in data["nodes"][:-1]] == small.pos.tolist()
    np.testing.assert_allclose(data["weight"], -small.weight, rtol=1e-4)
    assert data["rows"] == ["resid 0", "resid 1", "metric"]
    assert any(["description", "</script><i>"] in node["facts"] for node in data["nodes"])
    assert "<title>&lt;b&gt;" in page
    with pytest.raises(UserError, match="3 tokens"):
        feature_circuit_page(circuit, tokens=list("abc"))
    with pytest.raises(UserError, match="leave out tokens"):
        feature_circuit_page(dataclasses.replace(small, positions="sum", pos=0 * small.pos - 1), tokens=["a"])


def unpacked(page):
    """The data in a page: JSON, compressed, in base64."""
    text = re.search(r'<script type="application/octet-stream"[^>]*>(.*?)</script>', page, re.DOTALL)[1]
    return json.loads(zlib.decompress(base64.b64decode(text)))
