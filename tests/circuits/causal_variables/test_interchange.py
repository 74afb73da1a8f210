"""Interchange interventions against a network whose mechanism is known, and against single runs by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from boolean_task import DIRECTIONS, RIGHT, WRONG, network, task
from toy import toy

from jax_interp.circuits.causal_variables import (
    Coordinates,
    InterchangeData,
    Location,
    Subspace,
    Whole,
    interchange,
    interchange_accuracy,
    span,
)
from jax_interp.core.errors import UserError
from jax_interp.models import init
from jax_interp.surgery import Replace, Rotate, at, edit, read
from jax_interp.toys.price_tagging import PriceConfig

PLACES = {"A": "blocks.0.resid_post", "B": "blocks.1.resid_post"}


@pytest.mark.parametrize("name", PLACES)
def test_the_known_direction_carries_its_variable(name):
    net = network()
    known = span(net.variables[DIRECTIONS[name]])
    data = task(RIGHT, name, changed=0.5)
    result = interchange_accuracy(net, data, Location(PLACES[name], "here"), known, batch=100)
    assert result.accuracy.value == 1.0
    assert result.accuracy.n == 256
    assert result.changed.mean() == 0.5
    # nothing exchanged: right only where the answer stays
    nothing = interchange_accuracy(net, data, Location(PLACES[name], "here"), Subspace(known.basis, jnp.zeros(1)))
    np.testing.assert_array_equal(nothing.correct, ~nothing.changed)


def test_a_wrong_causal_model_of_the_same_function_is_refuted():
    net, data = network(), task(WRONG, "B", 1000, changed=0.5)
    known = span(net.variables[DIRECTIONS["B"]])
    low = [
        interchange_accuracy(net, data, Location(place, "here"), known).where_changed.accuracy
        for place in PLACES.values()
    ]
    assert max(estimate.value for estimate in low) < 0.6


def test_two_sources_at_two_layers_and_at_one():
    net = network()
    a, b = (span(net.variables[DIRECTIONS[name]]) for name in "AB")
    data = task(RIGHT, ["A", "B"], changed=0.5)
    result = interchange_accuracy(net, data, [Location(PLACES["A"], "here"), Location(PLACES["B"], "here")], [a, b])
    assert result.accuracy.value == 1.0
    data = task(RIGHT, ["x4", "A"], changed=0.5)
    both = [span(net.variables[3]), a]
    assert interchange_accuracy(net, data, [Location(PLACES["A"], "here")] * 2, both).accuracy.value == 1.0


# ---- positions: each pair has its own, in the base and in the source ---------------------------------------------


def positioned(rng):
    """Six pairs of prompts of different lengths, with two named positions that move from pair to pair."""
    integers = lambda *shape: jnp.asarray(rng.integers(0, 40, shape), jnp.int32)
    places = lambda n: np.stack([1 + rng.permutation(n - 2)[:2] for _ in range(6)], axis=1)
    base, source = places(7), places(5)
    positions = {name: jnp.asarray(np.stack([base[i], source[i]]), jnp.int32) for i, name in enumerate(("one", "two"))}
    target = jnp.full((6, 7), -1, jnp.int32).at[:, -1].set(3)
    return InterchangeData(integers(6, 7), integers(1, 6, 5), target, target, positions)


@pytest.mark.parametrize("names", ["one", ("one", "two"), (1, -1), (0, "two")])
@pytest.mark.parametrize("kind", ["whole", "subspace"])
def test_positions_of_each_pair_against_a_loop(names, kind):
    rng = np.random.default_rng(0)
    data, model, address = positioned(rng), toy(), "blocks.1.resid_post"
    location = Location(address, names)
    basis = np.linalg.qr(rng.normal(size=(16, 3)))[0].astype(np.float32)
    features = Whole() if kind == "whole" else Subspace(jnp.asarray(basis))
    logits = interchange(model, data, [location], [features])
    for i in range(len(data)):
        base = np.array(read(model, address, output=False)(data.base[i : i + 1])[address])
        source = np.asarray(read(model, address, output=False)(data.sources[0, i : i + 1])[address])
        for name in location.names:
            here, there = (name, name) if isinstance(name, int) else np.asarray(data.positions[name])[:, i]
            change = source[0, there] - base[0, here]
            base[0, here] += change if kind == "whole" else basis @ (basis.T @ change)
        # the rest of the toy by hand: one more block, and the unembedding
        before = np.pad(base, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        x = base + np.tanh((base + before) @ np.asarray(model.blocks[2].W))
        np.testing.assert_allclose(logits[i], (x @ np.asarray(model.U))[0], rtol=1e-4, atol=1e-4)


def test_two_positions_that_are_one_token():
    data = positioned(np.random.default_rng(0))
    at = int(data.positions["one"][0, 2])
    with pytest.raises(UserError, match="the same token of the base"):
        interchange(toy(), data, [Location("blocks.1.resid_post", ("one", at))], [Whole()])


def test_all_positions_of_the_whole_value_give_the_run_of_the_source():
    rng = np.random.default_rng(1)
    tokens = jnp.asarray(rng.integers(0, 40, (2, 4, 6)), jnp.int32)
    data = InterchangeData(tokens[0], tokens[1:], jnp.zeros((4, 6), jnp.int32), jnp.zeros((4, 6), jnp.int32))
    logits = interchange(toy(), data, [Location("blocks.-1.resid_post")], [Whole()])
    np.testing.assert_allclose(logits, toy()(tokens[1]), rtol=1e-5, atol=1e-5)


REFUSED = {
    "no such value": (Location("blocks.0.resid_pots", "here"), Whole(), "resid_post"),
    "no such position": (Location("blocks.0.resid_post", "there"), Whole(), "the data has here"),
    "outside": (Location("blocks.0.resid_post", 4), Whole(), "outside prompts"),
    "no heads": (Location("blocks.0.resid_post", "here", head=0), Whole(), "without heads"),
    "width": (Location("blocks.0.resid_post", "here"), Coordinates(jnp.ones(3)), "the value has 8"),
    "not orthonormal": (Location("blocks.0.resid_post", "here"), Subspace(jnp.ones((8, 2))), "not orthonormal"),
    "NaN basis": (Location("blocks.0.resid_post", "here"), Subspace(jnp.full((8, 1), jnp.nan)), "not orthonormal"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exchanged(case):
    location, features, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        interchange_accuracy(network(), task(RIGHT, "A", 8), location, features)


def test_nan_logits_are_an_error():
    net = network()
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, net)
    with pytest.raises(UserError, match="8 of 8 pairs are NaN"):
        interchange_accuracy(broken, task(RIGHT, "A", 8), Location(PLACES["A"], "here"), Whole())


# ---- values with heads, in a transformer whose blocks are scanned ---------------------------------------------------


def test_heads_alone_and_together():
    model = init(PriceConfig(prices=8, n_layers=2, d_model=16, d_mlp=16).model, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 3, 4), 0, 8)
    data = InterchangeData(tokens[0], tokens[1:], jnp.full((3, 1), 9), jnp.full((3, 1), 9), last_only=True)
    z = "blocks.1.attn.z"
    donor = read(model, z, output=False)(tokens[1])[z]
    basis = jnp.linalg.qr(jax.random.normal(jax.random.key(2), (16, 16)))[0]
    by_hand = {
        "one head": (Location(z, 2, head=1), span(jnp.eye(8)), at(z, Replace(donor), pos=2, head=1)),
        "rotated head": (Location(z, 2, head=1), span(basis[:8, :3]),
                         at(z, Rotate(span(basis[:8, :3]).basis, donor), pos=2, head=1)),
        "all heads": (Location(z, 2), Subspace(basis), at(z, Replace(donor), pos=2)),
    }  # fmt: skip
    for name, (location, features, expected) in by_hand.items():
        logits = interchange(model, data, [location], [features])
        assert logits.shape == (3, 1, 11)
        np.testing.assert_allclose(logits, edit(model, expected)(tokens[0])[:, -1:], atol=1e-6, err_msg=name)
    with pytest.raises(UserError, match="has 2 heads"):
        interchange(model, data, [Location(z, 2, head=2)], [Whole()])
