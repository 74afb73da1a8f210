"""What components answer to: against loops over positions, batch by batch."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_tms import TIED, tiny

from jax_interp.core.errors import UserError
from jax_interp.dashboards.components import component_dashboards
from jax_interp.dashboards.statistics import Passages, TopWindows
from jax_interp.decomposition import Trained, decompose
from jax_interp.decomposition.importance import ScalarMLP, read_inputs
from jax_interp.decomposition.top_components import top_components
from jax_interp.models import Config, init

CONFIG = Config(n_layers=2, d_model=8, n_heads=2, d_mlp=6, vocab_size=11, n_ctx=9)
N, K, BEFORE, AFTER, TAU = 3, 5, 2, 1, 0.1
WINDOWS = TopWindows(K, BEFORE, AFTER, one_per_sequence=True, threshold=TAU)


def filled(shapes, seed=0):
    """Noise in these shapes: drawing parameters by their own functions would take longer to compile than all else."""
    rng = np.random.default_rng(seed)
    draw = lambda leaf: jnp.asarray(0.7 * rng.standard_normal(leaf.shape), jnp.float32)
    return jax.tree.map(draw, shapes)


@pytest.fixture(scope="module")
def decomposed():
    """A decoder with components that are important at some positions and not at others, and dead ones."""

    def made():
        model = init(CONFIG, jax.random.key(0))
        parts = decompose(model, ("blocks.*.attn.o", "blocks.*.mlp.down"), C=5, key=jax.random.key(1))
        return Trained(parts, ScalarMLP(3).init(jax.random.key(2), parts))

    trained = filled(jax.eval_shape(made))
    dead = lambda gate: dataclasses.replace(gate, bo=jnp.asarray(np.where(np.arange(5) == 4, -100, gate.bo - 0.7)))
    gates = {name: dead(gate) for name, gate in trained.ci_fn.gates.items()}
    trained = dataclasses.replace(trained, ci_fn=dataclasses.replace(trained.ci_fn, gates=gates))
    rng = np.random.default_rng(0)
    batches = [(rng.integers(0, 11, (2, 9)).astype(np.int32), rng.random((2, 9)) < 0.8) for _ in range(3)]
    for i, (tokens, _) in enumerate(batches):
        tokens[:, 0] = 2 * i, 2 * i + 1  # no two sequences begin alike, so that no two positions are equal
    return trained, batches


@pytest.fixture(scope="module")
def found(decomposed):
    trained, batches = decomposed
    return component_dashboards(trained, batches, n=N, windows=WINDOWS, tokens=4, passages=Passages(1, length=5))


@pytest.fixture(scope="module")
def slow(decomposed):
    """By (matrix, layer): importance and activation `[seq, pos, C]` of all sequences; tokens, keep, probabilities."""
    trained, batches = decomposed
    tokens, keep = (np.concatenate(v) for v in zip(*batches))

    @jax.jit
    def look(trained, x):
        logits, inputs, _ = read_inputs(trained.model, x)
        return logits, inputs, trained.importance(x).lower

    logits, inputs, lower = jax.device_get(look(trained, jnp.asarray(tokens)))
    values = {}
    for name in trained.model.names:
        for layer in range(2):
            V, U = (np.asarray(v[layer], np.float64) for v in (trained.model.of(name).V, trained.model.of(name).U))
            a = inputs[name][layer].astype(np.float64) @ V * np.sqrt((U**2).sum(1))
            values[name.replace("*", str(layer))] = (lower[name][layer].astype(np.float64), a)
    odds = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return tokens, keep, odds / odds.sum(-1, keepdims=True), values


def test_the_strongest(found, slow, decomposed):
    tokens, keep, _, values = slow
    assert list(found.matrices) == [f"blocks.{layer}.{name}" for layer in range(2) for name in ("attn.o", "mlp.down")]
    np.testing.assert_array_equal(found.token_counts, np.bincount(tokens[keep], minlength=11))
    for name, one in ((name, matrix.strongest) for name, matrix in found.matrices.items()):
        g = values[name][0][keep]
        rate = (g > TAU).mean(0)
        best = [c for c in np.argsort(-g.mean(0)) if rate[c] > 0][:N]
        assert one.components.tolist() == best
        assert (one.C, one.alive) == (5, (rate > 0).sum())
        assert one.alive < 5, "the fixture has dead ones"
        np.testing.assert_allclose(one.mean, g.mean(0)[best], rtol=1e-5)
        np.testing.assert_allclose(one.rate, rate[best], rtol=1e-6)
        entry, layer = name.replace(name[7], "*", 1), int(name[7])
        parts = decomposed[0].model.of(entry)
        np.testing.assert_array_equal(one.V, np.asarray(parts.V)[layer].T[best])
        np.testing.assert_array_equal(one.U, np.asarray(parts.U)[layer][best])


def test_tokens(found, slow):
    """Shares and lifts of input tokens and of predicted ones, position by position."""
    tokens, keep, probability, values = slow
    for name, text in found.matrices.items():
        for card, c in enumerate(text.strongest.components):
            own, predicted, base, base_predicted = np.zeros((4, 11))
            for s, p in zip(*np.nonzero(keep)):
                g = values[name][0][s, p, c]
                own[tokens[s, p]] += g
                predicted += g * probability[s, p]
                base[tokens[s, p]] += 1
                base_predicted += probability[s, p]
            for got, by, of in ((text.inputs, own, base), (text.predicted, predicted, base_predicted)):
                share, part = by / by.sum(), of / of.sum()
                worth = [share[t] * np.log(share[t] / part[t]) if share[t] > 0 else 0.0 for t in range(11)]
                np.testing.assert_allclose(np.take(worth, got.tokens[card]), sorted(worth)[:-5:-1], atol=1e-5)
                np.testing.assert_allclose(got.share[card], share[got.tokens[card]], rtol=1e-4, atol=1e-7)
                np.testing.assert_allclose(got.lift[card], (share / part)[got.tokens[card]], rtol=1e-4, atol=1e-6)


def test_windows(found, slow):
    """The best position of each of the best sequences, over all batches, with what stands around it."""
    tokens, keep, _, values = slow
    for name, text in found.matrices.items():
        for card, c in enumerate(text.strongest.components):
            g, a = (np.where(keep, v[..., c], 0.0) for v in values[name])
            places = [max(range(9), key=lambda p, s=s: (g[s, p], abs(a[s, p]))) for s in range(6)]
            order = sorted(range(6), key=lambda s: (-g[s, places[s]], -abs(a[s, places[s]])))
            order = [s for s in order if g[s, places[s]] > TAU][:K]
            windows = text.windows
            for i in range(K):
                if i >= len(order):
                    assert (windows.tokens[card, i] == -1).all()
                    assert windows.peak[card, i] == 0
                    continue
                s = order[i]
                np.testing.assert_allclose(windows.peak[card, i], g[s, places[s]], rtol=1e-4)
                for j, p in enumerate(range(places[s] - BEFORE, places[s] + AFTER + 1)):
                    there = 0 <= p < 9 and keep[s, p]
                    assert windows.tokens[card, i, j] == (tokens[s, p] if there else -1)
                    np.testing.assert_allclose(windows.scores[card, i, j], g[s, p] if there else 0, atol=1e-5)
                    np.testing.assert_allclose(windows.activations[card, i, j], a[s, p] if there else 0, atol=1e-4)


def test_passages(found, slow):
    """The end of that sequence of the first batch on which the cards are most important."""
    tokens, keep, _, values = slow
    g = {name: np.where(keep[..., None], values[name][0], 0)[:2, -5:] for name in values}
    g = {name: g[name][..., one.strongest.components] for name, one in found.matrices.items()}
    most = np.argmax(sum(v.sum((1, 2)) for v in g.values()))
    np.testing.assert_array_equal(found.passage_tokens[0], np.where(keep, tokens, -1)[most, -5:])
    for name, one in found.matrices.items():
        np.testing.assert_allclose(one.passages[:, 0], g[name][most].T, atol=1e-5)


def test_where_nothing_is_important(decomposed):
    trained, batches = decomposed
    found = component_dashboards(trained, batches[:1], windows=dataclasses.replace(WINDOWS, threshold=1.0))
    assert {one.strongest.alive for one in found.matrices.values()} == {0}
    assert {one.windows.tokens.shape for one in found.matrices.values()} == {(0, K, BEFORE + 1 + AFTER)}
    assert found.passage_tokens.shape == (2, 9)


def test_a_text_is_needed(decomposed):
    with pytest.raises(UserError, match="no batches"):
        component_dashboards(decomposed[0], [])


def test_the_strongest_of_a_toy():
    def made():
        parts = decompose(tiny(), "linear1", C=4, key=jax.random.key(1), tied=TIED)
        return Trained(parts, ScalarMLP(3).init(jax.random.key(2), parts))

    trained = filled(jax.eval_shape(made))
    x = np.random.default_rng(1).random((16, 5)).astype(np.float32)
    g = jax.device_get(jax.jit(lambda trained, x: trained.importance(x).lower)(trained, x))
    found = top_components(trained, [(x[:8], np.ones(8, bool)), (x[8:], np.ones(8, bool))], n=2)
    assert list(found) == ["linear1", "linear2"]
    for name, one in found.items():
        best = [c for c in np.argsort(-g[name].mean(0)) if (g[name][:, c] > TAU).any()][:2]
        np.testing.assert_array_equal(one.components, best)
        np.testing.assert_array_equal(one.V, np.asarray(trained.model.of(name).V).T[best])
