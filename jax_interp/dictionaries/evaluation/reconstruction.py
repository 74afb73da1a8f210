"""How well and how sparsely a dictionary reconstructs a set of activations, computed batch by batch.

Below, x is the value that the dictionary should write (for an SAE, its input), x̂ is the value that it writes, z are
its latents, and d_i is the decoder row of feature i. Means are over the rows that are kept. Other libraries use some of
these names for other figures: see published.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jax_interp.dictionaries.evaluation.batch_sums import add_batch
from jax_interp.dictionaries.evaluation.sparsity import NEVER, first_fired
from jax_interp.dictionaries.sparse_coder import EncoderDecoder, as_sparse_coder

Sums = dict[str, np.ndarray]
EPS = float(np.finfo(np.float32).eps)


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Figures of the reconstruction of a set of activations, and of the sparsity of its code."""

    tokens: int
    """Number of rows."""
    l0: float
    """Mean number of latents that are not 0."""
    l1: float
    """Mean of Σ |z_i|."""
    l1_weighted: float | None
    """Mean of Σ |z_i| ‖d_i‖. It does not change if a latent is multiplied by a number and its decoder row is divided by
    it. None: features have no fixed direction."""
    sse: float
    """Mean of ‖x - x̂‖²."""
    mse_d: float
    """sse / d, where d is the width of x."""
    fvu: float
    """Fraction of variance unexplained: Σ ‖x - x̂‖² / Σ ‖x - x̄‖², where x̄ is the mean of these rows. 1 - fvu is the
    explained variance. NaN if the rows are equal, up to the rounding of float32."""
    cosine: float
    """Mean of x·x̂ / (‖x‖ ‖x̂‖), over the rows with ‖x‖ > 1e-6."""
    l2_ratio: float
    """Mean of ‖x̂‖ / ‖x‖, over the same rows."""
    gamma: float
    """Σ ‖x̂‖² / Σ x·x̂ (Rajamanoharan et al. 2024, v2, eq. 10). It is 1 if x̂ is unbiased, and below 1 if x̂ is too
    small. Multiplying x̂ by 1 / gamma gives the smallest squared error."""

    @classmethod
    def from_sums(cls, total: Mapping[str, np.ndarray]) -> Self:
        """Compute the figures from the sums of `batch_sums` over batches."""
        n, d = int(total["tokens"]), total["centred"].shape[0]
        per_token = lambda name: float(total[name] / n)
        sse = total["sse"].sum()
        return cls(
            tokens=n,
            l0=float(total["fires"].sum() / n),
            l1=per_token("l1"),
            l1_weighted=per_token("l1_weighted") if "l1_weighted" in total else None,
            sse=float(sse / n),
            mse_d=float(sse / n / d),
            fvu=_ratio(sse, variances(total).sum()),
            cosine=_ratio(total["cosine"], total["with_direction"]),
            l2_ratio=_ratio(total["l2_ratio"], total["with_direction"]),
            gamma=_ratio(total["hat_square"], total["cross"]),
        )


def batch_sums(
    dictionary: EncoderDecoder,
    x: Float[Array, "row d"],
    keep: Bool[Array, " row"],
    shift: Float[Array, " d_out"],
    y: Float[Array, "row d_out"] | None = None,
) -> dict[str, Array]:
    """The contribution of one batch to the sums, in float32 on the device.

    Args:
      dictionary: the dictionary to measure.
      x: its input.
      keep: a mask of rows. Rows where it is False add nothing.
      shift: a vector near the mean of `y`, subtracted before second moments are computed. Without it, a large mean
        would make the variance imprecise.
      y: the value that the dictionary should write. None: the same as `x`.
    """
    x = x.astype(jnp.float32)
    coder = as_sparse_coder(dictionary)
    z = coder.encode(x)
    y_hat = coder.output(x, z).astype(jnp.float32)
    y = x if y is None else y.astype(jnp.float32)
    z = jnp.abs(z.astype(jnp.float32))
    on = (z != 0) & keep[:, None]

    total, columns, dot = partial(_kept_total, keep), partial(_kept_columns, keep), _row_dot
    safe = lambda a: jnp.where(a > 0, a, jnp.ones_like(a))
    square, hat_square, cross, error = dot(y, y), dot(y_hat, y_hat), dot(y, y_hat), y - y_hat
    norm, norm_hat, sse = jnp.sqrt(square), jnp.sqrt(hat_square), dot(error, error)
    centred = y - jnp.broadcast_to(shift, y.shape)
    from_mean = y - jnp.broadcast_to(masked_mean(y, keep), y.shape)
    spread, some = dot(from_mean, from_mean), keep & (norm > 1e-6)
    apart = keep & (spread > 1e-10 * square)  # the mean itself is rounded
    sums = {
        "l1": total(jnp.sum(z, axis=-1)),
        "sse": columns(error * error),
        "centred": columns(centred),
        "centred_square": columns(centred * centred),
        "cosine": total(jnp.where(some, cross / safe(norm * norm_hat), jnp.zeros_like(norm))),
        "l2_ratio": total(jnp.where(some, norm_hat / safe(norm), jnp.zeros_like(norm))),
        "with_direction": jnp.sum(some, dtype=jnp.int32),
        "hat_square": total(hat_square),
        "cross": total(cross),
        "fires": jnp.sum(on, axis=0, dtype=jnp.int32),
        "first_fired": first_fired(on, keep),
        "tokens": jnp.sum(keep, dtype=jnp.int32),
        # only for published.py
        "square": columns(y * y),
        "error": columns(error),
        "error_norm": total(jnp.sqrt(sse)),
        "sse_of_variance": total(jnp.where(apart, sse / safe(spread), jnp.zeros_like(sse))),
        "with_spread": jnp.sum(apart, dtype=jnp.int32),
        "sse_of_square": total(jnp.where(some, sse / safe(square), jnp.zeros_like(sse))),
        "cross_of_square": total(jnp.where(some, cross / safe(square), jnp.zeros_like(sse))),
    }
    if (directions := coder.directions()) is not None:
        rows = directions.astype(jnp.float32)
        sums["l1_weighted"] = total(z @ jnp.sqrt(dot(rows, rows)))
    return sums


