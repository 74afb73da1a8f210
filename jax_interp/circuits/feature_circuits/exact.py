"""Exact effects of features and errors: each is ablated in a run of its own, many runs in one program."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.circuits.contrast import Contrast, measure
from jax_interp.circuits.feature_circuits.sites import (
    ERROR,
    Ablation,
    Change,
    Sites,
    change,
    corrupted_values,
    latents_of,
    run_with_values,
    with_value,
    written,
)
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.sparse_coder import SparseCoder
from jax_interp.surgery import edit
from jax_interp.surgery.address import Address
from jax_interp.surgery.contract import Model
from jax_interp.surgery.value_tokens import wide


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _OneSite:
    """A site, its value in the clean run, and what the ablation changes there."""

    coder: SparseCoder
    x: Array
    moved: Change
    layer: Array | None


def exact_effects(
    model: Model, contrast: Contrast, sites: Sites, ablation: Ablation, each: bool, rows: int
) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray, np.ndarray]:
    """The effects of some prompts, by one run for each token's latent, and for each error, that the ablation changes.

    Args:
      model: a model.
      contrast: the prompts and the metric.
      sites: the values and their dictionaries.
      ablation: patch or zero.
      each: keep positions apart.
      rows: runs in one program.

    Returns:
      ((Σ over prompts, Σ of squares) of each site's latents, and then of each site's error; the effect of each site's
      whole value on each prompt; the metric of each clean prompt).
    """
    base, values, changes = _changes(model, contrast, sites, ablation)
    latents, errors, whole = [], [], []
    for i, (coder, address) in enumerate(zip(sites.coders, sites.addresses, strict=True)):
        moved = changes[i]
        places = [np.argwhere(np.asarray(moved.latents) != 0)]
        error_changes = np.asarray(moved.error).reshape(*moved.error.shape[:2], -1).any(axis=-1)
        places.append(np.pad(np.argwhere(error_changes), ((0, 0), (0, 1)), constant_values=ERROR))
        parsed = Address.parse(address)
        layer = None if parsed.layers is None else jnp.asarray(int(parsed.layers))
        place = parsed.name if layer is None else f"blocks.0.{parsed.name}"
        program = partial(_exact_rows, model, contrast, _OneSite(coder, values[i], moved, layer), address=place)
        shape = moved.latents.shape
        for cells, array in zip(places, (np.zeros(shape), np.zeros((*shape[:2], 1))), strict=True):
            for start in range(0, len(cells), rows):
                chunk = cells[start : start + rows]
                padded = np.concatenate([chunk, np.repeat(chunk[:1], rows - len(chunk), axis=0)])
                array[tuple(chunk.T)] = np.asarray(program(jnp.asarray(padded), base))[: len(chunk)]
            effects = array if each else array.sum(axis=1)
            (latents if cells is places[0] else errors).append((effects.sum(axis=0), (effects**2).sum(axis=0)))
        errors[-1] = tuple(a[..., 0] for a in errors[-1])
        whole.append(np.asarray(_whole(model, contrast, values[i], moved.value, layer, address=place) - base))
    return latents + errors, np.stack(whole), np.asarray(base)


@partial(jax.jit, static_argnames="ablation")
def _changes(model: Model, contrast: Contrast, sites: Sites, ablation: Ablation):
    logits, values = run_with_values(model, contrast.clean, contrast, sites)
    others = corrupted_values(model, contrast, sites, ablation)
    moved = [change(c, x, o, contrast.mask) for c, x, o in zip(sites.coders, values, others, strict=True)]
    return contrast.metric(logits), values, moved


@partial(jax.jit, static_argnames="address")
def _whole(model: Model, contrast: Contrast, x: Array, moved: Array, layer: Array | None, *, address: str) -> Array:
    return measure(edit(model, with_value(address, wide(x) + moved, layer)), contrast.clean, contrast)


@partial(jax.jit, static_argnames="address")
def _exact_rows(
    model: Model,
    contrast: Contrast,
    one: _OneSite,
    cells: Int[Array, "row 3"],
    base: Float[Array, " prompt"],
    *,
    address: str,
) -> Float[Array, " row"]:
    """The effect of each row's node (prompt, pos, feature or ERROR)."""
    prompt, pos, feature = cells.T
    coder, moved = one.coder, one.moved
    token = one.x[prompt, pos][None]
    latents = latents_of(coder, token)
    number = jnp.arange(latents.shape[-1])[None, None, :] == feature[None, :, None]
    edited = latents + jnp.where(number, moved.latents[prompt, pos][None], jnp.zeros_like(latents))
    by_latent = (written(coder, token, edited) - written(coder, token, latents))[0]
    is_error = (feature == ERROR).reshape(-1, *(1,) * (by_latent.ndim - 1))
    delta = jnp.where(is_error, moved.error[prompt, pos], by_latent)
    value = wide(one.x[prompt]).at[jnp.arange(len(cells)), pos].add(delta)
    rows = contrast.rows(prompt)
    return measure(edit(model, with_value(address, value, one.layer)), rows.clean, rows) - base[prompt]
