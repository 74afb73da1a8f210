"""`Windows`: positions of a text where units have scores, with the tokens around them."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class Windows:
    """Some positions of each unit, with the tokens around them.

    A window holds `before` tokens, the position itself, and some tokens after it. If a unit has fewer windows than
    requested, the other windows are blank: `peak` is 0, and `tokens` and `place` are -1.

    Args:
      peak: the score at the position itself.
      tokens: the tokens of the window. -1 outside the sequence and where not kept.
      scores: the scores of the unit in the window. 0 where `tokens` is -1.
      activations: the second value of `Scores` in the window. None if the score function does not return it.
      before: the index of the position itself in the window.
      place: the number of the sequence in the text and the position in the sequence, both counted from 0. None: not
        known.
    """

    peak: Float[np.ndarray, "unit k"]
    tokens: Int[np.ndarray, "unit k window"]
    scores: Float[np.ndarray, "unit k window"]
    activations: Float[np.ndarray, "unit k window"] | None
    before: int
    place: Int[np.ndarray, "unit k 2"] | None = None
