"""Dictionaries inside the forward pass of a model, in training."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.surgery import ScopedEdit, Site


@register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainingSplice(ScopedEdit):
    """The `Splice` edit in training.

    It uses the code of training, which differs from that of inference for BatchTopK. It names the values that the
    losses need, below the address: x, y_hat, code.0, code.1, … (the leaves of the code).

    Attributes:
      dictionary: a dictionary for scaled values.
      scale: the factor on the value.
      rows: the flat position of each row that the dictionary reads (`kept_rows`).
      kept: the number of kept positions. The first `kept` rows are these positions, and their values are replaced. The
        other rows repeat kept positions, so that shapes do not depend on the mask.
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
        places = jnp.where(first, self.rows, self.rows.size)  # an index past the end is dropped
        written = (y_hat / self.scale).astype(value.dtype)
        return flat.at[places].set(written, mode="drop").reshape(value.shape)


def kept_rows(keep: Bool[Array, "seq pos"], key: Key[Array, ""]) -> tuple[Int[Array, " row"], Int[Array, ""]]:
    """(flat positions of rows, number of kept positions). There are as many rows as `keep` has positions.

    The kept positions come first, in order. The other rows repeat kept positions, starting at a random one. If all
    positions are kept, the result is 0, 1, 2, …
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
