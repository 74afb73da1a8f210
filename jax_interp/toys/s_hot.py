"""Which neurons a circuit gets: S of n slots each, any two circuits sharing at most one (rotations in superposition).

Circuits are arithmetic progressions, one step at a time. Steps that a prime below S divides would put two terms of a
progression on two of another's; S itself is allowed with its powers where it is not a prime.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jax_interp.core.errors import UserError


def allowed_steps(S: int, n: int) -> Iterator[int]:
    """The steps whose progressions of S terms fit into n slots, in the order in which they are used."""
    primes = [q for q in range(2, S) if _is_prime(q)]
    for step in range(1, n):
        if step * (S - 1) >= n:
            return
        if any(step % q == 0 for q in primes):
            continue
        yield step
        if not _is_prime(S):
            power = S
            while step * power * (S - 1) < n:
                yield step * power
                power *= S


def assign(T: int | None, n: int, S: int) -> Int[np.ndarray, "T S"]:
    """The slots of T circuits, or of as many as fit: 557 of S = 6 into n = 250. Raises UserError where T do not fit."""
    rows: list[list[int]] = []
    steps = allowed_steps(S, n)
    step, shift, i = next(steps, 0), 0, 0
    while step and (T is None or len(rows) < T):
        if i + step * (S - 1) >= n:
            shift += 1
            if shift >= step or shift + step * (S - 1) >= n:
                step, shift = next(steps, 0), 0
            i = shift
            continue
        rows.append([i + s * step for s in range(S)])
        i += step * S
    if T is not None and len(rows) < T:
        raise UserError(f"{T} circuits of {S} slots with overlaps of at most 1 do not fit into {n}: {len(rows)} do")
    return np.array(rows).reshape(-1, S)


def most(n: int, S: int) -> int:
    """How many circuits fit."""
    return len(assign(None, n, S))


def embeddings(key: Key[Array, ""], T: int, n: int, S: int, layers: int) -> Float[Array, "layer T n"]:
    """For each layer the rows of ones and zeros that say which slots a circuit has, circuits shuffled anew."""
    hot = jnp.asarray(np.eye(n, dtype=np.float32)[assign(T, n, S)].sum(axis=1))
    return jax.vmap(lambda key: jax.random.permutation(key, hot, axis=0))(jax.random.split(key, layers))


def _is_prime(q: int) -> bool:
    return q > 1 and all(q % r for r in range(2, int(q**0.5) + 1))
