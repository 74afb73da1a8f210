"""Components compared with known directions, and with the components of another run."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.processes import to_host
from jax_interp.core.pytrees import register_dataclass
from jax_interp.decomposition.components import Components
from jax_interp.decomposition.metrics.importance import match_components


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Recovery:
    """How well the components match known directions (APD 2025).

    cosine: for each direction, the cosine with the most similar component. `mmcs` is the mean.
    ratio: the norm of the most similar component divided by the norm of the direction. `ml2r` is the mean.
    owner: the index of the most similar component.
    """

    cosine: Float[Array, " feature"]
    ratio: Float[Array, " feature"]
    owner: Array

    @property
    def mmcs(self) -> Array:
        """The mean max cosine similarity."""
        return jnp.mean(self.cosine)

    @property
    def ml2r(self) -> Array:
        """The mean L2 ratio."""
        return jnp.mean(self.ratio)


def recovery(
    parts: Float[Array, "C feature d"] | Components, truth: Float[Array, "feature d"], least: float = 0.1
) -> Recovery:
    """Compare the rows of each component with known directions.

    Args:
      parts: the components as matrices, or as V and U.
      truth: one direction for each feature.
      least: a component is left out if its norm is less than `least` times the norm of the known direction. Otherwise a
        dead component that happens to have the right direction could be chosen, and the ratio would be near 0. If no
        component is long enough, all are compared. 0 is the published definition.
    """
    if isinstance(parts, Components):
        parts = jnp.einsum("fc,cd->cfd", parts.V, parts.U)
    norm, size = jnp.linalg.norm(parts, axis=-1), jnp.linalg.norm(truth, axis=-1)
    tiny = jnp.asarray(1e-30, parts.dtype)
    dots = jnp.einsum("cfd,fd->cf", parts, truth)
    cosine = dots / jnp.maximum(norm * size[None], tiny)
    long_enough = norm >= least * size[None]
    compared = jnp.where(long_enough | ~jnp.any(long_enough, axis=0, keepdims=True), cosine, -jnp.inf)
    owner = jnp.argmax(compared, axis=0)
    pick = lambda values: jnp.take_along_axis(values, owner[None], axis=0)[0]
    return Recovery(pick(cosine), pick(norm) / jnp.maximum(size, tiny), owner)


def agreement(one: Components, other: Components, least: float = 0.1) -> dict[str, Float[np.ndarray, "*layer"]]:
    """How similar the components of two runs are: the mean cosines of matched components.

    Components are matched one to one, so that the sum of the cosines of their rank-one products is as large as
    possible. V and U are compared for the same pairs, with signs ignored. A component without a match counts as 0.

    Args:
      one, other: components of the same matrix from two runs.
      least: a component is left out if its norm is below `least` times the largest norm in its run.

    Returns:
      The mean cosines of "V", "U" and "product" over the components of the first run. Each is a number, or one number
      for each layer.

    Raises:
      UserError: the matrices have different shapes.
    """
    shapes = [(c.V.shape[:-1], c.U.shape[:-2] + c.U.shape[-1:]) for c in (one, other)]
    if shapes[0] != shapes[1]:
        (V, U), (other_V, other_U) = shapes
        raise UserError(f"components of matrices of different shapes: {V} to {U[-1]} and {other_V} to {other_U[-1]}")
    arrays = [np.asarray(to_host(a), np.float64) for c in (one, other) for a in (c.V, c.U)]
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
    rows, columns = match_components(v * u)
    count = keep[0].sum()
    mean = lambda values: float(values[rows, columns].sum() / count)
    return {"V": mean(np.abs(v)), "U": mean(np.abs(u)), "product": mean(v * u)}
