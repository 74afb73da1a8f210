"""Dictionaries inside the model's forward pass while they are trained: which rows they see, and their codes by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.surgery import ScopedEdit


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainingSplice(ScopedEdit):
    """`Splice` as it is trained: the code of a batch where that differs from inference (BatchTopK), and everything that
    the losses are about named below the address: x, y_hat, code.0, … (the leaves of the code).

    `rows` are the positions that the dictionary sees, in the order of its rows, with `kept` of them first that are
    replaced; the others are seen again, so that every row is a kept one and shapes do not depend on the mask.
    """

    dictionary: Dictionary
    scale: Float[Array, ""]
    rows: Int[Array, " row"]
    kept: Int[Array, ""]

    def __call__(self, value: Array, site: Any) -> Array:
        flat = value.reshape(self.rows.size, -1)
        x = flat[self.rows].astype(self.scale.dtype) * self.scale
        code = self.dictionary.training_code(x)
        y_hat = self.dictionary.reconstruct(code, x)
        for name, part in {"x": x, "y_hat": y_hat}.items():
            site(name, part, "row d")
        for i, leaf in enumerate(jax.tree.leaves(code)):
            site(f"code.{i}", leaf, " ".join(("row", "entry")[: leaf.ndim]))
        first = jnp.arange(self.rows.size) < self.kept
        places = jnp.where(first, self.rows, self.rows.size)  # one past the end: dropped
        written = (y_hat / self.scale).astype(value.dtype)
        return flat.at[places].set(written, mode="drop").reshape(value.shape)


def kept_rows(keep: Bool[Array, "seq pos"], key: Key[Array, ""]) -> tuple[Int[Array, " row"], Int[Array, ""]]:
    """(as many indices as there are positions, how many are kept): the kept ones in order, then as many of them again,
    from a random one on, as are not kept. With nothing left out: 0, 1, 2, …"""
    flat = keep.reshape(-1)
    n, i = jnp.sum(flat, dtype=jnp.int32), jnp.arange(flat.size, dtype=jnp.int32)
    order, some = jnp.argsort(~flat, stable=True).astype(jnp.int32), jnp.maximum(n, 1)
    again = (jax.random.randint(key, (), 0, some, jnp.int32) + i - n) % some
    return order[jnp.where(i < n, i, again)], n


def code_structure(dictionary: Dictionary, rows: int) -> Any:
    """The structure of the code of so many rows."""
    x = jax.ShapeDtypeStruct((rows, dictionary.d), dictionary.W_enc.dtype)
    return jax.tree.structure(jax.eval_shape(type(dictionary).training_code, dictionary, x))
