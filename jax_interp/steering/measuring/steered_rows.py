"""Rows of tokens at several strengths, as few compiled programs.

Each row stands once in a batch for each strength. Vectors and strengths are data, so another vector or strength runs
the same program. The rows of a batch have similar lengths, and their number bounds the memory.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.processes import on_host
from jax_interp.models.sharding import rules_for
from jax_interp.probes.length_batches import LengthBatch, length_batches
from jax_interp.probes.text_reader import mesh_of_leaves
from jax_interp.steering.measuring.placing import check_every_row
from jax_interp.steering.vector import Steering
from jax_interp.surgery import Model
from jax_interp.training.meshes import row_shards
from jax_interp.training.placement import automatic, placed, replicated

OnBatch = Callable[[int, int], None]
QUIET: OnBatch = lambda done, total: None


@dataclasses.dataclass(frozen=True)
class Batching:
    """How rows are put into batches.

    Args:
      rows: the number of rows in one forward pass. A row at another strength is another row.
      place: a mesh on which the model is placed, with the batches split by rows. None: the mesh that the model is on,
        if it is on one.
      on_batch: called with (rows done, rows) after each batch.
    """

    rows: int = 32
    place: Mesh | None = None
    on_batch: OnBatch = QUIET


BATCHING = Batching()


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Rows of tokens, padded on the right.

    Args:
      tokens: the token ids.
      mask: True at real tokens.
      steered: the tokens at which edits act. None: all.
      by_token: further arrays with one entry for each token.
      by_row: further arrays with one entry for each row.
    """

    tokens: Int[np.ndarray, "row pos"]
    mask: Bool[np.ndarray, "row pos"]
    steered: Bool[np.ndarray, "row pos"] | None = None
    by_token: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    by_row: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def inputs(self, rows: np.ndarray, length: int, masked: bool) -> dict[str, Any]:
        """The arrays of some rows, cut to a length."""
        found: dict[str, Any] = {"tokens": self.tokens[rows, :length]}
        found["mask"] = self.mask[rows, :length] if masked else None
        found["steered"] = None if self.steered is None else self.steered[rows, :length]
        found |= {name: array[rows, :length] for name, array in self.by_token.items()}
        return found | {name: array[rows] for name, array in self.by_row.items()}


def padded_rows(sequences: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Sequences as one array, padded on the right with token 0: (tokens, mask)."""
    length = max(map(len, sequences))
    tokens, mask = np.zeros((len(sequences), length), np.int32), np.zeros((len(sequences), length), bool)
    for row, ids in enumerate(sequences):
        tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
    return tokens, mask


def checked_strengths(strengths: Sequence[float], *, least: int = 1) -> Float[np.ndarray, " strength"]:
    """The strengths as an array.

    Raises:
      UserError: there are fewer different ones than `least`, one stands twice, or one is not finite.
    """
    found = np.asarray(strengths, np.float64)
    if found.ndim != 1 or not np.isfinite(found).all() or len(set(found.tolist())) != found.size or len(found) < least:
        raise UserError(f"give at least {least} different finite strengths, not {list(strengths)}")
    return found


def at_strengths(
    program: Callable[..., dict[str, Array]],
    model: Model,
    steering: Steering,
    rows: Rows,
    strengths: Float[np.ndarray, " strength"],
    batching: Batching = BATCHING,
) -> dict[str, np.ndarray]:
    """What a program computes of each row at each strength.

    Args:
      program: a jitted function `(model, steering, strength [row], inputs) -> {name: [row, ...]}`, where `inputs` are
        the arrays of `Rows.inputs`. Its results have the same shape for every length.
      model: the model.
      steering: the steering. It has no entries for the rows of a batch.
      rows: the rows.
      strengths: the strengths.
      batching: how rows are put into batches.

    Returns:
      For each name, an array `[row, strength, ...]`.

    Raises:
      UserError: a token id is outside the vocabulary, or the steering belongs to the rows of one batch.
    """
    check_every_row(steering)
    if (check := getattr(model, "check_inputs", None)) is not None:
        check(rows.tokens, mask=rows.mask)
    takes_mask = takes(model, "mask")
    place = mesh_of_leaves(model) if batching.place is None else batching.place
    n, count = len(rows.tokens), len(strengths)
    of_row, of_strength = np.divmod(np.arange(n * count), count)
    ways = 1 if place is None else row_shards(place)
    batch = -(-batching.rows // ways) * ways
    some = length_batches(rows.mask[of_row], batch, multiple=ways, exact=not takes_mask)
    masked = takes_mask and not rows.mask.all()

    def inputs(number: int) -> tuple[Any, Any]:
        one: LengthBatch = some[number]
        own = rows.inputs(of_row[one.filled], one.length, masked)
        return strengths[of_strength[one.filled]].astype(np.float32), own

    out: dict[str, np.ndarray] = {}
    done = 0
    with placed(place, rules_for) as there:
        own_model = there.frozen(model, () if place is None else rules_for(model))
        own_steering = there.frozen(steering, () if place is None else replicated(steering))
        batch_at = there.batches(inputs)
        for number, one in enumerate(some):
            found = program(own_model, own_steering, *batch_at(number))
            for name, value in found.items():
                value = on_host(value)[: len(one.rows)]
                if name not in out:
                    out[name] = np.empty((n * count, *value.shape[1:]), np.float64)
                out[name][one.rows] = value
            done += len(one.rows)
            batching.on_batch(done, n * count)
    return {name: value.reshape(n, count, *value.shape[1:]) for name, value in out.items()}


def takes(model: Model, keyword: str) -> bool:
    """Whether a model has one of the arguments `mask` and `last_only`. Nothing is computed."""
    shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "dtype") else leaf
    leaves, structure = jax.tree.flatten(jax.tree.map(shape, model))
    return keyword in _taken(structure, tuple(leaves))


@functools.lru_cache(maxsize=64)
def _taken(structure: Any, leaves: tuple[Any, ...]) -> frozenset[str]:
    """The optional arguments of a model. Tracing a model takes long, so that the answer is kept."""
    tokens, mask = jax.ShapeDtypeStruct((1, 2), jnp.int32), jax.ShapeDtypeStruct((1, 2), jnp.bool_)
    names = {"mask", "last_only"}
    while names:
        arrays = {"mask": mask} if "mask" in names else {}
        rest = {"last_only": True} if "last_only" in names else {}
        run = functools.partial(lambda rest, model, tokens, **more: model(tokens, **more, **rest), rest)
        try:
            jax.eval_shape(automatic(run), jax.tree.unflatten(structure, leaves), tokens, **arrays)
            break
        except TypeError as error:  # of Python, for a keyword that a function does not have
            unknown = {name for name in names if f"unexpected keyword argument '{name}'" in str(error)}
            if not unknown:
                raise
            names -= unknown
    return frozenset(names)
