"""Greedy coordinate gradient: swap the tokens that the gradient suggests (Zou et al. 2023, arXiv:2307.15043).

A step takes the gradient by the embedding of each slot. The linear estimate of the objective after a swap at a slot is
the product of this gradient and the embedding of the new token. From the best tokens of each slot, swaps are drawn and
evaluated; the best swap stays if it is an improvement. The paper keeps the best swap always.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jax_interp.core.errors import UserError
from jax_interp.probes.monitors.attacks.attack import ATTACKS, Attack, Attacked, Objective


@ATTACKS.register
@dataclasses.dataclass(frozen=True)
class GreedyCoordinate(Attack):
    """Greedy coordinate gradient.

    Args:
      steps: the number of steps.
      candidates: the number of swaps that a step evaluates for each example.
      top: the number of best tokens of each slot that swaps are drawn from.
    """

    steps: int = 50
    candidates: int = 64
    top: int = 32

    def __post_init__(self):
        if min(self.steps, self.candidates, self.top) < 1:
            raise UserError(f"steps, candidates and top must be at least 1, got {self}")

    @property
    def queries(self) -> int:
        return self.steps * (self.candidates + 1)

    def run(
        self,
        objective: Objective,
        table: Float[Array, "vocab d"],
        allowed: Int[Array, " allowed"],
        tokens: Int[Array, "example pos"],
        slots: Int[Array, "example slot"],
        key: Key[Array, ""],
    ) -> Attacked:
        examples, row = len(tokens), jnp.arange(len(tokens))
        embeddings, top = table[allowed], min(self.top, allowed.size)

        def step(state: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], Array]:
            tokens, loss = state
            zero = jnp.zeros((*tokens.shape, table.shape[1]), table.dtype)
            gradient = jax.grad(lambda shift: jnp.sum(objective(tokens, shift)))(zero)[row[:, None], slots]
            gain = -jnp.einsum("nsd,vd->nsv", gradient, embeddings, precision=jax.lax.Precision.HIGHEST)
            best = allowed[jax.lax.top_k(gain, top)[1]]
            of_slot, of_rank = jax.random.split(key)
            shape = (self.candidates, examples)
            slot = jax.random.randint(of_slot, shape, 0, slots.shape[1])
            rank = jax.random.randint(of_rank, shape, 0, top)
            place, new = slots[row[None, :], slot], best[row[None, :], slot, rank]
            losses = jax.lax.map(lambda swap: objective(tokens.at[row, swap[0]].set(swap[1]), None), (place, new))
            losses = jnp.where(jnp.isnan(losses), jnp.inf, losses)
            chosen = jnp.argmin(losses, axis=0)
            found = losses[chosen, row]
            better = found < loss
            swapped = tokens.at[row, place[chosen, row]].set(new[chosen, row])
            state = jnp.where(better[:, None], swapped, tokens), jnp.where(better, found, loss)
            return state, state[1]

        start = objective(tokens, None)
        (tokens, loss), trace = jax.lax.scan(step, (tokens, start), jax.random.split(key, self.steps))
        return Attacked(tokens, None, loss, jnp.concatenate([start[None], trace]))
