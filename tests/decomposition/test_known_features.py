"""The toys' own answer: the patterns expected of importances, and the features as parts against numpy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_tms import pentagon, tiny

from jax_interp.decomposition import DecompositionConfig, Trained, decompose, decomposition_linearity
from jax_interp.decomposition.evaluate import composites_of
from jax_interp.decomposition.linearity import GridSettings, LinearitySettings, oracle_importance
from jax_interp.decomposition.linearity import oracle as oracles
from jax_interp.decomposition.metrics import pattern_errors
from jax_interp.toys.layers import Linear, Transposed
from jax_interp.toys.resid_mlp import ResidMLPConfig, collapse, init_resid_mlp
from jax_interp.toys.tms import TIED, TMSConfig, init_tms, insert_identity, untie
from jax_interp.toys.toy import known_features

FEW = LinearitySettings(samples=1, ks=(1,), adversary_steps=(1,), pairs=1)


def tms(n=5, m=2):
    """A TMS with the pentagon's weights, or random ones of another size."""
    model = init_tms(jax.random.key(0), TMSConfig(n, m))
    if (n, m) != (5, 2):
        return model
    known = pentagon()
    return dataclasses.replace(model, linear1=Linear(known.linear1.weight), linear2=Transposed(known.linear2.bias))


def oracle_decomposition(parts):
    known = known_features(parts.target)
    return None if known is None else oracles.oracle_decomposition(parts, known.parts)


def errors(parts, importance):
    known = known_features(parts.target)
    assert known is not None
    assert known.count == 4
    return pattern_errors(parts, importance, known.patterns)


def resid_mlp(layers=1):
    return init_resid_mlp(jax.random.key(1), ResidMLPConfig(n_features=4, d_embed=9, n_layers=layers, d_mlp=3))


def test_what_is_expected_of_one_hot_probes():
    """TMS: a permutation where features are read and written, a dense block of m in an inserted identity; residual
    MLPs: a permutation for `mlp_in`, a dense block of d_mlp for `mlp_out`, layer by layer."""
    model = insert_identity(tms(4, 2))
    parts = decompose(model, "*", C=6, key=jax.random.key(2), tied=TIED)
    permuted, dense = jnp.eye(6)[jnp.asarray([3, 0, 5, 1])], jnp.zeros((4, 6)).at[:, 1:3].set(1.0)
    right = {"linear1": permuted, "linear2": permuted, "hidden_layers.0": dense}
    found = errors(parts, right)
    assert {name: one["errors"] for name, one in found.items()} == {name: {"0.1": 0, "0.2": 0} for name in right}
    assert found["hidden_layers.0"]["pattern"] == "dense, 2 components"
    wrong = errors(parts, {"linear1": dense, "hidden_layers.0": permuted})
    assert wrong["linear1"]["errors"]["0.1"] == 2 + 6  # two features matched, two not; six entries beside them
    assert wrong["hidden_layers.0"]["errors"]["0.1"] == 2  # two components more than two

    deep = decompose(resid_mlp(2), "blocks.*.mlp", C=6, key=jax.random.key(2))
    up, down = "blocks.*.mlp.up", "blocks.*.mlp.down"
    three = jnp.zeros((4, 6)).at[:, :3].set(1.0)
    found = errors(deep, {up: jnp.stack([permuted, 0 * permuted]), down: jnp.stack([three, dense])})
    assert found[up] == {"pattern": "identity", "errors": {"0.1": [0, 4], "0.2": [0, 4]}}
    assert found[down] == {"pattern": "dense, 3 components", "errors": {"0.1": [0, 1], "0.2": [0, 1]}}


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_features_of_tms_as_parts(is_tied):
    """relu((x W) Wᵀ + b) with the columns of Wᵀ of features that are off left out: relu(b) there."""
    model, x = tms(), np.array([[0.5, 0, 0, 0, 0], [0, 0.3, 0, 0.9, 0], [0, 0, 0, 0, 0]], np.float32)
    model = model if is_tied else untie(model)
    parts = decompose(model, "linear*", C=3, key=jax.random.key(2), tied=TIED if is_tied else ())
    oracle = oracle_decomposition(parts)
    assert oracle is not None
    W, b = (np.asarray(a, np.float64) for a in (model.linear1.weight, model.linear2.bias))
    right = np.maximum(x @ W @ W.T + b, 0)
    kept = np.maximum((x > 0) * (x @ W @ W.T) + b, 0)
    got = decomposition_linearity(oracle, oracle_importance(oracle, jnp.asarray(x)), jnp.asarray(x), settings=FEW)
    np.testing.assert_allclose(got.strict.normalised, ((kept - right) ** 2).sum() / (right**2).sum(), rtol=1e-4)
    assert got.all_on.normalised < 1e-10
    assert max(got.faithfulness.values()) < 1e-6


