"""How often features fire, how many are dead, and whether a dictionary is too sparse."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.sparse_coder import as_sparse_coder

NEVER = np.iinfo(np.int32).max  # means "did not fire" in `first_fired`


@dataclasses.dataclass(frozen=True)
class Density:
    """How often features fire. The density of a feature is the fraction of tokens on which it fires."""

    features: int
    """Number of features."""
    window: int
    """Number of tokens that were counted."""
    dead: int
    """Number of features that fired on none of the `window` tokens. It is lower for a longer window, so compare only
    figures with equal windows."""
    above_1_percent: int
    """Number of features that fire on more than 1 % of the tokens."""
    above_10_percent: int
    """Number of features that fire on more than 10 % of the tokens."""
    log10_edges: list[float]
    """Edges of the histogram, in log10 of the density."""
    counts: list[int]
    """counts[i] is the number of features whose log10 density is in [log10_edges[i], log10_edges[i + 1]). Dead features
    are in no bin."""
    windows: list[int]
    """Window lengths in tokens: powers of two from 512 up, and `window`."""
    dead_by_window: list[int]
    """dead_by_window[i] is the number of features that did not fire on the first windows[i] tokens. Compare it with a
    published figure for the same window."""
    l0_share_above_1_percent: float
    """The share of L0 from features that fire on more than 1 % of the tokens (SAEBench's "normalized" figure)."""
    l0_share_above_10_percent: float
    """The share of L0 from features that fire on more than 10 % of the tokens."""
    l0_share_of_top_per_mille: float
    """The share of L0 from the densest 0.1 % of features."""
    l0_share_of_top_1_percent: float
    """The share of L0 from the densest 1 % of features."""
    l0_share_of_top_10_percent: float
    """The share of L0 from the densest 10 % of features."""

    @classmethod
    def from_sums(cls, total: Mapping[str, np.ndarray], bins_per_decade: int = 4) -> Self:
        """Compute the figures from the sums `tokens`, `fires` and `first_fired` of reconstruction.py."""
        n, fires = int(total["tokens"]), total["fires"]
        density = fires[fires > 0] / n
        first = -int(np.ceil(np.log10(max(n, 2))))
        edges = np.linspace(first, 0, -first * bins_per_decade + 1)
        # clipped, so that a density of exactly 1 is in the last bin
        place = np.clip(np.searchsorted(edges, np.log10(density), side="right") - 1, 0, len(edges) - 2)
        windows = [int(w) for w in 2 ** np.arange(9, 62) if w < n] + [n]
        descending = np.sort(fires)[::-1]
        share = lambda some: float(some.sum() / fires.sum()) if fires.sum() else float("nan")
        top = lambda fraction: share(descending[: max(round(fraction * len(fires)), 1)])
        return cls(
            features=len(fires),
            window=n,
            dead=int((fires == 0).sum()),
            above_1_percent=int((fires > 0.01 * n).sum()),
            above_10_percent=int((fires > 0.1 * n).sum()),
            log10_edges=edges.tolist(),
            counts=np.bincount(place, minlength=len(edges) - 1).tolist(),
            windows=windows,
            dead_by_window=[int((total["first_fired"] >= w).sum()) for w in windows],
            l0_share_above_1_percent=share(fires[fires > 0.01 * n]),
            l0_share_above_10_percent=share(fires[fires > 0.1 * n]),
            l0_share_of_top_per_mille=top(0.001),
            l0_share_of_top_1_percent=top(0.01),
            l0_share_of_top_10_percent=top(0.1),
        )


def first_fired(on: Bool[Array, "row feature"], keep: Bool[Array, " row"]) -> Int[Array, " feature"]:
    """For each feature, the index of the first kept row on which it fires, counted among kept rows. NEVER if none."""
    number = jnp.cumsum(keep, dtype=jnp.int32) - 1
    where = jnp.where(on, number[:, None], jnp.full((), NEVER, jnp.int32))
    return jnp.min(where, axis=0)


@dataclasses.dataclass(frozen=True)
class SourceSparsity:
    """The latents of one source of a cross-layer dictionary."""

    l0: float
    """Mean number of its latents that are on, per token."""
    dead: int
    """Number of its latents that fired on no token."""


def sparsity_by_source(total: Mapping[str, np.ndarray], n_sources: int) -> tuple[SourceSparsity, ...]:
    """The figures of each of `n_sources` sources, whose latents are side by side."""
    n, fires = int(total["tokens"]), total["fires"].reshape(n_sources, -1)
    return tuple(SourceSparsity(float(source.sum() / n), int((source == 0).sum())) for source in fires)


def nth_projection(dictionary: Dictionary, rows: Iterable[Float[Array, "row d"]], n: float) -> float:
    """The n-th decoder projection. It shows whether a dictionary is too sparse (Chanin et al. 2025, arXiv:2508.16560).

    If L0 is below the true number of features that are on, a dictionary can lower its squared error by mixing
    correlated features. Each decoder row then contains parts of other features, and projections (x - b_dec)·d_i of
    unrelated inputs are larger. The n-th decoder projection is the (n·rows)-th largest of all projections. Train
    dictionaries at several L0: the one with the smallest value is near the right L0.

    Args:
      dictionary: a dictionary with `W_dec` [feature, d] and `b_dec` [d].
      rows: batches of activations. One value is computed per batch.
      n: the rank per row, from 0 to below the number of features. Use the same n for all dictionaries, about as large
        as the largest L0 that you consider.

    Returns:
      The mean over the batches.

    Raises:
      UserError: `n` is out of range, there are no rows, or the output of the dictionary is not z W_dec + b_dec.

    Example:
        for k, sae in trained.items():
            print(k, nth_projection(sae, rows, n=20))
    """
    if not as_sparse_coder(dictionary).decodes_alone():
        raise UserError(f"the output of a {type(dictionary).__name__} is not z W_dec + b_dec, so it has no projections")
    features = dictionary.W_dec.shape[0]
    if not 0 <= n < features:
        raise UserError(f"n={n}: n must be at least 0 and below the number of features, {features}")
    each = [np.asarray(_projections(dictionary, x)).reshape(-1) for x in rows]
    if not each:
        raise UserError("no rows: give an iterable of [row, d] arrays that has not been used up")
    place = [round(n * len(p) / features) for p in each]
    return float(np.mean([np.partition(p, len(p) - 1 - i)[len(p) - 1 - i] for p, i in zip(each, place)]))


@jax.jit
def _projections(dictionary: Dictionary, x: Float[Array, "row d"]) -> Float[Array, "row feature"]:
    x = x.astype(jnp.float32) - dictionary.b_dec.astype(jnp.float32)[None, :]
    return x @ dictionary.W_dec.astype(jnp.float32).T
