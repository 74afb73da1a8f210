"""JumpReLU: a latent is on above its own threshold, and then passes whole (Rajamanoharan et al. 2024,
arXiv:2407.14435).

The jump has no useful derivative, so the threshold's is estimated with a kernel of width `bandwidth` ε around it:

    ∂/∂θ JumpReLU_θ(z) = -(θ/ε) 1[|z - θ| < ε/2]        ∂/∂z JumpReLU_θ(z) = 1[z > θ]
    ∂/∂θ H(z - θ)      = -(1/ε) 1[|z - θ| < ε/2]        ∂/∂z H(z - θ)      = 0
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations.activation import ACTIVATIONS, ElementwiseActivation
from jax_interp.dictionaries.activations.pre import PreCode

if TYPE_CHECKING:
    from jax_interp.dictionaries.forms.dictionary import Dictionary


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def jump(z: Float[Array, "*place"], threshold: Float[Array, "*place"], bandwidth: float) -> Float[Array, "*place"]:
    """z where z > threshold, else 0."""
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
    """H(z - threshold): 1 where a latent is on. Its sum is an L0 that thresholds can be trained on."""
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
    """The choice: thresholds begin at `threshold`, and learn in a kernel of width `bandwidth` around them.

    Both are for inputs with E‖x‖² = d, which is what the trainer makes of them: Gemma Scope's .001 and .001 for
    E‖x‖² = 1 are .001 √d here. These defaults are far wider: thresholds then get where they belong within thousands of
    steps.
    """

    threshold: float = 0.5
    bandwidth: float = 0.5

    cross_layer = True
    trains_thresholds = True

    @classmethod
    def trained_class(cls) -> type[Jump]:
        return Jump

    def __post_init__(self) -> None:
        if not self.threshold > 0 or not self.bandwidth > 0:
            raise UserError(f"JumpReLU(threshold={self.threshold}, bandwidth={self.bandwidth}): both above 0")

    def init(self, n_features: int, dtype: Any) -> Jump:
        log = jnp.log(jnp.asarray(self.threshold, dtype))
        return Jump(jnp.broadcast_to(log, (n_features,)), self.bandwidth)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Jump(ElementwiseActivation):
    """The activation: thresholds are exp(log_threshold), so they stay positive."""

    log_threshold: Float[Array, " feature"]
    bandwidth: float = dataclasses.field(default=0.5, metadata={"static": True})

    cross_layer = True
    trains_thresholds = True
    per_feature = ("log_threshold",)

    @property
    def threshold(self) -> Float[Array, " feature"]:
        return jnp.exp(self.log_threshold)

    def decide(self, dictionary: Dictionary, code: PreCode) -> PreCode:
        threshold = jnp.broadcast_to(code.gather(self.threshold), code.pre.shape)
        return code.with_values(jump(code.pre, threshold, self.bandwidth))

    def takes_part(self, dictionary: Dictionary, pre: Float[Array, "row feature"]) -> Bool[Array, "row feature"]:
        """What is on, and what is near its threshold: the kernel sees that far."""
        return pre > (self.threshold - self.bandwidth / 2)[None, :]

    def scaled(self, factor: Float[Array, "..."]) -> Jump:
        return dataclasses.replace(self, log_threshold=self.log_threshold + jnp.log(factor))

    def as_jumprelu(self, dictionary: Dictionary) -> Dictionary:
        return dictionary
