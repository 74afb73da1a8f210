"""Masks: the factors of each component and of the rest Δ, for each row. Masks are applied as edits.

    masked = edit(model, *edits(masks))          # or masked_output(model, masks, x)

Masks are dicts by entry (`linear1`, `blocks.*.mlp.up`). A matrix without a mask keeps the target's weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jax_interp.core.pytrees import register_dataclass
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.importance.base import PerMatrix
from jax_interp.decomposition.matrices import is_stacked, row_axes
from jax_interp.surgery import Each, Scale, at, edit
from jax_interp.surgery.taps import Edit

Sampling = Literal["continuous", "binomial"]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """The mask of one matrix: `components` `[*layer, batch, ..., C]`, and `delta` `[*layer, batch, ..., 1]` or one
    number."""

    components: Float[Array, "*layer_and_rows C"]
    delta: Float[Array, "*layer_and_rows 1"] | Float[Array, ""]


Masks = Mapping[str, Mask]


def edits(masks: Masks) -> list[Edit]:
    """The edits that apply masks to a decomposed model: `edit(model, *edits(masks))`."""
    found: list[Edit] = []
    for name, mask in masks.items():
        each = Each if is_stacked(name) else lambda fn: fn
        found.append(at(f"{name}.components", each(Scale(mask.components))))  # type: ignore[arg-type]
        found.append(at(f"{name}.delta", each(Scale(mask.delta))))  # type: ignore[arg-type]
    return found


def masked_output(model: Decomposed, masks: Masks, *args: Any, **kwargs: Any) -> Any:
    """The model's output under masks.

    Args:
      model: the decomposed model.
      masks: the masks by entry. A matrix without a mask keeps the target's weights.
      *args: the model's positional arguments.
      **kwargs: the model's keyword arguments.

    Example:
        x = jnp.ones((4, 5))
        off = {"linear1": Mask(jnp.zeros((4, 20)), jnp.zeros(()))}
        y = masked_output(parts, off, x)
    """
    return edit(model, *edits(masks))(*args, **kwargs)


def masks_from_values(values: PerMatrix, delta: float = 0.0) -> dict[str, Mask]:
    """Masks with these values for the components, and one number for every Δ."""
    return {name: Mask(value, jnp.asarray(delta, value.dtype)) for name, value in values.items()}


def stochastic_masks(
    key: Key[Array, ""], importance: PerMatrix, *, delta: bool = True, sampling: Sampling = "continuous"
) -> dict[str, Mask]:
    """Random masks m = g + (1 - g) r (SPD 2025), with a new r for every row, layer and component.

    Args:
      key: random key.
      importance: lower importances g, `[*layer, batch, ..., C]` for each matrix.
      delta: whether there is a Δ component. Its importance is 0, so its mask is r. False: Δ is off.
      sampling: r ~ U[0, 1) ("continuous"), or r ~ Bernoulli(1/2) ("binomial").
    """
    draw = lambda key, shape: (
        jax.random.uniform(key, shape)
        if sampling == "continuous"
        else jax.random.bernoulli(key, 0.5, shape).astype(jnp.float32)
    )
    sources = {}
    for i, (name, g) in enumerate(importance.items()):
        width = g.shape[-1] + delta
        sources[name] = draw(jax.random.fold_in(key, i), (*g.shape[:-1], width))
    return masks_from_sources(importance, sources)


def masks_from_sources(importance: PerMatrix, sources: PerMatrix) -> dict[str, Mask]:
    """Masks m = g + (1 - g) r.

    Args:
      importance: lower importances g, `[*layer, batch, ..., C]` for each matrix.
      sources: r in [0, 1], `[*layer, batch or 1, ..., C]`. If the last axis has C + 1 entries, the last entry is the
        mask of Δ. Otherwise Δ is off.
    """
    found = {}
    for name, g in importance.items():
        C, r = g.shape[-1], sources[name].astype(g.dtype)
        mask = g + (1 - g) * jnp.broadcast_to(r[..., :C], g.shape)
        rest = jnp.broadcast_to(r[..., C:], (*g.shape[:-1], 1)) if r.shape[-1] > C else jnp.zeros((), g.dtype)
        found[name] = Mask(mask, rest)
    return found


def route_masks(masks: Masks, routes: Mapping[str, Bool[Array, "*layer_and_rows"]]) -> dict[str, Mask]:
    """Apply masks only at the rows that are routed to the components. All other rows use the target's weights (mask 1).

    Args:
      masks: the masks by entry.
      routes: by entry, `[*layer, batch, ...]`: True at the rows that are routed to the components.
    """
    found = {}
    for name, mask in masks.items():
        on = routes[name][..., None]
        delta = jnp.broadcast_to(mask.delta, (*mask.components.shape[:-1], 1))
        pick = lambda m, on=on: jnp.where(on, m, jnp.ones_like(m))
        found[name] = Mask(pick(mask.components), pick(delta))
    return found


def subset_routes(key: Key[Array, ""], importance: PerMatrix) -> dict[str, Bool[Array, "*layer_and_rows"]]:
    """For each row, a uniformly random subset of k matrices with k ~ U{1, ..., number of matrices} (VPD 2026)."""
    counts = {name: g.shape[0] if is_stacked(name) else 1 for name, g in importance.items()}
    total = sum(counts.values())
    name, g = next(iter(importance.items()))
    rows = tuple(g.shape[axis] for axis in row_axes(name, g))
    first, second = jax.random.split(key)
    k = jax.random.randint(first, rows, 1, total + 1)
    rank = jnp.argsort(jnp.argsort(jax.random.uniform(second, (total, *rows)), axis=0), axis=0)
    return _split_routes(rank < k[None], counts)


def bernoulli_routes(
    key: Key[Array, ""], importance: PerMatrix, probability: float
) -> dict[str, Bool[Array, "*layer_and_rows"]]:
    """For each row, each matrix is chosen independently with this probability."""
    return {
        name: jax.random.bernoulli(jax.random.fold_in(key, i), probability, g.shape[:-1])
        for i, (name, g) in enumerate(importance.items())
    }


def _split_routes(routes: Bool[Array, "matrix batch ..."], counts: Mapping[str, int]) -> dict[str, Array]:
    found, first = {}, 0
    for name, count in counts.items():
        part = routes[first : first + count]
        found[name] = part if is_stacked(name) else part[0]
        first += count
    return found
