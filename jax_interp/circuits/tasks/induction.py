"""Induction: a random sequence is repeated, and the next token is the one that followed the last time.

    clean       … q A r …  q      → A
    corrupted   … q B r …  q      → B

The two prompts differ in one token: the one after the earlier occurrence of the last token (Olsson et al. 2022).
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from jax_interp.circuits.contrast import make_contrast
from jax_interp.circuits.metrics import LogitDifference
from jax_interp.circuits.tasks.examples import Examples
from jax_interp.circuits.tasks.task import TASKS, Task, check_count
from jax_interp.core.errors import UserError
from jax_interp.data.tokenizer import Tokenizer


@TASKS.register
@dataclasses.dataclass(frozen=True)
class Induction(Task):
    """Repeated random tokens.

    Args:
      period: the length of the sequence that is repeated.
      repeated: how many of its tokens are repeated before the prediction, from 1 to `period - 1`.
      first_id: the lowest token id that is drawn.
      last_id: the highest one. None: the highest of the tokenizer.
    """

    period: int = 12
    repeated: int = 6
    first_id: int = 0
    last_id: int | None = None

    name = "induction"
    about = "A random sequence is repeated; the next token follows from the first time."

    def sample(self, tokenizer: Tokenizer, n: int, seed: int = 0) -> Examples:
        """As in `Task`. Special tokens are not drawn, and BOS comes first if the tokenizer has one."""
        most = min(tokenizer.vocab_size, tokenizer.model_ids or tokenizer.vocab_size) - 1
        last = most if self.last_id is None else self.last_id
        if not 0 <= self.first_id <= last <= most:
            raise UserError(f"first_id={self.first_id}, last_id={last}: the tokenizer has the ids 0 to {most}")
        ids = [i for i in range(self.first_id, last + 1) if i not in tokenizer.special_ids]
        examples = self.of_ids(np.asarray(ids, np.int32), n, seed, tokenizer.bos_id)
        texts = ["".join(tokenizer.texts(row)) for row in np.asarray(examples.contrast.clean).tolist()]
        others = ["".join(tokenizer.texts(row)) for row in np.asarray(examples.contrast.corrupted).tolist()]
        return dataclasses.replace(examples, clean=tuple(texts), corrupted=tuple(others))

    def of_ids(self, ids: np.ndarray, n: int, seed: int = 0, bos: int | None = None) -> Examples:
        """Prompts for a model without a tokenizer, such as a toy.

        Args:
          ids: the token ids to draw from.
          n: the number of pairs.
          seed: the same seed gives the same prompts.
          bos: the id that comes first. None: none.
        """
        check_count(n)
        if not 1 <= self.repeated < self.period:
            raise UserError(f"repeated={self.repeated} of period={self.period}: repeat 1 to {self.period - 1} tokens")
        if len(ids) <= self.period:
            raise UserError(f"there are {len(ids)} token ids to draw {self.period + 1} different ones from")
        rng = np.random.default_rng(seed)
        drawn = np.stack([rng.choice(ids, self.period + 1, replace=False) for _ in range(n)]).astype(np.int32)
        once, answers, others = drawn[:, :-1], drawn[:, self.repeated], drawn[:, -1]
        changed = once.copy()
        changed[:, self.repeated] = others
        start = np.full((n, 0 if bos is None else 1), 0 if bos is None else bos, np.int32)
        again = once[:, : self.repeated]
        sides = [np.concatenate([start, first, again], 1) for first in (once, changed)]
        where, last = start.shape[1] + self.repeated, sides[0].shape[1] - 1
        at = lambda position: np.full(n, position, np.int32)
        positions = {"first": at(where - 1), "after": at(where), "end": at(last)}
        metric = LogitDifference(jnp.asarray(answers), jnp.asarray(others))
        contrast = make_contrast(sides[0], sides[1], metric)
        clean, corrupted = [tuple(" ".join(map(str, row)) for row in side.tolist()) for side in sides]
        return Examples(contrast, clean, corrupted, positions, {}, answers)
