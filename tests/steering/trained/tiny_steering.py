"""A small random model, and texts to train steering on."""

from __future__ import annotations

import dataclasses
from functools import cache

import jax
import numpy as np

from jax_interp.models import Config, init
from jax_interp.steering import Questions
from jax_interp.steering.trained import Completions, train_steering
from jax_interp.training import QUIET

CONFIG = Config(n_layers=2, d_model=16, n_heads=2, d_mlp=32, vocab_size=32, n_ctx=32)


@cache
def model():
    """A decoder whose blocks change the residual stream visibly."""
    return jax.tree.map(lambda w: 4.0 * w if w.ndim > 2 else w, init(CONFIG, jax.random.key(0)))


@cache
def questions(seed: int = 0, count: int = 6) -> Questions:
    """Prompts of different lengths, with random answers of different lengths."""
    rng = np.random.default_rng(seed)
    ids = lambda least, most: tuple(rng.integers(1, 32, rng.integers(least, most + 1)).tolist())
    prompts, matching, other = zip(*((ids(2, 5), ids(1, 3), ids(1, 3)) for _ in range(count)), strict=True)
    return Questions(f"questions {seed}", prompts, matching, other)


def completions(seed: int = 0, count: int = 6) -> Completions:
    asked = questions(seed, count)
    return Completions(asked.prompts, asked.matching)


def losses(concepts, config, **where):
    """The result of a run, and the losses of its members by step, `[step, member]`."""
    records = []
    log = dataclasses.replace(QUIET, every=1, on_record=records.append)
    found = train_steering(model(), concepts, config, log=log, **where)
    return found, np.array([record["members.loss"] for record in records])
