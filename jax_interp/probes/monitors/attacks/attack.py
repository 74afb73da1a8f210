"""What an attack is: a bounded search for tokens, or for a shift of embeddings, that make an objective small.

found = attack(GreedyCoordinate(steps=50), objective, tokens, slots, key, table=token_table(model, vocab))
found.tokens, found.loss
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.core.registry import Registry
from jax_interp.surgery import Model, values_at
from jax_interp.training.placement import automatic

Objective = Callable[[Array, Array | None], Array]
"""From tokens `[example, pos]`, and what is added to their embeddings (None: nothing), to the loss of each example. It
is a pytree: a registered dataclass, or a `jax.tree_util.Partial`."""


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Attacked:
    """What an attack has found.

    Args:
      tokens: the tokens of each example.
      shift: what is added to their embeddings. None: nothing.
      loss: the objective of each example.
      trace: the lowest objective so far, before the first step and after each one.
    """

    tokens: Int[Array, "example pos"]
    shift: Float[Array, "example pos d"] | None
    loss: Float[Array, " example"]
    trace: Float[Array, "steps+1 example"]


class Attack(abc.ABC):
    """A bounded search. It changes only the tokens, or the embeddings, at the slots. A frozen dataclass of numbers."""

    @property
    @abc.abstractmethod
    def queries(self) -> int:
        """How often the objective of an example is evaluated. A gradient counts as one. Attacks are comparable at
        equal numbers."""

    @abc.abstractmethod
    def run(
        self,
        objective: Objective,
        table: Float[Array, "vocab d"],
        allowed: Int[Array, " allowed"],
        tokens: Int[Array, "example pos"],
        slots: Int[Array, "example slot"],
        key: Key[Array, ""],
    ) -> Attacked:
        """Search: a pure function, which is traced.

        Args:
          objective: the loss of each example.
          table: the embedding of each token.
          allowed: the tokens that may be put into a slot.
          tokens: where the search starts.
          slots: the positions that may change.
          key: the key of the random choices.
        """


ATTACKS = Registry("attack", Attack)


def attack(
    how: Attack,
    objective: Objective,
    tokens: Int[np.ndarray | Array, "example pos"],
    slots: Bool[np.ndarray, "example pos"],
    key: Key[Array, ""],
    *,
    table: Float[Array, "vocab d"],
    allowed: Bool[np.ndarray, " vocab"] | None = None,
) -> Attacked:
    """Attack all examples at once, each for itself. One compiled program for one shape.

    Args:
      how: the attack.
      objective: the loss of each example, which the attack makes small.
      tokens: where the search starts.
      slots: the positions that may change: equally many in each example.
      key: the key of the random choices.
      table: the embedding of each token.
      allowed: the tokens that may be put into a slot. None: all.

    Raises:
      UserError: an example has no slot or another number of slots, no token is allowed, or the loss at the start is not
        finite.
    """
    slots = np.asarray(slots, bool)
    counts = slots.sum(axis=1)
    if slots.shape != np.shape(tokens) or not len(counts) or counts.min() < 1 or counts.min() != counts.max():
        raise UserError(
            f"an attack needs equally many slots in each example: slots of shape {slots.shape} for tokens "
            f"{np.shape(tokens)} have {', '.join(map(str, np.unique(counts)))}"
        )
    ids = np.arange(len(table)) if allowed is None else np.flatnonzero(allowed)
    if not ids.size or ids[-1] >= len(table):
        raise UserError(f"{ids.size} tokens are allowed, of a table of {len(table)}: allow some of the table's")
    at = np.nonzero(slots)[1].reshape(len(counts), -1)
    start = jnp.asarray(tokens, jnp.int32), jnp.asarray(at, jnp.int32)
    found = _run(how, objective, table, jnp.asarray(ids, jnp.int32), *start, key)
    if not np.isfinite(found.trace[0]).all():
        raise UserError("the objective is not finite before the attack")
    return found


@partial(jax.jit, static_argnums=0)
def _run(how: Attack, *inputs: Any) -> Attacked:
    return automatic(how.run)(*inputs)


def token_table(model: Model, vocab: int, embed: str = "embed") -> Float[Array, "vocab d"]:
    """The embedding of each token, read from the model at its address.

    Args:
      model: the model.
      vocab: the number of tokens.
      embed: the address of the embeddings, before positions are added.

    Raises:
      AddressError: the model has no such value.
    """
    tokens = jnp.arange(vocab, dtype=jnp.int32)[:, None]
    return _embeddings(embed, model, tokens)


@partial(jax.jit, static_argnums=0)
@automatic
def _embeddings(embed: str, model: Model, tokens: Array) -> Array:
    return values_at(model, embed)(tokens)[embed][:, 0]
