"""A synthetic world that reads texts: each token is a sample of the world, so that it is known what a text contains."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.dictionaries.evaluation import controls
from jax_interp.dictionaries.evaluation.benchmarks.baselines import Compared, compare
from jax_interp.dictionaries.evaluation.benchmarks.pooled import Place
from jax_interp.toys.synthetic.small_worlds import tree
from jax_interp.toys.synthetic.world import World, WorldModel

KEY = jax.random.key(7)
NUMBERS: Any = SimpleNamespace(
    bos_id=None, encode_batch=lambda texts, bos: [[int(word) for word in text.split()] for text in texts]
)
"""A tokenizer whose texts are numbers."""


def world() -> World:
    return tree(jax.random.key(0))


def place(world: World, context: int = 8) -> Place:
    return Place(WorldModel(world, KEY), "x", NUMBERS, context)


def codes(world: World, n: int) -> np.ndarray:
    """The true features of the tokens 0 to n - 1: [token, feature]."""
    draw = lambda i: world.sample(jax.random.fold_in(KEY, i), 1)[1][0]
    return np.asarray(jax.jit(jax.vmap(draw))(jnp.arange(n)))


def texts(n: int, length: int) -> tuple[list[str], np.ndarray]:
    """n texts of `length` tokens: (texts, tokens [text, pos])."""
    tokens = np.arange(n * length).reshape(n, length)
    return [" ".join(map(str, row)) for row in tokens], tokens


def oracle(world: World) -> Any:
    return controls.oracle(world.directions, world.bias, 0.5)


def compared(world: World, dictionary: Any = None, reseeds: int = 3) -> Compared:
    rows = [world.sample(jax.random.key(9), 512)[0]]
    return compare(jax.random.key(1), oracle(world) if dictionary is None else dictionary, rows, reseeds)


def labels_of(features: np.ndarray, tokens: Sequence[Sequence[int]] | np.ndarray, feature: int) -> list[bool]:
    """Whether the feature is on at some token of each text."""
    return [bool(features[row, feature].any()) for row in np.asarray(tokens)]