def _kept_total(keep: Bool[Array, " row"], per_row: Float[Array, " row"]) -> Float[Array, ""]:
    return jnp.sum(jnp.where(keep, per_row, jnp.zeros_like(per_row)))


def _kept_columns(keep: Bool[Array, " row"], a: Float[Array, "row d"]) -> Float[Array, " d"]:
    return jnp.sum(jnp.where(keep[:, None], a, jnp.zeros_like(a)), axis=0)


def _row_dot(a: Float[Array, "row d"], b: Float[Array, "row d"]) -> Float[Array, " row"]:
    return jnp.sum(a * b, axis=-1)


def add_batch_sums(total: Sums | None, batch: dict[str, Array]) -> Sums:
    """Add one batch to the sums, in float64 and int64 on the host."""
    both, first = add_batch(total, batch), np.asarray(batch["first_fired"], np.int64)
    first = np.where(first == NEVER, np.iinfo(np.int64).max, first + (0 if total is None else total["tokens"]))
    both["first_fired"] = first if total is None else np.minimum(total["first_fired"], first)
    return both


def subtract_sums(total: Sums, part: Sums) -> Sums:
    """Subtract the sums of some rows. The result has no `first_fired`, because it cannot be subtracted."""
    return {name: a - part[name] for name, a in total.items() if name != "first_fired"}


@jax.jit
def masked_mean(x: Float[Array, "row d"], keep: Bool[Array, " row"]) -> Float[Array, " d"]:
    """The mean of the kept rows, in float32. It is 0 if no row is kept."""
    kept = jnp.where(keep[:, None], x.astype(jnp.float32), jnp.zeros((), jnp.float32))
    return jnp.sum(kept, axis=0) / jnp.maximum(jnp.sum(keep), 1).astype(jnp.float32)


def mean_from_sums(total: Sums, shift: np.ndarray) -> np.ndarray:
    """The mean of the value that should be written, in float64."""
    return np.asarray(shift, np.float64) + total["centred"] / total["tokens"]


def fvu_by_value(total: Sums, widths: dict[str, int]) -> dict[str, float]:
    """The FVU of each of several values that are side by side. In the FVU of all values together, the longest values
    count most.

    Args:
      total: the sums over batches.
      widths: the width of each value by name, in the order of the columns.
    """
    ends = np.cumsum([0, *widths.values()])
    part = lambda columns, i: columns[ends[i] : ends[i + 1]].sum()
    variance = variances(total)
    return {name: _ratio(part(total["sse"], i), part(variance, i)) for i, name in enumerate(widths)}


def variances(total: Mapping[str, np.ndarray]) -> np.ndarray:
    """n times the variance, by column. It is 0 in a column whose values differ by less than float32 can tell."""
    variance = total["centred_square"] - total["centred"] ** 2 / total["tokens"]
    rounding = np.maximum(EPS**2 * total["square"], 8 * EPS * total["centred_square"])
    return np.where(variance > rounding, variance, 0.0)


def _ratio(a: float | np.ndarray, b: float | np.ndarray) -> float:
    return float(a / b) if b else float("nan")
