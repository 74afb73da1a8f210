"""Rotations in superposition: who shares slots, one circuit by itself, and the published error tables."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.surgery import read
from jax_interp.toys.rotations import (
    assign_slots,
    circuit_state,
    expected_errors,
    initial_activations,
    max_circuits,
    rotate,
    rotation_errors,
    rotations,
    slot_indicators,
    small_weights,
)


def test_how_many_circuits_fit():
    assert max_circuits(250, 6) == 557
    assert max_circuits(500, 5) == 3237
    with pytest.raises(UserError, match=r"600 circuits of 6 slots.*557 do"):
        assign_slots(600, 250, 6)


@pytest.mark.parametrize(("n", "S"), [(250, 6), (60, 4), (77, 5), (9, 2)])
def test_two_circuits_share_at_most_one_slot(n, S):
    rows = assign_slots(None, n, S)
    hot = np.eye(n, dtype=int)[rows].sum(axis=1)
    assert hot.max() == 1
    shared = hot @ hot.T
    np.testing.assert_array_equal(np.diag(shared), S)
    np.fill_diagonal(shared, 0)
    assert shared.max() <= 1
    again = np.asarray(slot_indicators(jax.random.key(0), len(rows), n, S, 1)[0]).astype(int)
    assert sorted(map(tuple, again)) == sorted(map(tuple, hot))


def test_a_circuit_rotates_and_stays_on_or_off():
    """The small network by itself, in numpy: x turns by θ every layer, α stays; off stays off."""
    angle, b = 0.7, np.array([-0.5, -1.5, -1.0, -1.0])
    w = np.asarray(small_weights(jnp.asarray(angle)), float)
    for alpha in (1.0, 0.0):
        x = alpha * np.array([0.6, -0.8])
        a = np.array([1.5 * alpha, 0.5 * alpha, *(x + alpha)])
        for _ in range(5):
            a = np.maximum(w @ a + b, 0)
            x = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ x
            np.testing.assert_allclose(a[0] - a[1], alpha, atol=1e-6)
            np.testing.assert_allclose(a[2:] - alpha, x, atol=1e-6)


def test_circuits_that_share_nothing_are_exact():
    """Four circuits on slots of their own: no interference in any layer, and the matrices are the circuits' sum."""
    model = jax.jit(lambda key: rotations(key, T=4, D=64, S=4, layers=3))(jax.random.key(0))
    slots = model.slots
    assert int(jnp.max(jnp.sum(slots, axis=1))) == 1
    angle = jax.random.uniform(jax.random.key(1), (8, 4), maxval=6.28)
    active = jax.random.bernoulli(jax.random.key(2), 0.6, (8, 4))
    a, x = initial_activations(jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1), active)
    _, acts = read(model, *(f"blocks.{layer}.post" for layer in range(3)))(a)
    for layer in range(3):
        alpha, seen = circuit_state(model.readout(acts[f"blocks.{layer}.post"], layer))
        np.testing.assert_allclose(alpha, active, atol=1e-4)
        np.testing.assert_allclose(seen, rotate(x, model.angles, layer + 1), atol=1e-4)
    own = sum(model.circuit_weight(t, 1) for t in range(4))
    np.testing.assert_allclose(model.blocks[1].linear.weight, own, atol=1e-5)
    assert jnp.linalg.matrix_rank(model.circuit_weight(0, 1)) <= 4


def test_errors_of_all_557_circuits():
    """T = 557, D = 1000: the measured table; every circuit survives two rotations alone, and none with two others."""
    model = jax.jit(rotations)(jax.random.key(0))
    for z, table, worst in ((1, [0.0, 0.0084, 0.130], [True, True]), (3, [0.077, 0.330, 0.883], [False, False])):
        found = jax.jit(rotation_errors, static_argnums=(2, 3, 4))(model, jax.random.key(1), z, 256, 2)
        np.testing.assert_allclose(found["active"][:3], table, rtol=0.2, atol=1e-6)
        assert (found["worst"][:2] < 1).tolist() == worst
        theory = expected_errors(557, 1000, 6, z, 1)
        np.testing.assert_allclose(found["inactive"][0], theory["inactive"], rtol=0.3)
        np.testing.assert_allclose(found["active"][0], theory["active"], rtol=0.2, atol=1e-6)
        np.testing.assert_allclose(found["alpha"][0], 0, atol=1e-6)
