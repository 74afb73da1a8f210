"""Components against directions that are known, and against those of another run."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.decomposition.components import Components
from jax_interp.decomposition.metrics.identity import matched


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Recovery:
    """For each known direction the cosine of the most similar component (`cosine`) and its norm over the direction's
    (`ratio`). MMCS and ML2R are their means (APD 2025)."""

    cosine: Float[Array, " feature"]
    ratio: Float[Array, " feature"]
    owner: Array

    @property
    def mmcs(self) -> Array:
        return jnp.mean(self.cosine)

    @property
    def ml2r(self) -> Array:
        return jnp.mean(self.ratio)


def recovery(
    parts: Float[Array, "C feature d"] | Components, truth: Float[Array, "feature d"], least: float = 0.1
) -> Recovery:
    """Rows of each component `parts[c]` against the rows of `truth`, a matrix `[feature, d]`.

    A component whose row is shorter than `least` times the known one does not take part: a dead component has a
    direction too, and one that happens to fit would be chosen and give a ratio near 0. Where none is long enough, all
    take part. `least=0` is the published definition.
    """
    if isinstance(parts, Components):
        parts = jnp.einsum("fc,cd->cfd", parts.V, parts.U)
    norm, size = jnp.linalg.norm(parts, axis=-1), jnp.linalg.norm(truth, axis=-1)
    tiny = jnp.asarray(1e-30, parts.dtype)
    dots = jnp.einsum("cfd,fd->cf", parts, truth)
    cosine = dots / jnp.maximum(norm * size[None], tiny)
    long_enough = norm >= least * size[None]
    taking_part = jnp.where(long_enough | ~jnp.any(long_enough, axis=0, keepdims=True), cosine, -jnp.inf)
    owner = jnp.argmax(taking_part, axis=0)
    pick = lambda values: jnp.take_along_axis(values, owner[None], axis=0)[0]
    return Recovery(pick(cosine), pick(norm) / jnp.maximum(size, tiny), owner)


def agreement(one: Components, other: Components, least: float = 0.1) -> dict[str, Float[np.ndarray, "*layer"]]:
    """How far two runs found the same: the mean, over components of the first that are at least `least` of its largest,
    of the cosine with their match in the second of V, of U, and of the rank-one products; of each layer where there are
    layers.

    There is one match for all three: one to one, so that the cosines of the products add up to the most. V and U are
    compared there, without their signs, and may have closer ones among other components. A component without a match
    counts as 0.
    """
    shapes = [(c.V.shape[:-1], c.U.shape[:-2] + c.U.shape[-1:]) for c in (one, other)]
    if shapes[0] != shapes[1]:
        (V, U), (other_V, other_U) = shapes
        raise UserError(f"components of matrices of different shapes: {V} to {U[-1]} and {other_V} to {other_U[-1]}")
    arrays = [np.asarray(jax.device_get(a), np.float64) for c in (one, other) for a in (c.V, c.U)]
    if one.V.ndim == 2:
        return {name: np.asarray(value) for name, value in _agreement(least, *arrays).items()}
    layers = [_agreement(least, *layer) for layer in zip(*arrays, strict=True)]
    return {name: np.array([layer[name] for layer in layers]) for name in ("V", "U", "product")}


def _agreement(
    least: float, V: np.ndarray, U: np.ndarray, other_V: np.ndarray, other_U: np.ndarray
) -> dict[str, float]:
    pairs = [(V, U), (other_V, other_U)]
    sizes = [np.linalg.norm(V, axis=0) * np.linalg.norm(U, axis=1) for V, U in pairs]
    keep = [size >= least * size.max() for size in sizes]
    unit = lambda rows: rows / np.maximum(np.linalg.norm(rows, axis=0, keepdims=True), 1e-30)
    units = [(unit(V)[:, k], unit(U.T)[:, k]) for (V, U), k in zip(pairs, keep)]
    v, u = (units[0][i].T @ units[1][i] for i in (0, 1))
    rows, columns = matched(v * u)
    count = keep[0].sum()
    mean = lambda values: float(values[rows, columns].sum() / count)
    return {"V": mean(np.abs(v)), "U": mean(np.abs(u)), "product": mean(v * u)}
