"""The factors of learning-rate schedules against optax and by hand; a step under strict promotion."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_interp.core import optimizers

STEPS = np.arange(21)


@pytest.mark.parametrize("final", [0.0, 0.1])
@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        ("constant", lambda final: optax.constant_schedule(1.0)),
        ("linear", lambda final: optax.linear_schedule(1.0, final, 20)),
        ("cosine", lambda final: optax.cosine_decay_schedule(1.0, 20, alpha=final)),
    ],
)
def test_decay_is_optax_s(kind, theirs, final):
    ours = jax.vmap(lambda step: optimizers.decay(kind, step / 20, final))(jnp.asarray(STEPS, jnp.float32))
    with jax.numpy_dtype_promotion("standard"):
        np.testing.assert_allclose(ours, [float(theirs(final)(step)) for step in STEPS], atol=1e-6)


def test_a_quarter_of_a_cosine_and_progress_beyond_the_end():
    at = lambda *args: [float(optimizers.decay(*args[:1], p, *args[1:])) for p in (-1.0, 0.0, 0.5, 1.0, 2.0)]
    np.testing.assert_allclose(at("quarter_cosine"), [1, 1, 0.5**0.5, 0, 0], atol=1e-6)
    np.testing.assert_allclose(at("linear", 0.5), [1, 1, 0.75, 0.5, 0.5], atol=1e-6)


def test_warm_up():
    np.testing.assert_allclose([optimizers.linear_warmup(step, 4) for step in range(6)], [0.25, 0.5, 0.75, 1, 1, 1])
    assert optimizers.linear_warmup(0, 0) == 1


def test_a_step_keeps_dtypes_under_strict_promotion():
    params = {"w": jnp.ones(3, jnp.bfloat16), "b": jnp.zeros(())}
    optimizer = optax.adamw(optax.linear_schedule(1e-1, 0.0, 10))
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        after, _ = optimizers.update(optimizer, params, optimizers.init(optimizer, params), params)
    assert jax.tree.map(lambda x: (x.dtype, x.shape), after) == jax.tree.map(lambda x: (x.dtype, x.shape), params)
    assert float(after["w"][0]) < 1
