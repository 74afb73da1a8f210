"""Each edit against its formula, written again in NumPy float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.dictionaries import ReLU, init_transcoder
from jax_interp.surgery import (
    Add,
    Clamp,
    Freeze,
    Mean,
    Noise,
    ProjectOut,
    Replace,
    Resample,
    Rotate,
    Scale,
    Site,
    Splice,
    Zero,
    at,
    edit,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 5, 8))
V, DONOR, SUBSPACE = RNG.normal(size=8), RNG.normal(size=X.shape), RNG.normal(size=(3, 8))
BASIS = np.linalg.qr(RNG.normal(size=(8, 2)))[0]


class Named:
    """The smallest model: its input, named."""

    def __call__(self, x, taps=()):
        site = Site.open(taps)
        return site.close(site("x", x))


def project(x, directions):
    return x @ directions.T @ np.linalg.pinv(directions.T)


EDITS = {
    "zero": (Zero(), np.zeros_like(X)),
    "mean over the batch": (Mean(), np.broadcast_to(X.mean(0), X.shape)),
    "mean of a dataset": (Mean(V), np.broadcast_to(V, X.shape)),
    "resample": (Resample(np.array([2, 0, 0])), X[[2, 0, 0]]),
    "replace": (Replace(DONOR), DONOR),
    "replace by a vector": (Replace(V), np.broadcast_to(V, X.shape)),
    "freeze": (Freeze(DONOR), DONOR),
    "add": (Add(V), X + V),
    "add with a coefficient": (Add(V, -2.5), X - 2.5 * V),
    "add for each position": (Add(DONOR[0], 0.5), X + 0.5 * DONOR[0]),
    "scale": (Scale(0.3), 0.3 * X),
    "project out one direction": (ProjectOut(V), X - np.outer(X @ V, V).reshape(X.shape) / (V @ V)),
    "project out a subspace": (ProjectOut(SUBSPACE), X - X @ np.linalg.pinv(SUBSPACE) @ SUBSPACE),
    "project out nothing": (ProjectOut(np.zeros(8)), X),
    "clamp": (Clamp(-0.2, 0.4), np.clip(X, -0.2, 0.4)),
    "clamp to a value": (Clamp(1.5, 1.5), np.full_like(X, 1.5)),
    "rotate": (Rotate(BASIS, DONOR), X + (DONOR - X) @ BASIS @ BASIS.T),
}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_edit_is_its_formula(name, dtype):
    fn, expected = EDITS[name]
    got = jax.jit(edit(Named(), at("x", fn)))(jnp.asarray(X, dtype))
    assert got.dtype == dtype, "a value keeps its dtype whatever the edit's"
    tolerance = 2e-6 if dtype == jnp.float32 else 0.05
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("length", [20.0, 1e-4])
def test_a_direction_of_any_length_is_projected_out_of_float16(length):
    v, x = jnp.full(768, length, jnp.float16), jnp.full((1, 1, 768), 10.0, jnp.float16)
    assert jnp.max(jnp.abs(edit(Named(), at("x", ProjectOut(v)))(x))) < 0.02


def test_noise_has_its_standard_deviation_and_repeats_with_its_key():
    x = jnp.zeros((8, 64, 64))
    noisy = edit(Named(), at("x", Noise(jax.random.key(0), 0.7)))(x)
    assert abs(float(noisy.std()) - 0.7) < 0.01
    assert abs(float(noisy.mean())) < 0.02
    np.testing.assert_array_equal(noisy, edit(Named(), at("x", Noise(jax.random.key(0), 0.7)))(x))
    assert not np.array_equal(noisy, edit(Named(), at("x", Noise(jax.random.key(1), 0.7)))(x))


def test_a_rotation_only_swaps_the_subspace():
    got = np.asarray(edit(Named(), at("x", Rotate(BASIS, DONOR)))(jnp.asarray(X, jnp.float32)))
    rest = np.eye(8) - BASIS @ BASIS.T
    np.testing.assert_allclose(got @ BASIS, DONOR @ BASIS, atol=1e-5)
    np.testing.assert_allclose(got @ rest, X @ rest, atol=1e-5)


def test_gradients_flow_into_a_replacement_and_not_through_a_frozen_value():
    x = jnp.asarray(X, jnp.float32)

    def through(kind):
        return jax.grad(lambda value: jnp.sum(edit(Named(), at("x", kind(value)))(x) ** 2))(2.0 * x)

    np.testing.assert_allclose(through(Replace), 4.0 * X, rtol=1e-6)
    np.testing.assert_array_equal(through(Freeze), np.zeros_like(X))


def test_a_dictionary_with_a_skip_is_not_spliced_without_it():
    zeros = jnp.zeros(4)
    transcoder = init_transcoder(jax.random.key(0), 4, 4, 8, ReLU(), zeros, zeros, skip=True)
    with pytest.raises(UserError, match="replacement"):
        edit(Named(), at("x", Splice(transcoder)))(jnp.ones((1, 2, 4)))
