"""Methods that learn which features of a value carry a variable.

    DAS(k)                    a subspace of k dimensions (Geiger et al. 2024, arXiv:2303.02536)
    BoundlessDAS()            a subspace whose dimension is learned too (Wu et al. 2023, arXiv:2305.08809)
    LearnedMask()             a mask over neurons, given directions or latents (differential binary masks)
    LearnedMask(rotation=k)   a learned rotation with a mask over its columns

A basis is the Q of the QR decomposition of a free matrix W. So its columns are orthonormal after every step, up to
rounding, and the optimizer needs no constraint. The span of the first j columns of Q is that of the first j columns of
W, so subspaces of growing dimension are nested.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.circuits.causal_variables.features import Coordinates, Features, Latents, Subspace, latent_count
from jax_interp.core.errors import UserError

Params = dict[str, Array]
Given = Any
"""What a mask is over: None (neurons), an orthonormal basis [d, m], or a dictionary."""


class Method(abc.ABC):
    """Base class of methods: a frozen dataclass of static choices."""

    @abc.abstractmethod
    def init(self, key: Key[Array, ""], d: int, given: Given) -> Params:
        """The parameters before the first step, for values with `d` entries. Those of masks are named "mask..."."""

    @abc.abstractmethod
    def soft(self, params: Params, given: Given, progress: Float[Array, ""]) -> Features:
        """The features in training. `progress` is the share of steps that are done."""

    @abc.abstractmethod
    def hard(self, params: Params, given: Given) -> Features:
        """The features after training: every mask is 0 or 1."""

    def penalty(self, params: Params, given: Given, progress: Float[Array, ""]) -> Float[Array, ""]:
        """What is added to the loss."""
        return jnp.float32(0)

    def check(self, d: int, given: Given) -> None:
        """Raise `UserError` if the method cannot act on values with `d` entries."""
        if given is not None:
            raise UserError(f"{type(self).__name__} learns its own basis: leave out basis=, or use LearnedMask")


def orthonormal(W: Float[Array, "d k"]) -> Float[Array, "d k"]:
    """Q of the QR decomposition, in float32 at least."""
    return jnp.linalg.qr(W)[0]


def _free(key: Key[Array, ""], d: int, k: int) -> Float[Array, "d k"]:
    return jax.random.normal(key, (d, k)) / math.sqrt(d)


@dataclasses.dataclass(frozen=True)
class DAS(Method):
    """Distributed alignment search: a subspace of a given dimension.

    Args:
      dimension: the number of dimensions.
    """

    dimension: int = 1

    def check(self, d: int, given: Given) -> None:
        super().check(d, given)
        if not 1 <= self.dimension <= d:
            raise UserError(f"dimension={self.dimension}: the value has {d} entries; give 1 to {d}")

    def init(self, key: Key[Array, ""], d: int, given: Given) -> Params:
        return {"basis": _free(key, d, self.dimension)}

    def soft(self, params: Params, given: Given, progress: Float[Array, ""]) -> Subspace:
        return Subspace(orthonormal(params["basis"]))

    def hard(self, params: Params, given: Given) -> Subspace:
        return Subspace(orthonormal(params["basis"]))


def _check_temperatures(first: float, last: float) -> None:
    if not math.inf > first >= last > 0:
        raise UserError(f"temperatures from {first} to {last}: they should be finite, fall, and stay above 0")


@dataclasses.dataclass(frozen=True)
class BoundlessDAS(Method):
    """Boundless DAS: the first b · m of m columns are exchanged, and b is learned.

    Column j = 0, 1, ... has the mask σ((b m - j - 1/2) / T). T falls linearly. Two things differ from the published
    code. There, column 0 has a second factor σ(0 / T), so half of it is never exchanged. And b is clipped to
    [0.001, 1], where it can get stuck without a gradient; here b = σ(θ), and θ begins at 0.

    Args:
      largest: m, the largest dimension. None: that of the value.
      weight: the weight of b in the loss.
      first_temperature: T in the first step, in columns. None: m / 4. (The paper has 50 for 4096 columns.)
      last_temperature: T in the last step.
    """

    largest: int | None = None
    weight: float = 0.3
    first_temperature: float | None = None
    last_temperature: float = 0.1

    def __post_init__(self) -> None:
        first = self.first_temperature
        _check_temperatures(self.last_temperature if first is None else first, self.last_temperature)

    def check(self, d: int, given: Given) -> None:
        super().check(d, given)
        if self.largest is not None and not 1 <= self.largest <= d:
            raise UserError(f"largest={self.largest}: the value has {d} entries; give 1 to {d}, or None")

    def init(self, key: Key[Array, ""], d: int, given: Given) -> Params:
        return {"basis": _free(key, d, self.largest or d), "mask_boundary": jnp.float32(0)}

    def soft(self, params: Params, given: Given, progress: Float[Array, ""]) -> Subspace:
        distance, last = self._distance(params), self.last_temperature
        first = max(len(distance) / 4, last) if self.first_temperature is None else self.first_temperature
        return Subspace(orthonormal(params["basis"]), jax.nn.sigmoid(distance / (first + (last - first) * progress)))

    def hard(self, params: Params, given: Given) -> Subspace:
        return Subspace(orthonormal(params["basis"]), (self._distance(params) > 0).astype(jnp.float32))

    def penalty(self, params: Params, given: Given, progress: Float[Array, ""]) -> Float[Array, ""]:
        return self.weight * jax.nn.sigmoid(params["mask_boundary"])

    def _distance(self, params: Params) -> Float[Array, " m"]:
        m = params["basis"].shape[-1]
        return jax.nn.sigmoid(params["mask_boundary"]) * m - jnp.arange(m, dtype=jnp.float32) - 0.5


@dataclasses.dataclass(frozen=True)
class LearnedMask(Method):
    """A mask σ(θ / T) over features. T falls by a constant factor for each step; the result is θ > 0.

    The features are neurons, or those of `basis=`: orthonormal directions such as principal components, or the latents
    of a dictionary. θ begins at 0. A feature on which the loss does not depend stays off.

    Args:
      rotation: learn also a basis of this many columns.
      l1: the weight of the mean mask in the loss.
      first_temperature: T in the first step.
      last_temperature: T in the last step.
    """

    rotation: int | None = None
    l1: float = 0.0
    first_temperature: float = 1.0
    last_temperature: float = 1e-2

    def __post_init__(self) -> None:
        _check_temperatures(self.first_temperature, self.last_temperature)

    def check(self, d: int, given: Given) -> None:
        if self.rotation is not None:
            super().check(d, given)
            if not 1 <= self.rotation <= d:
                raise UserError(f"rotation={self.rotation}: the value has {d} entries; give 1 to {d}, or None")
        else:
            self.hard({"mask": jnp.zeros(self._count(d, given))}, given).check(d)

    def init(self, key: Key[Array, ""], d: int, given: Given) -> Params:
        params = {"mask": jnp.zeros(self._count(d, given))}
        return params if self.rotation is None else params | {"basis": _free(key, d, self.rotation)}

    def soft(self, params: Params, given: Given, progress: Float[Array, ""]) -> Features:
        return self._features(params, given, jax.nn.sigmoid(params["mask"] / self._temperature(progress)))

    def hard(self, params: Params, given: Given) -> Features:
        return self._features(params, given, (params["mask"] > 0).astype(jnp.float32))

    def penalty(self, params: Params, given: Given, progress: Float[Array, ""]) -> Float[Array, ""]:
        return self.l1 * jnp.mean(jax.nn.sigmoid(params["mask"] / self._temperature(progress)))

    def _temperature(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        return self.first_temperature * (self.last_temperature / self.first_temperature) ** progress

    def _count(self, d: int, given: Given) -> int:
        if self.rotation is not None:
            return self.rotation
        return d if given is None else given.shape[1] if isinstance(given, jax.Array) else latent_count(given, d)

    def _features(self, params: Params, given: Given, mask: Float[Array, " feature"]) -> Features:
        if self.rotation is not None:
            return Subspace(orthonormal(params["basis"]), mask)
        if given is None:
            return Coordinates(mask)
        return Subspace(given, mask) if isinstance(given, jax.Array) else Latents(given, mask)
