"""Which features fire, and how strongly: the parts of a world's `codes`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Copula:
    """Correlated firing with given probabilities: feature i is on if g_i > Φ⁻¹(1 - p_i), for a normal vector g.

    The covariance of g is factor·factorᵀ + diag(spread²), with diagonal 1. The correlations between features that fire
    are smaller than the correlations of g.

    Args:
      threshold: Φ⁻¹(1 - p).
      factor: the loadings of the shared causes.
      spread: the standard deviation of the independent part of each feature.
    """

    threshold: Float[Array, " feature"]
    factor: Float[Array, "feature rank"]
    spread: Float[Array, " feature"]

    def __call__(self, key: Key[Array, ""], n: int) -> Bool[Array, "n feature"]:
        shared, own = jax.random.split(key)
        g = jax.random.normal(own, (n, len(self.spread))) * self.spread[None, :]
        if self.factor.shape[1]:
            g = g + jax.random.normal(shared, (n, self.factor.shape[1])) @ self.factor.T
        return g > self.threshold[None, :]


def independent(p: Float[Array, " feature"]) -> Copula:
    """Each feature fires with its probability, independently of the others."""
    p = jnp.asarray(p, jnp.float32)
    return Copula(_threshold(p), jnp.zeros((len(p), 0)), jnp.ones_like(p))


def correlated(p: Float[Array, " feature"], correlation: Float[np.ndarray, "feature feature"]) -> Copula:
    """Features that fire with given probabilities and correlations.

    Args:
      p: the probabilities.
      correlation: the correlation matrix of the copula. If it is not positive semidefinite, `nearest_correlation`
        mends it.

    Raises:
      UserError: the matrix is not symmetric with diagonal 1.
    """
    C = np.asarray(correlation, np.float64)
    if C.shape != (len(p), len(p)) or not np.allclose(C, C.T) or not np.allclose(np.diag(C), 1):
        raise UserError(f"a correlation matrix of {len(p)} features is symmetric, {len(p)} x {len(p)}, with diagonal 1")
    values, vectors = np.linalg.eigh(nearest_correlation(C))
    factor = jnp.asarray(vectors * np.sqrt(np.maximum(values, 0)), jnp.float32)
    return Copula(_threshold(jnp.asarray(p, jnp.float32)), factor, jnp.zeros((len(p),)))


def low_rank(key: Key[Array, ""], p: Float[Array, " feature"], rank: int, scale: float) -> Copula:
    """Features with random correlations of low rank (SynthSAEBench). Two features correlate by about scale² √rank.

    Args:
      key: random key.
      p: the probabilities.
      rank: number of shared causes.
      scale: standard deviation of the loadings. A row is scaled down if its square norm would reach 1.
    """
    factor = scale * jax.random.normal(key, (len(p), rank))
    largest = jnp.max(jnp.sum(factor * factor, axis=1))
    factor = factor * jnp.where(largest >= 1, jnp.sqrt(0.99 / jnp.maximum(largest, 1e-30)), 1.0)
    return Copula(_threshold(jnp.asarray(p, jnp.float32)), factor, jnp.sqrt(1 - jnp.sum(factor * factor, axis=1)))


def nearest_correlation(C: Float[np.ndarray, "n n"], least: float = 1e-6) -> Float[np.ndarray, "n n"]:
    """`C` with its eigenvalues raised to `least`, and its diagonal scaled back to 1; `C` itself if it is valid."""
    values, vectors = np.linalg.eigh(C)
    if values[0] >= -least:
        return C
    fixed = (vectors * np.maximum(values, least)) @ vectors.T
    scale = np.sqrt(np.diag(fixed))
    return fixed / np.outer(scale, scale)


def _threshold(p: Float[Array, " feature"]) -> Float[Array, " feature"]:
    return -jax.scipy.special.ndtri(p)  # Φ⁻¹(1 - p), without the rounding error of 1 - p


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Normal:
    """Magnitudes N(mean, std²). A parameter is one number, or one for each feature. Negative magnitudes become 0."""

    mean: Float[Array, "..."]
    std: Float[Array, "..."]

    def __call__(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "n feature"]:
        noise = jax.random.normal(key, shape)
        return jax.nn.relu(jnp.broadcast_to(self.mean, shape) + jnp.broadcast_to(self.std, shape) * noise)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Uniform:
    """Magnitudes uniform in (0, high]."""

    high: Float[Array, "..."]

    def __call__(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "n feature"]:
        return (1 - jax.random.uniform(key, shape)) * jnp.broadcast_to(self.high, shape)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Codes:
    """The codes of a world.

    Args:
      on: draws which features fire, such as a `Copula`.
      magnitude: draws their magnitudes, such as `Normal` or `Uniform`.
      constraint: changes the codes so that they keep a rule, such as a `Forest`.
    """

    on: Callable[[Key[Array, ""], int], Bool[Array, "n feature"]]
    magnitude: Callable[[Key[Array, ""], tuple[int, ...]], Float[Array, "n feature"]]
    constraint: Callable[[Key[Array, ""], Float[Array, "n feature"]], Float[Array, "n feature"]] | None = None

    def __call__(self, key: Key[Array, ""], n: int) -> Float[Array, "n feature"]:
        on_key, magnitude_key, constraint_key = jax.random.split(key, 3)
        on = self.on(on_key, n)
        z = self.magnitude(magnitude_key, on.shape)
        z = jnp.where(on, z, jnp.zeros_like(z))
        return z if self.constraint is None else self.constraint(constraint_key, z)
