"""`PlannedStep`: the step of a trainer, and the shapes that it is called with.

Each trainer has a function `planned(config, model, batch)` beside its step. It returns what the trainer gives to `fit`,
with shapes in place of arrays. Nothing is computed, so a model of any size can be planned on any machine.

    model = load_shapes("gpt2")
    batch = token_batch(8, 256)
    step = planned(config, model, batch)                        # of dictionaries/training/train.py
    plan = plan_step(step, abstract_mesh(data=8, explicit=False), accelerator("h100"))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jax_interp.core.leaves import PyTree, flatten, unflatten
from jax_interp.training.meshes import BATCH, present
from jax_interp.training.sharding import Rules, check_rows, shardings

KINDS = ("model", "trained", "optimizer", "buffer", "state", "batch")
"""The kinds of arguments of a step, in the order in which they are shown."""
Kinds = Callable[[str], str]
"""From the address of a leaf of the state to its kind."""


@dataclasses.dataclass(frozen=True)
class PlannedStep:
    """One step of a trainer, by shapes.

    Attributes:
      step: the function that the trainer gives to `fit`: `step(state, batch, *frozen)`.
      state: the shapes of the state. Its memory is reused by the next state if `donated`.
      batch: the shapes of a batch. Their leading axis is split over `data` and `fsdp`.
      frozen: the shapes of what is read and not changed, and the sharding rules of each.
      rules: the sharding rules of the state.
      kind_of: the kind of each leaf of the state, by its address.
      steps: the number of steps of the run.
      tokens: tokens (or rows) in each step.
      donated: whether the memory of the state is given to the next state.
    """

    step: Callable[..., Any]
    state: PyTree
    batch: PyTree
    frozen: tuple[tuple[PyTree, Rules], ...]
    rules: Rules
    kind_of: Kinds
    steps: int
    tokens: int
    donated: bool = True

    def arguments(self, mesh: Mesh | AbstractMesh | None) -> tuple[PyTree, ...]:
        """The arguments of the step, as shapes with their shardings.

        Args:
          mesh: the mesh. None: shapes without shardings.

        Raises:
          UserError: a mesh axis does not divide the axis of a leaf, or the batch.
        """
        if mesh is None:
            return self.state, self.batch, *(tree for tree, _ in self.frozen)
        batch = _split_batch(self.batch, mesh)  # first, because its error is the simplest
        return (
            placed_shapes(self.state, self.rules, mesh),
            batch,
            *(placed_shapes(tree, rules, mesh) for tree, rules in self.frozen),
        )

    def bytes_by_kind(self, mesh: Mesh | AbstractMesh | None) -> dict[str, int]:
        """The bytes that the arguments of the step occupy on one device, by kind (`KINDS`)."""
        state, batch, *frozen = self.arguments(mesh)
        found: dict[str, int] = dict.fromkeys(KINDS, 0)
        for address, leaf in flatten(state).items():
            found[self.kind_of(address)] += device_bytes(leaf)
        found["batch"] += sum(map(device_bytes, jax.tree.leaves(batch)))
        found["model"] += sum(device_bytes(leaf) for tree in frozen for leaf in jax.tree.leaves(tree))
        return {kind: size for kind, size in found.items() if size}


def placed_shapes(tree: PyTree, rules: Rules, mesh: Mesh | AbstractMesh) -> PyTree:
    """`tree` as shapes with the shardings of the rules."""
    places = flatten(shardings(tree, rules, mesh))
    return unflatten(
        tree,
        {
            name: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype, sharding=places[name])
            for name, leaf in flatten(tree).items()
        },
    )


def _split_batch(batch: PyTree, mesh: Mesh | AbstractMesh) -> PyTree:
    def of_leaf(leaf: Any) -> jax.ShapeDtypeStruct:
        spec = present(BATCH, mesh) if leaf.ndim else PartitionSpec()
        if leaf.ndim:
            check_rows(leaf.shape[0], mesh)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(of_leaf, batch)


def device_bytes(leaf: Any) -> int:
    """The bytes of a leaf on one device. A random key counts its words."""
    leaf = jax.eval_shape(jax.random.key_data, leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    sharding = getattr(leaf, "sharding", None)
    shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
    size = leaf.dtype.itemsize
    for length in shape:
        size *= length
    return size


def token_batch(sequences: int, context: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """The shapes of a batch of text: tokens [seq, pos], and the mask of kept positions."""
    shape = (sequences, context)
    return jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.bool_)
