"""JumpReLU: a pre-activation above the threshold of its feature passes unchanged, others become 0 (Rajamanoharan et al.
2024, arXiv:2407.14435).

The derivative with respect to the threshold is 0 almost everywhere. It is estimated with a kernel of width ε
(`bandwidth`) around the threshold:

    ∂/∂θ JumpReLU_θ(z) = -(θ/ε) 1[|z - θ| < ε/2]        ∂/∂z JumpReLU_θ(z) = 1[z > θ]
    ∂/∂θ H(z - θ)      = -(1/ε) 1[|z - θ| < ε/2]        ∂/∂z H(z - θ)      = 0
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Bool, Float

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.activations.activation import ACTIVATIONS, ElementwiseActivation
from jax_interp.dictionaries.activations.pre import PreCode

if TYPE_CHECKING:
    from jax_interp.dictionaries.forms.dictionary import Dictionary


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def jump(z: Float[Array, "*place"], threshold: Float[Array, "*place"], bandwidth: float) -> Float[Array, "*place"]:
    """Return z where z > threshold, else 0."""
    return jnp.where(z > threshold, z, jnp.zeros((), z.dtype))


def _near(z: Array, threshold: Array, bandwidth: float) -> Array:
    return jnp.abs(z - threshold) < bandwidth / 2


def _jump_forward(z, threshold, bandwidth):
    return jump(z, threshold, bandwidth), (z, threshold)


def _jump_backward(bandwidth, residuals, g):
    z, threshold = residuals
    zero = jnp.zeros((), g.dtype)
    near = jnp.where(_near(z, threshold, bandwidth), g, zero)
    return jnp.where(z > threshold, g, zero), -(threshold / bandwidth) * near


jump.defvjp(_jump_forward, _jump_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def step(z: Float[Array, "*place"], threshold: Float[Array, "*place"], bandwidth: float) -> Float[Array, "*place"]:
    """Return H(z - threshold): 1 where a latent is on. The sum is an L0 with a gradient for the thresholds."""
    return (z > threshold).astype(z.dtype)


def _step_forward(z, threshold, bandwidth):
    return step(z, threshold, bandwidth), (z, threshold)


def _step_backward(bandwidth, residuals, g):
    z, threshold = residuals
    near = jnp.where(_near(z, threshold, bandwidth), g, jnp.zeros((), g.dtype))
    return jnp.zeros_like(z), -near / bandwidth


step.defvjp(_step_forward, _step_backward)


@ACTIVATIONS.register
@dataclasses.dataclass(frozen=True)
class JumpReLU(ElementwiseActivation):
    """The JumpReLU activation in a config. `init` returns a `Jump`.

    Both numbers are in units of inputs with E‖x‖² = d, because the trainer scales its inputs to this. Gemma Scope uses
    0.001 in units of E‖x‖² = 1, which is 0.001 √d here. The defaults are much larger, so that thresholds converge
    within thousands of steps.
    """

    threshold: float = 0.5
    """The initial value of every threshold."""
    bandwidth: float = 0.5
    """Width of the kernel. A pre-activation within bandwidth / 2 of its threshold gives the threshold a gradient."""

    cross_layer = True
    trains_thresholds = True

    @classmethod
    def trained_class(cls) -> type[Jump]:
        return Jump

    def __post_init__(self) -> None:
        if not self.threshold > 0 or not self.bandwidth > 0:
            raise UserError(f"JumpReLU(threshold={self.threshold}, bandwidth={self.bandwidth}): give both above 0")

    def init(self, n_features: int, dtype: DTypeLike) -> Jump:
        log = jnp.log(jnp.asarray(self.threshold, dtype))
        return Jump(jnp.broadcast_to(log, (n_features,)), self.bandwidth)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Jump(ElementwiseActivation):
    """The activation that a JumpReLU dictionary holds."""

    log_threshold: Float[Array, " feature"]
    """Logarithms of the thresholds, so that thresholds stay positive. Those of a file are in float32 also where its
    weights have half precision: a rounded logarithm of 0.01 changes the threshold by two percent in bfloat16."""
    bandwidth: float = dataclasses.field(default=0.5, metadata={"static": True})
    """Width of the kernel. A pre-activation within bandwidth / 2 of its threshold gives the threshold a gradient."""

    cross_layer = True
    trains_thresholds = True
    per_feature = ("log_threshold",)

    @classmethod
    def of(cls, threshold: Float[ArrayLike, " feature"], bandwidth: float = 0.5) -> Jump:
        """The activation with these thresholds.

        Files of other libraries hold thresholds. Some are 0 or below: the latent is then a plain ReLU, as in
        dictionary_learning, which computes `relu(z * (z > threshold))`. Such a threshold has no logarithm,
        so the smallest positive number takes its place. An infinite threshold becomes the largest number.

        Args:
          threshold: the threshold of each feature.
          bandwidth: the width of the kernel, for training.

        Raises:
          UserError: a threshold is NaN.

        Example:
            Dictionary(W_enc, b_enc, W_dec, b_dec, Jump.of(tensors["threshold"]))
        """
        threshold = jnp.asarray(threshold)
        if not isinstance(threshold, Tracer) and bool(jnp.isnan(threshold).any()):
            raise UserError("a threshold of the JumpReLU is NaN: a latent with it would never fire")
        threshold = upcast(threshold)
        return cls(
            jnp.log(jnp.clip(threshold, jnp.finfo(threshold.dtype).tiny, jnp.finfo(threshold.dtype).max)), bandwidth
        )

    @property
    def threshold(self) -> Float[Array, " feature"]:
        return jnp.exp(self.log_threshold)

    def decide(self, dictionary: Dictionary, code: PreCode) -> PreCode:
        threshold = jnp.broadcast_to(code.gather(self.threshold), code.pre.shape).astype(code.pre.dtype)
        return code.with_values(jump(code.pre, threshold, self.bandwidth))

    def takes_part(self, dictionary: Dictionary, pre: Float[Array, "row feature"]) -> Bool[Array, "row feature"]:
        """True where a latent is on or within the kernel of its threshold."""
        return pre > (self.threshold - self.bandwidth / 2).astype(pre.dtype)[None, :]

    def scaled(self, factor: Float[Array, "..."]) -> Jump:
        log_factor = jnp.log(factor.astype(self.log_threshold.dtype))
        return dataclasses.replace(self, log_threshold=self.log_threshold + log_factor)

    def as_jumprelu(self, dictionary: Dictionary) -> Dictionary:
        return dictionary
