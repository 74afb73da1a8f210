"""Dictionaries inside the model's forward pass while they are trained."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.surgery import ScopedEdit, Site


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainingSplice(ScopedEdit):
    """`Splice` as it is trained.

    It uses the code that is trained on, which for BatchTopK is not that of inference. It names what the losses need,
    below the address: x, y_hat, code.0, code.1, … (the leaves of the code).

    Attributes:
      dictionary: works on scaled values.
      scale: what the value is multiplied by.
      rows: the flat position of each row that the dictionary reads (`kept_rows`).
      kept: how many rows, the first ones, are positions that are kept. Their values are replaced; the other rows only
        repeat kept positions, so that shapes do not depend on the mask.
    """

    dictionary: Dictionary
    scale: Float[Array, ""]
    rows: Int[Array, " row"]
    kept: Int[Array, ""]

    def __call__(self, value: Array, site: Site) -> Array:
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
    """(positions, how many are kept): as many positions as `keep` has, all of them kept ones.

    First come the kept positions in order. Then they repeat from a random one on, one for each position that is not
    kept. Where all are kept this is 0, 1, 2, …
    """
    flat = keep.reshape(-1)
    n, i = jnp.sum(flat, dtype=jnp.int32), jnp.arange(flat.size, dtype=jnp.int32)
    order, some = jnp.argsort(~flat, stable=True).astype(jnp.int32), jnp.maximum(n, 1)
    again = (jax.random.randint(key, (), 0, some, jnp.int32) + i - n) % some
    return order[jnp.where(i < n, i, again)], n


def code_structure(dictionary: Dictionary, rows: int) -> Any:
    """The tree structure of the code of `rows` rows."""
    x = jax.ShapeDtypeStruct((rows, dictionary.d), dictionary.W_enc.dtype)
    return jax.tree.structure(jax.eval_shape(type(dictionary).training_code, dictionary, x))