@pytest.mark.parametrize("collapsed", [True, False])
def test_the_features_of_a_residual_mlp_as_parts(collapsed):
    """A row keeps what W_in reads of the features that are on: nothing is lost, as no other feature is there to be
    read. Without part 2, feature 2 reaches no neuron."""
    model = collapse(resid_mlp()) if collapsed else resid_mlp()
    parts = decompose(model, "blocks.*.mlp", C=3, key=jax.random.key(2))
    oracle = oracle_decomposition(parts)
    assert oracle is not None
    assert oracle.names == ("blocks.*.mlp.up",)
    x = jnp.asarray([[0.5, 0, -0.3, 0], [0, 0, 0.7, 0]])
    got = decomposition_linearity(oracle, oracle_importance(oracle, x), x, settings=FEW)
    assert got.strict.normalised < 1e-8
    without = oracle_importance(oracle, x)["blocks.*.mlp.up"].at[..., 2].set(0.0)
    got = decomposition_linearity(oracle, {"blocks.*.mlp.up": without}, x, settings=FEW)
    W_E, W_in, W_out = (
        np.asarray(a, np.float64)
        for a in (model.embed.weight, model.blocks[0].mlp.up.weight, model.blocks[0].mlp.down.weight)
    )
    after = lambda read: (np.asarray(x) @ W_E + np.maximum(read @ W_E @ W_in, 0) @ W_out) @ W_E.T
    right, kept = after(np.asarray(x)), after(np.asarray(x) * [1, 1, 0, 1])
    np.testing.assert_allclose(got.strict.normalised, ((kept - right) ** 2).sum() / (right**2).sum(), rtol=1e-3)


def test_where_no_ideal_is_known():
    of = lambda model, matrices: oracle_decomposition(decompose(model, matrices, C=2, key=jax.random.key(0)))
    assert of(insert_identity(tms()), "hidden_layers.0") is None
    assert of(resid_mlp(2), "blocks.*.mlp") is None
    assert of(tiny(), "linear1") is None


def test_composites_of_the_ideal_itself():
    """Its errors on composites are the table's for the pentagon (a fifth is allowed, as the table is of another
    model), and nothing over the oracle's."""
    model = oracle_decomposition(decompose(tms(), "linear1", C=3, key=jax.random.key(2), tied=TIED))
    assert model is not None
    gates = lambda _, inputs: dict.fromkeys(model.names, 2 * (inputs["linear1"] > 0).astype(jnp.float32))
    trained = Trained(model, jax.tree_util.Partial(gates))
    config = DecompositionConfig(delta=False)
    rows = composites_of(config, trained, 5, active=(1, 2), oracle=model)
    by_name = {row["name"]: row["normalised"] for row in rows}
    assert by_name["1 on, needed parts alone"] == pytest.approx(0.021, rel=0.2)
    assert by_name["2 on, needed parts alone"] == pytest.approx(0.188, rel=0.2)
    assert all(row["excess"] == pytest.approx(0, abs=1e-6) for row in rows)
    few = composites_of(config, trained, 5, active=(2,), settings=GridSettings(8, 2, feature_sets=3))
    assert [row["excess"] for row in few] == [None] * 4
