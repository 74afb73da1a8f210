"""Modular addition: the tokens a, b, "=" are followed by (a + b) mod p. In the corrupted prompt b is another number."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from jax_interp.circuits.contrast import make_contrast
from jax_interp.circuits.metrics import LogitDifference
from jax_interp.circuits.tasks.examples import Examples
from jax_interp.circuits.tasks.task import check_count
from jax_interp.core.errors import UserError
from jax_interp.toys.modular_addition import pair_tokens


@dataclasses.dataclass(frozen=True)
class ModularAddition:
    """Modular addition, for the models of `jax_interp.toys.modular_addition`. It has no text, so it is no `Task`.

    Args:
      p: the modulus.
      changed: the summand that the corrupted prompt changes.
    """

    p: int = 113
    changed: str = "b"

    def sample(self, n: int, seed: int = 0) -> Examples:
        """Draw `n` pairs of prompts.

        Raises:
          UserError: `n`, `p` or `changed` is not possible.
        """
        check_count(n)
        if self.p < 3 or self.changed not in ("a", "b"):
            raise UserError(f"p={self.p}, changed={self.changed!r}: p is at least 3, and one of a and b changes")
        rng = np.random.default_rng(seed)
        numbers = np.stack([rng.integers(self.p, size=n), rng.integers(self.p, size=n)]).astype(np.int32)
        other = numbers.copy()
        row = "ab".index(self.changed)
        other[row] = (other[row] + rng.integers(1, self.p, size=n)) % self.p
        answers, wrong = ((pair.sum(0) % self.p).astype(np.int32) for pair in (numbers, other))
        clean, corrupted = [pair_tokens(jnp.asarray(a), jnp.asarray(b), self.p) for a, b in (numbers, other)]
        contrast = make_contrast(clean, corrupted, LogitDifference(jnp.asarray(answers), jnp.asarray(wrong)))
        texts, others = [tuple(f"{a} + {b} =" for a, b in pair.T.tolist()) for pair in (numbers, other)]
        positions = {name: np.full(n, i, np.int32) for i, name in enumerate(("a", "b", "end"))}
        return Examples(contrast, texts, others, positions, {}, answers)
