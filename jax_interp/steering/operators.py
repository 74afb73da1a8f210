"""Operators: how a vector changes a value. Each one stays in the plane of the value x and the direction u = v / ‖v‖.

    x'  =  scale · x  +  amount · u

An operator computes the two scalars from four scalars: the norm ‖x‖, the coefficient x·u, the strength, and the norm
‖v‖. So one program can apply another operator to each row of a batch.

    add               x + s v                                the usual steering vector
    ablate            x - s (x·u) u                          s = 1 removes the direction
    ablate_then_add   x - (x·u) u + s v                      sets the coefficient x·u to s ‖v‖
    at_least          raises the coefficient x·u to s ‖v‖ where it is less
    at_most           lowers the coefficient x·u to s ‖v‖ where it is more
    rotate            turns x towards v by the angle s (radians) and keeps ‖x‖; s < 0 turns it away
    add_keeping_norm  x + s v, scaled back to the norm of x

A vector of norm zero changes nothing. Sources: `add`, `ablate` and `ablate_then_add` are those of the steering-vectors
library; `rotate` is angular steering (Vu and Nguyen 2025) in the plane of x and v.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError

Scalar = Float[Array, "..."]
Operator = Callable[[Scalar, Scalar, Scalar, Scalar], tuple[Scalar, Scalar]]
"""(‖x‖, x·u, strength, ‖v‖) -> (scale, amount)."""


def _add(size: Scalar, along: Scalar, strength: Scalar, length: Scalar) -> tuple[Scalar, Scalar]:
    return jnp.ones_like(along), strength * length


def _ablate(size: Scalar, along: Scalar, strength: Scalar, length: Scalar) -> tuple[Scalar, Scalar]:
    return jnp.ones_like(along), -strength * along


def _ablate_then_add(size: Scalar, along: Scalar, strength: Scalar, length: Scalar) -> tuple[Scalar, Scalar]:
    return jnp.ones_like(along), strength * length - along


def _at_least(size: Scalar, along: Scalar, strength: Scalar, length: Scalar) -> tuple[Scalar, Scalar]:
    return jnp.ones_like(along), jnp.maximum(strength * length - along, 0.0)


def _at_most(size: Scalar, along: Scalar, strength: Scalar, length: Scalar) -> tuple[Scalar, Scalar]:
    return jnp.ones_like(along), jnp.minimum(strength * length - along, 0.0)


def _rotate(size: Scalar, along: Scalar, strength: Scalar, length: Scalar) -> tuple[Scalar, Scalar]:
    across = jnp.sqrt(jnp.maximum(size * size - along * along, 0.0))
    angle = jnp.arctan2(across, along)
    turned = jnp.clip(angle - strength, 0.0, jnp.pi)
    # x = along · u + across · w with w orthogonal to u. If x is parallel to u there is no such w, and x stays.
    scale = jnp.where(across > 0, size * jnp.sin(turned) / jnp.where(across > 0, across, 1.0), 1.0)
    amount = jnp.where(across > 0, size * jnp.cos(turned) - scale * along, 0.0)
    return jnp.where(strength == 0, 1.0, scale), jnp.where(strength == 0, 0.0, amount)


def _add_keeping_norm(size: Scalar, along: Scalar, strength: Scalar, length: Scalar) -> tuple[Scalar, Scalar]:
    step = strength * length
    new = jnp.sqrt(jnp.maximum(size * size + 2 * along * step + step * step, 0.0))
    scale = jnp.where(new > 0, size / jnp.where(new > 0, new, 1.0), 1.0)
    return jnp.where(step == 0, 1.0, scale), jnp.where(new > 0, scale, 0.0) * step


OPERATORS: dict[str, Operator] = {
    "add": _add,
    "ablate": _ablate,
    "ablate_then_add": _ablate_then_add,
    "at_least": _at_least,
    "at_most": _at_most,
    "rotate": _rotate,
    "add_keeping_norm": _add_keeping_norm,
}
"""The operators by name. The position of a name is its number in a table of requests."""


def operator_called(name: str) -> Operator:
    """The operator called `name`.

    Raises:
      UserError: there is none.
    """
    if name not in OPERATORS:
        raise UserError(f"no operator {name!r}: there are {', '.join(OPERATORS)}")
    return OPERATORS[name]
