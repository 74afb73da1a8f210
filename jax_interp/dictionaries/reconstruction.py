"""How well and how sparsely a dictionary reconstructs a set of activations, streamed.

Over the T kept rows x with codes z and reconstructions x̂ (a decoder row is d_i):

    l0          mean over rows of #{i: z_i ≠ 0}
    l1          mean of Σ |z_i|;  l1_weighted: of Σ |z_i| ‖d_i‖, the same for a latent rescaled against its decoder row
    sse         mean of ‖x - x̂‖²;  mse_d = sse / d
    fvu         Σ ‖x - x̂‖² / Σ ‖x - x̄‖², x̄ the mean of these very rows. Explained variance is 1 - fvu.
    cosine      mean of x·x̂ / (‖x‖ ‖x̂‖);  l2_ratio: mean of ‖x̂‖ / ‖x‖
    gamma       Σ ‖x̂‖² / Σ x·x̂ (Rajamanoharan et al. 2024, v2 eq. 10): 1 unbiased, below 1 shrunk; the best single
                rescaling of x̂ is 1 / gamma

Two published variants of fvu differ: taking the mean of E[x_d²] over d for the squared mean (it can exceed 1), and
centring the residual as well (blind to a constant error).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

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


@dataclasses.dataclass(frozen=True)
class Density:
    """How often features fire. `dead` counts those that fired on none of the `window` tokens: with a longer window
    fewer are dead, so figures with different windows are not comparable. The histogram is over the others' log10 of the
    fraction of tokens they fire on; `counts[i]` lie in [log10_edges[i], log10_edges[i + 1])."""

    features: int
    window: int
    dead: int
    above_1_percent: int
    above_10_percent: int
    log10_edges: list[float]
    counts: list[int]


def sums_of_batch(
    dictionary: Any, x: Float[Array, "row d"], keep: Bool[Array, " row"], shift: Float[Array, " d"]
) -> Sums:
    """What one batch adds to the totals, in float32 on the device. Rows not kept add nothing.

    Second moments of x are taken about `shift` (any vector near the mean): taken about 0 their difference from the
    squared mean would lose the digits that matter where the mean is large.
    """
    x = x.astype(jnp.float32)
    z = dictionary.encode(x)
    x_hat = dictionary.decode(z).astype(jnp.float32)
    z = jnp.abs(z.astype(jnp.float32))
    on = (z != 0) & keep[:, None]

    def total(per_row):
        return jnp.sum(jnp.where(keep, per_row, jnp.zeros_like(per_row)))

    def dot(a, b):
        return jnp.sum(a * b, axis=-1)

    norm, norm_hat = jnp.sqrt(dot(x, x)), jnp.sqrt(dot(x_hat, x_hat))
    error, centred = x - x_hat, jnp.where(keep[:, None], x - jnp.broadcast_to(shift, x.shape), jnp.zeros_like(x))
    safe = lambda a: jnp.where(a > 0, a, jnp.ones_like(a))
    sums = {
        "l0": jnp.sum(on, dtype=jnp.int32),
        "l1": total(jnp.sum(z, axis=-1)),
        "sse": total(dot(error, error)),
        "centred": jnp.sum(centred, axis=0),
        "centred_square": total(dot(centred, centred)),
        "cosine": total(dot(x, x_hat) / safe(norm * norm_hat)),
        "l2_ratio": total(norm_hat / safe(norm)),
        "hat_square": total(dot(x_hat, x_hat)),
        "cross": total(dot(x, x_hat)),
        "fires": jnp.sum(on, axis=0, dtype=jnp.int32),
        "tokens": jnp.sum(keep, dtype=jnp.int32),
    }
    if hasattr(dictionary, "W_dec"):
        norms = jnp.sqrt(dot(dictionary.W_dec, dictionary.W_dec)).astype(jnp.float32)
        sums["l1_weighted"] = total(z @ norms)
    return sums


def add_sums(total: Sums | None, batch: Sums) -> Sums:
    """Totals in float64 and int64 on the host."""
    batch = {name: np.asarray(a) for name, a in jax.device_get(batch).items()}
    batch = {name: a.astype(np.int64 if a.dtype.kind == "i" else np.float64) for name, a in batch.items()}
    return batch if total is None else {name: total[name] + a for name, a in batch.items()}


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
    variance = total["centred_square"] - (total["centred"] ** 2).sum() / n
    return Reconstruction(
        tokens=n,
        l0=per_token("l0"),
        l1=per_token("l1"),
        l1_weighted=per_token("l1_weighted") if "l1_weighted" in total else None,
        sse=per_token("sse"),
        mse_d=per_token("sse") / d,
        fvu=_ratio(total["sse"], variance),
        cosine=per_token("cosine"),
        l2_ratio=per_token("l2_ratio"),
        gamma=_ratio(total["hat_square"], total["cross"]),
    )


def density_of(total: Sums, bins_per_decade: int = 4) -> Density:
    n, fires = int(total["tokens"]), total["fires"]
    density = fires[fires > 0] / n
    first = -int(np.ceil(np.log10(max(n, 2))))
    edges = np.linspace(first, 0, -first * bins_per_decade + 1)
    # counted by index, so that a density of exactly 1 falls into the last bin
    place = np.clip(np.searchsorted(edges, np.log10(density), side="right") - 1, 0, len(edges) - 2)
    return Density(
        features=len(fires),
        window=n,
        dead=int((fires == 0).sum()),
        above_1_percent=int((fires > 0.01 * n).sum()),
        above_10_percent=int((fires > 0.1 * n).sum()),
        log10_edges=edges.tolist(),
        counts=np.bincount(place, minlength=len(edges) - 1).tolist(),
    )


def _ratio(a: float, b: float) -> float:
    return float(a / b) if b else float("nan")
