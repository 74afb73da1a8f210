"""Components as matrices, and their singular values."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_interp.core.processes import to_host
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.matrices import address_order, is_stacked, layer_address


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """The singular values of all components in one matrix, and the first pair of singular vectors of each component.

    values: the singular values in descending order, `rank` for each component.
    reads, writes: the first singular vectors. Their sign makes the entry of `reads` with the largest magnitude
      positive.
    """

    values: Float[np.ndarray, "C rank"]
    reads: Float[np.ndarray, "C d_in"]
    writes: Float[np.ndarray, "C d_out"]


def products(model: Decomposed, rank: int) -> dict[str, Float[Array, "*layer C d_in d_out"]]:
    """The components of every matrix, multiplied out: P_c = A_c B_c."""
    found = {}
    for name in model.names:
        V, U = model.of(name).V, model.of(name).U
        V, U = V.reshape(*V.shape[:-1], -1, rank), U.reshape(*U.shape[:-2], -1, rank, U.shape[-1])
        found[name] = jnp.einsum("...icm,...cmo->...cio", V, U)
    return found


def spectra(model: Decomposed, rank: int, names: Collection[str] | None = None) -> dict[str, Spectrum]:
    """The spectra of matrices by address, with one address for each layer (`blocks.0.mlp.up`).

    Args:
      model: the decomposed model.
      rank: the number of neighbouring subcomponents in one component.
      names: entries; None: all entries except twins, which have the same values.
    """
    found = {}
    names = model.components if names is None else names
    for name, parts in to_host(products(model, rank)).items():
        if name in names:
            for layer, part in enumerate(parts) if is_stacked(name) else [(None, parts)]:
                found[layer_address(name, layer)] = _spectrum(np.asarray(part, np.float64), rank)
    return dict(sorted(found.items(), key=lambda item: address_order(item[0])))


def _spectrum(parts: Float[np.ndarray, "C d_in d_out"], rank: int) -> Spectrum:
    left, values, right = np.linalg.svd(parts, full_matrices=False)
    reads, writes = left[:, :, 0], right[:, 0]
    largest = np.take_along_axis(reads, np.abs(reads).argmax(axis=1)[:, None], axis=1)
    sign = np.where(largest < 0, -1.0, 1.0)
    return Spectrum(values[:, :rank], sign * reads, sign * writes)
