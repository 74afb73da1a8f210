"""Components as matrices, and their singular values: how much of each is of rank one."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.matrices import is_stacked, order_of
from jax_interp.decomposition.strongest import concrete


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Of one matrix: every component's singular values, as many as its rank, in descending order, and the vectors of
    the first: what it mostly reads and writes, the entry of `reads` that is largest in size above zero."""

    values: Float[np.ndarray, "C rank"]
    reads: Float[np.ndarray, "C d_in"]
    writes: Float[np.ndarray, "C d_out"]


def products(model: Decomposed, rank: int) -> dict[str, Float[Array, "*layer C d_in d_out"]]:
    """The components of every entry as matrices, P_c = A_c B_c."""
    found = {}
    for name in model.names:
        V, U = model.of(name).V, model.of(name).U
        V, U = V.reshape(*V.shape[:-1], -1, rank), U.reshape(*U.shape[:-2], -1, rank, U.shape[-1])
        found[name] = jnp.einsum("...icm,...cmo->...cio", V, U)
    return found


def spectra(model: Decomposed, rank: int, names: Collection[str] | None = None) -> dict[str, Spectrum]:
    """Of the matrices of these entries, each by its concrete address (`blocks.0.mlp.up`). None: of all but the twins of
    tied ones, which have the same."""
    found = {}
    names = model.components if names is None else names
    for name, parts in jax.device_get(products(model, rank)).items():
        if name in names:
            for layer, part in enumerate(parts) if is_stacked(name) else [(None, parts)]:
                found[concrete(name, layer)] = _spectrum(np.asarray(part, np.float64), rank)
    return dict(sorted(found.items(), key=lambda item: order_of(item[0])))


def _spectrum(parts: Float[np.ndarray, "C d_in d_out"], rank: int) -> Spectrum:
    left, values, right = np.linalg.svd(parts, full_matrices=False)
    reads, writes = left[:, :, 0], right[:, 0]
    largest = np.take_along_axis(reads, np.abs(reads).argmax(axis=1)[:, None], axis=1)
    sign = np.where(largest < 0, -1.0, 1.0)
    return Spectrum(values[:, :rank], sign * reads, sign * writes)
