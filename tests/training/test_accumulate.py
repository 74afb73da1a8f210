"""Gradient accumulation: the step on the whole batch up to rounding, with less memory."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_interp.core.errors import UserError
from jax_interp.core.leaves import flatten
from jax_interp.models.config import Config
from jax_interp.models.decoder import init
from jax_interp.models.language_modelling import init_state, next_token_loss, train_step
from jax_interp.models.sharding import rules_for
from jax_interp.training import placed
from jax_interp.training.accumulate import join_parts, mean_over_parts, split_parts
from jax_interp.training.collectives import collectives
from jax_interp.training.meshes import make_mesh

CONFIG = Config(n_layers=2, d_model=16, n_heads=2, d_mlp=64, vocab_size=64, n_ctx=32)


@pytest.fixture(scope="module")
def model():
    return init(CONFIG, jax.random.key(0))


def tokens(rows: int = 16):
    return np.random.default_rng(0).integers(0, 64, (rows, 33), np.int32)


def temporary_bytes(compiled: Any) -> int:
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    "parts", [4, pytest.param(2, marks=pytest.mark.slow), pytest.param(16, marks=pytest.mark.slow)]
)
def test_the_gradient_is_that_of_the_whole_batch(model, parts):
    """In float64, so that only an error of the method could be larger than 1e-12."""
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda x: x.astype(jnp.float64), model)
        of_part = lambda tokens: jax.value_and_grad(next_token_loss)(exact, tokens)
        batch = jnp.asarray(tokens())
        (whole, gradient), (value, ours) = of_part(batch), mean_over_parts(of_part, batch, parts)
        np.testing.assert_allclose(value, whole, rtol=1e-12)
        for name, leaf in flatten(gradient).items():
            np.testing.assert_allclose(flatten(ours)[name], leaf, rtol=1e-9, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("save", [None, ()])
def test_a_step_with_accumulation_is_the_step_without(model, save):
    optimizer = optax.sgd(0.5)
    state = init_state(model, optimizer)
    plain, metrics = jax.jit(train_step(optimizer))(state, tokens())
    ours, same = jax.jit(train_step(optimizer, accumulate=4, save=save))(state, tokens())
    np.testing.assert_allclose(same["grad_norm"], metrics["grad_norm"], rtol=1e-5)
    for name, leaf in flatten(plain.model).items():
        np.testing.assert_allclose(flatten(ours.model)[name], leaf, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_temporary_memory_is_that_of_one_part(model):
    optimizer = optax.sgd(0.5)
    step = lambda parts: jax.jit(train_step(optimizer, accumulate=parts))
    lowered = lambda parts: step(parts).lower(init_state(model, optimizer), tokens(64))
    used = {parts: temporary_bytes(lowered(parts).compile()) for parts in (1, 4, 16)}
    assert used[4] < 0.4 * used[1]
    assert used[16] < 0.2 * used[1]


@pytest.mark.parametrize("sizes", [{"data": 4}, {"replicate": 2, "data": 2}])
def test_on_a_mesh_the_gradient_is_summed_over_devices_as_often_as_without(model, sizes):
    """A part has rows of every device, so the rows stay where they are."""
    mesh, optimizer = make_mesh(**sizes), optax.sgd(0.5)
    with placed(mesh, rules_for) as there:
        state = there.state(init_state(model, optimizer))
        batch = there.batches(lambda _: tokens())(0)
        step = jax.jit(train_step(optimizer, accumulate=4))
        rows = collectives(step.lower(state, batch).compile(), mesh)
        moved, _ = step(state, batch)
    assert {row.kind for row in rows} == {"all-reduce"}
    alone, _ = jax.jit(train_step(optimizer))(init_state(model, optimizer), tokens())
    for name, leaf in flatten(alone.model).items():
        np.testing.assert_allclose(flatten(moved.model)[name], leaf, atol=1e-6, err_msg=name)


def test_parts_are_put_together_again():
    batch = {"x": jnp.arange(24).reshape(12, 2), "y": jnp.arange(12)}
    jax.tree.map(np.testing.assert_array_equal, join_parts(split_parts(batch, 3)), batch)
    assert split_parts(batch, 3)["y"][1].tolist() == [1, 4, 7, 10]


def test_parts_that_are_not_equal_are_refused(model):
    with pytest.raises(UserError, match="a batch of 16 rows cannot be cut into 3 equal parts"):
        mean_over_parts(lambda x: jnp.mean(x), jnp.zeros((16, 2)), 3)
    with jax.set_mesh(make_mesh(data=8, explicit=False)), pytest.raises(UserError, match="split over 8 devices"):
        mean_over_parts(lambda x: jnp.mean(x), jnp.zeros((16, 2)), 4)
