"""What a method that looks for triggers is given, and what it returns.

found = GradientRanking().rank(Suspect(model, dictionary, address), audit, key)
found.ids, found.scores         the best first; `judge` compares the best with a null distribution
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.core.registry import Registry
from jax_interp.steering.backdoors.audit import AuditTexts
from jax_interp.surgery import Model
from jax_interp.surgery.sparse_coder import as_sparse_coder

What = Literal["latent", "tokens"]


@dataclasses.dataclass(frozen=True, eq=False)
class Suspect:
    """A model that may have a backdoor, and a dictionary of one of its values.

    Args:
      model: any causal model that keeps the contract of `jax_interp.surgery`; its output is logits.
      dictionary: a dictionary of the value at `address`. Methods that search tokens do not need it.
      address: the address of one value with the axes (batch, pos, d).
    """

    model: Model
    dictionary: Any = None
    address: str = ""

    def directions(self) -> Float[Array, "feature d"]:
        """The direction of each latent.

        Raises:
          UserError: there is no dictionary, or its latents have no fixed directions.
        """
        if self.dictionary is None or not self.address:
            raise UserError("this method ranks latents: give Suspect a dictionary and the address that it reads")
        directions = as_sparse_coder(self.dictionary).directions()
        if directions is None:
            raise UserError(f"the latents of {type(self.dictionary).__name__} have no fixed directions to rank by")
        return jnp.asarray(directions, jnp.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """What a method found, the best first. `ranked` makes it.

    Args:
      method: the name of the method.
      what: "latent": each id is the number of a latent. "tokens": each id is a sequence of tokens.
      ids: what was ranked.
      scores: the score of each, falling.
      unit: the unit of the scores.
    """

    method: str
    what: What
    ids: tuple[tuple[int, ...], ...]
    scores: Float[np.ndarray, " ranked"]
    unit: str

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def best(self) -> float:
        """The highest score."""
        return float(self.scores[0])

    def top(self, count: int) -> Ranking:
        """The first ones."""
        return dataclasses.replace(self, ids=self.ids[:count], scores=self.scores[:count])

    def place_of(self, *ids: int) -> int:
        """The place of a latent, or of a sequence of tokens; 0 is the best.

        Raises:
          UserError: it was not ranked.
        """
        if ids not in self.ids:
            raise UserError(f"{self.method} has not ranked {ids}")
        return self.ids.index(ids)


def ranked(
    method: str, what: What, ids: Sequence[Sequence[int]], scores: Sequence[float] | np.ndarray, unit: str
) -> Ranking:
    """A ranking of these ids. Equal scores keep their order.

    Raises:
      UserError: there is nothing to rank, or a score is not finite.
    """
    values = np.asarray(scores, np.float64)
    if not len(values) or len(values) != len(ids):
        raise UserError(f"{method}: {len(values)} scores of {len(ids)} candidates")
    if not np.isfinite(values).all():
        raise UserError(f"{method}: {int((~np.isfinite(values)).sum())} scores are not finite: try float32")
    order = np.argsort(-values, kind="stable")
    return Ranking(method, what, tuple(tuple(int(i) for i in ids[at]) for at in order), values[order], unit)


class TriggerMethod(abc.ABC):
    """A way to look for triggers. A frozen dataclass of numbers."""

    @abc.abstractmethod
    def rank(self, suspect: Suspect, audit: AuditTexts, key: Key[Array, ""]) -> Ranking:
        """Rank latents, or sequences of tokens, by how much they make the target likelier.

        Args:
          suspect: the model, and the dictionary if latents are ranked.
          audit: ordinary prompts with the target.
          key: random key, for methods that draw.
        """


METHODS = Registry("method that looks for triggers", TriggerMethod)
