"""Operators: how a vector changes a value. Each one stays in the plane of the value x and the direction u = v / ‖v‖.

    x'  =  scale · x  +  amount · u

An operator computes the two scalars from four scalars: the norm of the part of x across u, ‖x - (x·u) u‖; the
coefficient x·u; the strength; and the norm ‖v‖. So one program can apply another operator to each row of a batch.

    add               x + s v                                the usual steering vector
    ablate            x - s (x·u) u                          s = 1 removes the direction
    ablate_then_add   x - (x·u) u + s v                      sets the coefficient x·u to s ‖v‖
    at_least          raises the coefficient x·u to s ‖v‖ where it is less
    at_most           lowers the coefficient x·u to s ‖v‖ where it is more
    rotate            turns x towards v by the angle s (radians) and keeps ‖x‖; s < 0 turns it away
    add_keeping_norm  x + s v, scaled back to the norm of x

A vector of norm zero changes nothing. `rotate` stops when x points along v, or against it. There, and at x = 0, the
plane is not defined, and x stays. `add_keeping_norm` leaves x where x + s v is 0. All gradients are finite.

Sources: `add`, `ablate` and `ablate_then_add` are those of the steering-vectors library. repeng calls
`add_keeping_norm` normalize=True.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError

Scalar = Float[Array, "..."]
Operator = Callable[[Scalar, Scalar, Scalar, Scalar], tuple[Scalar, Scalar]]
"""(‖x - (x·u) u‖, x·u, strength, ‖v‖) -> (scale, amount)."""


def _add(across: Scalar, along: Scalar, strength: Scalar, length: Scalar) -> tuple[Scalar, Scalar]:
    return jnp.ones_like(along), strength * length


def _ablate(across: Scalar, along: Scalar, strength: Scalar, length: Scalar) -> tuple[Scalar, Scalar]:
    return jnp.ones_like(along), -strength * along


def _ablate_then_add(across: Scalar, along: Scalar, strength: Scalar, length: Scalar) -> tuple[Scalar, Scalar]:
    return jnp.ones_like(along), strength * length - along


def _at_least(across: Scalar, along: Scalar, strength: Scalar, length: Scalar) -> tuple[Scalar, Scalar]:
    return jnp.ones_like(along), jnp.maximum(strength * length - along, 0.0)


def _at_most(across: Scalar, along: Scalar, strength: Scalar, length: Scalar) -> tuple[Scalar, Scalar]:
    return jnp.ones_like(along), jnp.minimum(strength * length - along, 0.0)


def _rotate(across: Scalar, along: Scalar, strength: Scalar, length: Scalar) -> tuple[Scalar, Scalar]:
    # x = along · u + across · w with w orthogonal to u. If x is parallel to u, w would be rounding error, and x stays.
    parallel = across <= 16 * jnp.finfo(along.dtype).eps * jnp.abs(along)
    safe = jnp.where(parallel, 1.0, across)
    size = root(safe * safe + along * along)
    turned = jnp.clip(jnp.arctan2(safe, along) - strength, 0.0, jnp.pi)
    scale = size * jnp.sin(turned) / safe
    amount = size * jnp.cos(turned) - scale * along
    unchanged = strength == 0
    scale, amount = _exactly(unchanged, scale, 1.0), _exactly(unchanged, amount, 0.0)
    return jnp.where(parallel, 1.0, scale), jnp.where(parallel, 0.0, amount)


def _add_keeping_norm(across: Scalar, along: Scalar, strength: Scalar, length: Scalar) -> tuple[Scalar, Scalar]:
    step = strength * length
    size, new = (root(across * across + part * part) for part in (along, along + step))
    nothing = new <= 16 * jnp.finfo(along.dtype).eps * jnp.abs(along)
    scale = size / jnp.where(nothing, 1.0, new)
    scale = _exactly(step == 0, scale, 1.0)
    return jnp.where(nothing, 1.0, scale), jnp.where(nothing, 0.0, scale * step)


def _exactly(where: Array, value: Scalar, exact: float) -> Scalar:
    """`value`, which is `exact` to the last bit where a condition holds. The gradient is that of `value`."""
    return value + jax.lax.stop_gradient(jnp.where(where, exact - value, 0.0))


def root(square: Scalar) -> Scalar:
    """The square root, with the gradient 0 at 0."""
    nothing = square == 0
    return jnp.where(nothing, 0.0, jnp.sqrt(jnp.where(nothing, 1.0, square)))


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
