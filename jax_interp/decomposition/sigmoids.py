"""Sigmoids: they map the value of an importance function to a causal importance between 0 and 1.

Each entry of `SIGMOIDS` is a pair. Masks use the lower form, and minimality losses use the upper form. The forms differ
in where they have a small gradient outside [0, 1]. This gradient keeps values from getting stuck there.

    @register_sigmoid("shifted", upper=upper_leaky)      # in any file; configs then accept sigmoid="shifted"
    def shifted(z): ...
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError

LEAK = 0.01
Sigmoid = Callable[[Array], Array]
AnySigmoid = TypeVar("AnySigmoid", bound=Sigmoid)


class SigmoidPair(NamedTuple):
    """The lower form, for masks, and the upper form, for minimality."""

    lower: Sigmoid
    upper: Sigmoid


SIGMOIDS: dict[str, SigmoidPair] = {}


def register_sigmoid(name: str, *, upper: Sigmoid | None = None) -> Callable[[AnySigmoid], AnySigmoid]:
    """Decorator that registers a lower form under `name`.

    Args:
      name: the name of the pair in configs.
      upper: the upper form; None: the same function.

    Raises:
      TypeError: another pair has this name.
    """

    def register(lower: AnySigmoid) -> AnySigmoid:
        if name in SIGMOIDS:
            raise TypeError(f"sigmoid {name!r} is registered already")
        SIGMOIDS[name] = SigmoidPair(lower, upper or lower)
        return lower

    return register


def sigmoid_pair(name: str) -> SigmoidPair:
    """The pair with this name. If there is none, raises UserError with the names that exist."""
    if name not in SIGMOIDS:
        raise UserError(f"sigmoid={name!r}: there are {', '.join(SIGMOIDS)}")
    return SIGMOIDS[name]


def upper_leaky(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """`max(z, 0)` up to 1, then `1 + LEAK · (z - 1)`."""
    leak = jnp.asarray(LEAK, z.dtype)
    return jnp.where(z <= 1, jnp.maximum(z, 0), 1 + leak * (z - 1))


@register_sigmoid("leaky_hard", upper=upper_leaky)
@jax.custom_vjp
def lower_leaky(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """`clip(z, 0, 1)` with a one-sided leak in the backward pass (the 2026 torch code).

    The gradient is 1 in (0, 1] and 0 above 1. For z <= 0 it is `LEAK` times the incoming gradient if a descent step
    would raise z, and 0 if the step would lower z further.
    """
    return jnp.clip(z, 0, 1)


def _lower_leaky_backward(z: Array, g: Array) -> tuple[Array]:
    below = jnp.where(g < 0, jnp.asarray(LEAK, g.dtype) * g, jnp.zeros_like(g))
    return (jnp.where(z <= 0, below, jnp.where(z <= 1, g, jnp.zeros_like(g))),)


lower_leaky.defvjp(lambda z: (jnp.clip(z, 0, 1), z), _lower_leaky_backward)


@register_sigmoid("leaky_hard_v1", upper=upper_leaky)
def lower_leaky_v1(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """`LEAK · z` up to 0, then `min(z, 1)` (SPD 2025). Masks may be slightly negative."""
    return jnp.where(z <= 0, jnp.asarray(LEAK, z.dtype) * z, jnp.minimum(z, 1))


@register_sigmoid("hard")
def hard(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """`clip(z, 0, 1)`, with no gradient outside."""
    return jnp.clip(z, 0, 1)


@register_sigmoid("normal")
def logistic(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """The logistic sigmoid. It never reaches 0, so give a threshold above 0 to functions that count components."""
    return jax.nn.sigmoid(z)


@register_sigmoid("swish_hard")
def swish_hard(z: Float[Array, "..."], beta: float = 10.0) -> Float[Array, "..."]:
    """`s(z) - s(z - 1)` with s(t) = t σ(βt): a hard sigmoid with smooth corners, sharper for larger `beta`."""
    b = jnp.asarray(beta, z.dtype)
    s = lambda t: t * jax.nn.sigmoid(b * t)
    return s(z) - s(z - 1)
