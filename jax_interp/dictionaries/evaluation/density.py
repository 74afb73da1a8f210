"""How often features fire, and which never do."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

NEVER = np.iinfo(np.int32).max  # stands for "did not fire" in `first_fired`


@dataclasses.dataclass(frozen=True)
class Density:
    """How often features fire. `dead` counts those that fired on none of the `window` tokens: with a longer window
    fewer are dead, so figures with different windows are not comparable. `dead_by_window[i]` counts those that did not
    fire on the first `windows[i]` tokens, so that a published count can be set beside one of its own window. The
    histogram is over the others' log10 of the fraction of tokens they fire on; `counts[i]` lie in
    [log10_edges[i], log10_edges[i + 1]).

    `l0_share_above_*` is the part of all firings that the features above that density are to blame for (SAEBench's
    "normalized" figures), `l0_share_of_top_*` the part that the densest 0.1, 1 or 10 % of features are.
    """

    features: int
    window: int
    dead: int
    above_1_percent: int
    above_10_percent: int
    log10_edges: list[float]
    counts: list[int]
    windows: list[int]
    dead_by_window: list[int]
    l0_share_above_1_percent: float
    l0_share_above_10_percent: float
    l0_share_of_top_per_mille: float
    l0_share_of_top_1_percent: float
    l0_share_of_top_10_percent: float


def first_fired(on: Bool[Array, "row feature"], keep: Bool[Array, " row"]) -> Int[Array, " feature"]:
    """The number, among the kept rows, of the first on which each feature fires; NEVER where it does not."""
    number = jnp.cumsum(keep, dtype=jnp.int32) - 1
    where = jnp.where(on, number[:, None], jnp.full((), NEVER, jnp.int32))
    return jnp.min(where, axis=0)


def density_of(total: dict[str, Any], bins_per_decade: int = 4) -> Density:
    n, fires = int(total["tokens"]), total["fires"]
    density = fires[fires > 0] / n
    first = -int(np.ceil(np.log10(max(n, 2))))
    edges = np.linspace(first, 0, -first * bins_per_decade + 1)
    # counted by index, so that a density of exactly 1 falls into the last bin
    place = np.clip(np.searchsorted(edges, np.log10(density), side="right") - 1, 0, len(edges) - 2)
    windows = [int(w) for w in 2 ** np.arange(9, 62) if w < n] + [n]
    descending = np.sort(fires)[::-1]
    share = lambda some: float(some.sum() / fires.sum()) if fires.sum() else float("nan")
    top = lambda fraction: share(descending[: max(round(fraction * len(fires)), 1)])
    return Density(
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


@dataclasses.dataclass(frozen=True)
class OfSource:
    """The latents of one source among several: how many are on per token, how many fired on none."""

    l0: float
    dead: int


def density_by_source(total: dict[str, Any], n_sources: int) -> tuple[OfSource, ...]:
    """Of latents that stand side by side, those of each source in a row."""
    n, fires = int(total["tokens"]), total["fires"].reshape(n_sources, -1)
    return tuple(OfSource(float(of_source.sum() / n), int((of_source == 0).sum())) for of_source in fires)
