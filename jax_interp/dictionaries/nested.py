"""Decode the first n features of a code, for several n at once. Matryoshka dictionaries need this.

The features between two neighbouring values of n form a level. Each level is decoded once, and the levels are added up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_interp.dictionaries.codes import BatchCode, Code, RowCode
from jax_interp.dictionaries.sparse.products import decode_entries


def decode_nested(
    code: Code, W: Float[Array, "feature d"], ends: Sequence[int] | Int[Array, " prefix"]
) -> list[Float[Array, "row d"]]:
    """Return `z[:, :n] @ W[:n]` for each n in `ends`.

    All prefixes together cost about one decoding. There are two exceptions, where each prefix costs one decoding: on a
    mesh, and where `ends` is traced and the code is dense. (On an accelerator, every code is made dense.)

    Args:
      code: z, in any form.
      W: the decoder.
      ends: numbers of features, ascending; they may be traced.
    """
    no_mesh = jax.sharding.get_abstract_mesh().empty
    if no_mesh and jax.default_backend() == "cpu" and isinstance(code, RowCode | BatchCode):
        levels = _by_entries(code, W, jnp.asarray(ends, jnp.int32))
    elif no_mesh and not isinstance(ends, Array):
        z = code.dense(len(W))
        levels = [z[:, begin:end] @ W[begin:end] for begin, end in zip([0, *ends], ends)]
    else:
        place, begin = jnp.arange(len(W), dtype=jnp.int32), [0, *ends]
        levels = [code.mask_features((place >= begin[i]) & (place < ends[i])).decode(W) for i in range(len(ends))]
    prefixes = levels[:1]
    for level in levels[1:]:
        prefixes.append(prefixes[-1] + level)
    return prefixes


def _by_entries(
    code: RowCode | BatchCode, W: Float[Array, "feature d"], ends: Int[Array, " prefix"]
) -> list[Float[Array, "row d"]]:
    """Decode all levels at once: each pair of a row and a level is one target."""
    if isinstance(code, RowCode):
        n_rows = len(code.values)
        order = jnp.argsort(code.indices, axis=1)
        values, features = (jnp.take_along_axis(a, order, axis=1).reshape(-1) for a in (code.values, code.indices))
        rows = jnp.repeat(jnp.arange(n_rows, dtype=jnp.int32), code.indices.shape[1])
    else:
        n_rows, values, rows, features = code.n_rows, code.values, code.rows, code.features
    # `decode_entries` needs ascending targets. They ascend because entries are sorted by row and then by feature.
    level = jnp.searchsorted(ends, features, side="right").astype(jnp.int32)
    target = jnp.minimum(rows * len(ends) + jnp.minimum(level, len(ends) - 1), n_rows * len(ends))
    values = jnp.where(level < len(ends), values, jnp.zeros((), values.dtype))
    out: Any = decode_entries(values, target, features, W, n_rows * len(ends))
    return [out.reshape(n_rows, len(ends), -1)[:, i] for i in range(len(ends))]
