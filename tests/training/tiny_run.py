"""A small run with every kind of state: parameters, Adam, a shuffle buffer, a PRNG key, a cursor, counters.

Imported by the tests, and run by itself as the process that they kill:
    python tiny_run.py RUN_DIRECTORY STEPS CHECKPOINT_EVERY WIDTH
"""

from __future__ import annotations

import dataclasses
import sys

import jax
import jax.numpy as jnp
import optax

from jax_interp.core import optimizers as optimizer
from jax_interp.training import Interrupted, Log, SaveTo, fit

ROWS, BATCH = 64, 16


@dataclasses.dataclass(frozen=True)
class TinyConfig:
    width: int = 16
    learning_rate: float = 1e-2


def initial_state(config: TinyConfig):
    params = {"w": jnp.zeros((config.width, config.width)), "b": jnp.zeros(config.width)}
    return {
        "params": params,
        "opt": optimizer.init(optax.adam(config.learning_rate), params),
        "buffer": {"rows": jnp.zeros((ROWS, config.width)), "age": jnp.zeros(ROWS, jnp.int32)},
        "key": jax.random.key(7),
        "cursor": 0,
        "fired": jnp.zeros(config.width, jnp.bool_),
    }


def batch_at(config: TinyConfig):
    """Batch `step` is a function of (seed, step) only."""
    return lambda step: jax.random.normal(jax.random.fold_in(jax.random.key(1), step), (BATCH, config.width))


def make_step(config: TinyConfig):
    """Mix the batch into the buffer, draw from the buffer, take an Adam step on what was drawn."""

    def step(state, batch):
        key, where, draw, noise = jax.random.split(state["key"], 4)
        slots = jax.random.permutation(where, ROWS)[:BATCH]
        rows = state["buffer"]["rows"].at[slots].set(batch)
        age = (state["buffer"]["age"] + 1).at[slots].set(0)
        x = rows[jax.random.permutation(draw, ROWS)[:BATCH]]
        x = x + jnp.float32(0.1) * jax.random.normal(noise, x.shape)

        def loss(params):
            y = x @ params["w"] + params["b"][None]
            return jnp.mean((y - jnp.flip(x, axis=1)) ** 2), y

        (value, y), grads = jax.value_and_grad(loss, has_aux=True)(state["params"])
        params, opt = optimizer.update(optax.adam(config.learning_rate), grads, state["opt"], state["params"])
        fired = state["fired"] | (y > 0).any(0)
        state = {
            "params": params,
            "opt": opt,
            "buffer": {"rows": rows, "age": age},
            "key": key,
            "cursor": state["cursor"] + 1,
            "fired": fired,
        }
        return state, {"loss": value, "buffer": {"oldest": age.max()}, "fired": fired.sum()}

    return jax.jit(step, donate_argnums=0)


def run(directory, steps: int, checkpoint_every: int | None, config: TinyConfig, step=None, keep=3, **log):
    """The same call for every session of the run."""
    return fit(
        step or make_step(config),
        initial_state(config),
        batch_at(config),
        steps=steps,
        run=SaveTo(directory, config, every=checkpoint_every, keep=keep),
        log=Log(**{"every": 1, "quiet": True} | log),
    )


if __name__ == "__main__":
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    where, steps, every, width = sys.argv[1], *map(int, sys.argv[2:5])
    try:
        run(where, steps, every, TinyConfig(width=width))
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
