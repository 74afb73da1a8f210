"""Whether points of a plane are more than two separate numbers (Engels et al. 2025, arXiv:2405.14860, section 3).

A two-dimensional feature is *separable* if its coordinates are independent after some rotation, and a *mixture* if one
of its coordinates is a constant on a part of the data. A feature that is neither is irreducible:

    S(f)   = min over rotations of the mutual information of the two coordinates, in bits
    M_ε(f) = max over unit v and c of P(|v·f + c| < ε √E(v·f + c)²)

An irreducible feature has a high S and a low M. Known values: the uniform circle has S = 1.50 with 10 bins and
M_.1 = .219; an isotropic Gaussian has S = 0 and M_.1 = .08; two axes, one on at a time, have S = 1 and M = .5.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from jax_interp.core.errors import UserError

Points = Float[ArrayLike, "point 2"]


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The result of `mixture_index`."""

    value: float
    """M_ε: the largest fraction of points inside a stripe |v·f + c| < ε √E(v·f + c)²."""
    direction: tuple[float, float]
    """The unit vector v of this stripe."""
    offset: float
    """Its c, in the units of the points."""


def separability(points: Points, *, angles: int = 100, bins: int = 10) -> float:
    """The separability S: the smallest mutual information of the coordinates, over rotations of the plane.

    Args:
      points: the points, [point, 2].
      angles: the number of rotations, evenly from 0 to 90 degrees. A further rotation by 90 degrees exchanges the axes.
      bins: the number of bins of each axis. They divide the range of the rotated coordinate evenly, as
        `np.histogram2d` does. The estimate is biased upwards by about (bins - 1)² / (2 ln 2 · points).

    Returns:
      S in bits. 0 for independent coordinates.

    Raises:
      UserError: the points are not [point, 2], not finite, or fewer than two.
    """
    return float(np.min(separability_by_angle(points, angles=angles, bins=bins)))


def separability_by_angle(points: Points, *, angles: int = 100, bins: int = 10) -> Float[np.ndarray, " angle"]:
    """The mutual information in bits after each of the rotations of `separability`. Flat for a circle."""
    if angles < 1 or bins < 2:
        raise UserError(f"angles={angles}, bins={bins}: give at least one angle and two bins")
    x = _centred(points)[0]
    return np.asarray(information_by_angle(x, jnp.ones(len(x), bool), angles, bins))


def mixture_index(points: Points, *, epsilon: float = 0.1, directions: int = 180) -> Mixture:
    """The mixture index M_ε: how many of the points one stripe of the plane holds.

    The published code maximises a smooth version by gradient ascent, which can stay in a local maximum (for a circle,
    .045 at c = 0). Here the directions are a grid, and for each direction the best c is found exactly: the best stripe
    begins at a point, and there are as many such stripes as points.

    Args:
      points: the points, [point, 2].
      epsilon: the half width of the stripe, relative to √E(v·f + c)². Between 0 and 1.
      directions: the number of directions v, evenly over 180 degrees.

    Returns:
      The largest fraction, with its direction and offset. A direction in which all points are equal holds none: there
      |v·f + c| equals its own root mean square, for every c.

    Raises:
      UserError: the points are not [point, 2], not finite, or fewer than two; `epsilon` or `directions` is
        out of range.
    """
    if not 0 < epsilon < 1 or directions < 1:
        raise UserError(f"epsilon={epsilon}, directions={directions}: 0 < epsilon < 1 and at least one direction")
    x, mean, scale = _centred(points)
    value, angle, centre = map(float, fullest_stripe(x, jnp.ones(len(x), bool), epsilon, directions))
    v = np.array([np.cos(angle), np.sin(angle)])
    return Mixture(value, (float(v[0]), float(v[1])), float(-(centre * scale + v @ mean)))


def _centred(points: Points) -> tuple[Array, np.ndarray, float]:
    """Points with mean 0 and mean square norm 1, in float32; the mean and the scale that were divided out."""
    x = np.asarray(points, np.float64)
    if x.ndim != 2 or x.shape[1] != 2 or len(x) < 2:
        raise UserError(f"points of shape {x.shape}: give at least two points of a plane, [point, 2]")
    if not np.isfinite(x).all():
        raise UserError(f"{int((~np.isfinite(x)).any(1).sum())} of {len(x)} points are not finite: leave them out")
    mean = x.mean(0)
    scale = float(np.sqrt(np.mean(np.sum((x - mean) ** 2, axis=1)))) or 1.0
    return jnp.asarray((x - mean) / scale, jnp.float32), mean, scale


