"""How well and how sparsely a dictionary reconstructs a set of activations, streamed.

Over the T kept rows x with codes z and reconstructions x̂ (a decoder row is d_i; a transcoder's x is what it should
write):

    l0          mean over rows of #{i: z_i ≠ 0}
    l1          mean of Σ |z_i|;  l1_weighted: of Σ |z_i| ‖d_i‖, the same for a latent rescaled against its decoder row
    sse         mean of ‖x - x̂‖²;  mse_d = sse / d
    fvu         Σ ‖x - x̂‖² / Σ ‖x - x̄‖², x̄ the mean of these very rows. Explained variance is 1 - fvu.
    cosine      mean of x·x̂ / (‖x‖ ‖x̂‖);  l2_ratio: mean of ‖x̂‖ / ‖x‖; both over the rows with ‖x‖ > 1e-6
    gamma       Σ ‖x̂‖² / Σ x·x̂ (Rajamanoharan et al. 2024, v2 eq. 10): 1 unbiased, below 1 shrunk; the best single
                rescaling of x̂ is 1 / gamma

published.py has what other libraries call by these names.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jax_interp.dictionaries.evaluation import totals
from jax_interp.dictionaries.evaluation.density import NEVER, Density, density_of, first_fired

__all__ = ["Density", "Reconstruction", "add_sums", "density_of", "reconstruction_of", "sums_of_batch"]

Sums = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    tokens: int
    l0: float
    l1: float
    l1_weighted: float | None
    sse: float
    mse_d: float
    fvu: float
    cosine: float
    l2_ratio: float
    gamma: float


def output(dictionary: Any, x: Float[Array, "row d"], z: Float[Array, "row feature"]) -> Float[Array, "row d_out"]:
    """What the dictionary makes of `x`, whose codes are `z`: decode(z), and x W_skip where it has a skip. One whose
    skip is no single matrix has an `output(x, z)` of its own."""
    if hasattr(dictionary, "output"):
        return dictionary.output(x, z)
    y_hat, skip = dictionary.decode(z), getattr(dictionary, "W_skip", None)
    return y_hat if skip is None else y_hat + x.astype(skip.dtype) @ skip


def sums_of_batch(
    dictionary: Any,
    x: Float[Array, "row d"],
    keep: Bool[Array, " row"],
    shift: Float[Array, " d_out"],
    y: Float[Array, "row d_out"] | None = None,
) -> Sums:
    """What one batch adds to the totals, in float32 on the device. Rows not kept add nothing. `y` is what a transcoder
    should write; without it the dictionary should write `x`, and x is y below.

    Second moments of y are taken about `shift` (any vector near the mean): taken about 0 their difference from the
    squared mean would lose the digits that matter where the mean is large.
    """
    x = x.astype(jnp.float32)
    z = dictionary.encode(x)
    y_hat = output(dictionary, x, z).astype(jnp.float32)
    y = x if y is None else y.astype(jnp.float32)
    z = jnp.abs(z.astype(jnp.float32))
    on = (z != 0) & keep[:, None]

    def total(per_row):
        return jnp.sum(jnp.where(keep, per_row, jnp.zeros_like(per_row)))

    def columns(a):
        return jnp.sum(jnp.where(keep[:, None], a, jnp.zeros_like(a)), axis=0)

    def dot(a, b):
        return jnp.sum(a * b, axis=-1)

    safe = lambda a: jnp.where(a > 0, a, jnp.ones_like(a))
    square, hat_square, cross, error = dot(y, y), dot(y_hat, y_hat), dot(y, y_hat), y - y_hat
    norm, norm_hat, sse = jnp.sqrt(square), jnp.sqrt(hat_square), dot(error, error)
    centred = y - jnp.broadcast_to(shift, y.shape)
    from_mean = y - jnp.broadcast_to(kept_mean(y, keep), y.shape)
    some = keep & (norm > 1e-6)
    sums = {
        "l0": jnp.sum(on, dtype=jnp.int32),
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
        "sse_of_variance": total(sse / safe(dot(from_mean, from_mean))),
        "sse_of_square": total(sse / safe(square)),
        "cross_of_square": total(cross / safe(square)),
    }
    if hasattr(dictionary, "W_dec"):
        rows = dictionary.W_dec.astype(jnp.float32)
        sums["l1_weighted"] = total(z @ jnp.sqrt(dot(rows, rows)))
    return sums


def add_sums(total: Sums | None, batch: Sums) -> Sums:
    """Totals in float64 and int64 on the host."""
    both, first = totals.add(total, batch), np.asarray(batch["first_fired"], np.int64)
    first = np.where(first == NEVER, np.iinfo(np.int64).max, first + (0 if total is None else total["tokens"]))
    both["first_fired"] = first if total is None else np.minimum(total["first_fired"], first)
    return both


def less_sums(total: Sums, part: Sums) -> Sums:
    """`total` without the rows of `part`; when each feature first fired is then not known."""
    return {name: a - part[name] for name, a in total.items() if name != "first_fired"}


@jax.jit
def kept_mean(x: Float[Array, "row d"], keep: Bool[Array, " row"]) -> Float[Array, " d"]:
    """The mean of the rows kept, float32; 0 where none is."""
    kept = jnp.where(keep[:, None], x.astype(jnp.float32), jnp.zeros((), jnp.float32))
    return jnp.sum(kept, axis=0) / jnp.maximum(jnp.sum(keep), 1).astype(jnp.float32)


def mean_of(total: Sums, shift: np.ndarray) -> np.ndarray:
    """x̄, float64 [d]."""
    return np.asarray(shift, np.float64) + total["centred"] / total["tokens"]


def reconstruction_of(total: Sums) -> Reconstruction:
    n, d = int(total["tokens"]), total["centred"].shape[0]
    per_token = lambda name: float(total[name] / n)
    sse = total["sse"].sum()
    return Reconstruction(
        tokens=n,
        l0=per_token("l0"),
        l1=per_token("l1"),
        l1_weighted=per_token("l1_weighted") if "l1_weighted" in total else None,
        sse=float(sse / n),
        mse_d=float(sse / n / d),
        fvu=_ratio(sse, _variance(total).sum()),
        cosine=_ratio(total["cosine"], total["with_direction"]),
        l2_ratio=_ratio(total["l2_ratio"], total["with_direction"]),
        gamma=_ratio(total["hat_square"], total["cross"]),
    )


def fvu_by_value(total: Sums, widths: dict[str, int]) -> dict[str, float]:
    """The FVU of each of several values that stand side by side: that of all together is ruled by the largest."""
    ends = np.cumsum([0, *widths.values()])
    part = lambda columns, i: columns[ends[i] : ends[i + 1]].sum()
    variance = _variance(total)
    return {name: _ratio(part(total["sse"], i), part(variance, i)) for i, name in enumerate(widths)}


def _variance(total: Sums) -> np.ndarray:
    """n times the variance, by column."""
    return total["centred_square"] - total["centred"] ** 2 / total["tokens"]


def _ratio(a: float, b: float) -> float:
    return float(a / b) if b else float("nan")