@partial(jax.jit, static_argnames=("angles", "bins"))
def information_by_angle(
    x: Float[Array, "point 2"], keep: Bool[Array, " point"], angles: int, bins: int
) -> Float[Array, " angle"]:
    """The mutual information of the two coordinates in bits, after each rotation.

    Points that are not kept do not count.

    Args:
      x: the points.
      keep: which of them count.
      angles: the number of rotations from 0 to 90 degrees.
      bins: the number of bins of each axis, over the range of the kept points.
    """
    theta = jnp.arange(angles, dtype=x.dtype) * (jnp.pi / 2 / angles)
    weight = keep.astype(x.dtype)

    def placed(values: Array) -> Float[Array, "point bin"]:
        low = jnp.min(jnp.where(keep, values, jnp.inf))
        width = jnp.maximum(jnp.max(jnp.where(keep, values, -jnp.inf)) - low, jnp.finfo(x.dtype).tiny)
        place = jnp.clip(jnp.floor((values - low) / width * bins).astype(jnp.int32), 0, bins - 1)
        return jax.nn.one_hot(place, bins, dtype=x.dtype)

    def information(angle: Array) -> Array:
        c, s = jnp.cos(angle), jnp.sin(angle)
        first, second = placed(c * x[:, 0] + s * x[:, 1]), placed(c * x[:, 1] - s * x[:, 0])
        p = jnp.matmul((first * weight[:, None]).T, second, precision=jax.lax.Precision.HIGHEST) / jnp.sum(weight)
        independent = jnp.sum(p, axis=1)[:, None] * jnp.sum(p, axis=0)[None, :]
        ratio = jnp.where(p > 0, p / jnp.where(p > 0, independent, 1.0), 1.0)
        return jnp.sum(p * jnp.log2(ratio))

    return jax.lax.map(information, theta)


@partial(jax.jit, static_argnames=("directions",))
def fullest_stripe(
    x: Float[Array, "point 2"], keep: Bool[Array, " point"], epsilon: float | Array, directions: int
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """M_ε over a grid of directions: (the largest fraction of kept points in a stripe, its angle, its centre).

    A stripe with centre t holds z where |z - t| < ε √(σ² + (t - m)²), with m and σ the mean and the deviation of z.
    Both of its ends grow with t, so the fullest stripe can be moved right until it begins at a point.

    Args:
      x: the points, of mean 0.
      keep: which of them count.
      epsilon: the relative half width.
      directions: the number of directions.
    """
    n = jnp.sum(keep)
    count = jnp.maximum(n, 1).astype(x.dtype)
    epsilon = jnp.asarray(epsilon, x.dtype)
    rest = 1 - epsilon * epsilon

    def best(angle: Array) -> tuple[Array, Array]:
        z = x[:, 0] * jnp.cos(angle) + x[:, 1] * jnp.sin(angle)
        mean = jnp.sum(jnp.where(keep, z, 0.0)) / count
        variance = jnp.sum(jnp.where(keep, (z - mean) ** 2, 0.0)) / count
        z = jnp.sort(jnp.where(keep, z, jnp.inf))
        begin = z - mean
        # t of the stripe that begins at z: the larger solution of (u - begin)² = ε² (σ² + u²)
        u = (begin + epsilon * jnp.sqrt(begin * begin + rest * variance)) / rest
        end = mean + u + (u - begin)
        number = jnp.arange(len(z))
        held = jnp.where(number < n, jnp.searchsorted(z, end, side="left") - number, 0)
        place = jnp.argmax(held)
        most = jnp.maximum(held[place], 0)
        # the middle of all centres that hold the same points, from this one down to where the last point is at the end
        last = z[jnp.maximum(place + most - 1, 0)] - mean
        lowest = (last - epsilon * jnp.sqrt(last * last + rest * variance)) / rest
        return most.astype(x.dtype) / count, mean + (u[place] + lowest) / 2

    theta = jnp.arange(directions, dtype=x.dtype) * (jnp.pi / directions)
    fraction, centre = jax.lax.map(best, theta)
    chosen = jnp.argmax(fraction)
    return fraction[chosen], theta[chosen], centre[chosen]
