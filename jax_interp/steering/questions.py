"""`Questions`: prompts with two possible answers, of which one shows a behaviour.

Steering is found and measured on them.
The propensity of a model is log P(matching answer) - log P(other answer).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from jax_interp.core.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Questions:
    """Prompts and their two answers, as token ids.

    Args:
      name: the name of the set in tables.
      prompts: the token ids of each prompt, BOS included if the model has one.
      matching: the token ids of the answer that shows the behaviour.
      other: the token ids of the other answer.
      factors: nuisance factors by name, such as the letter of the matching answer: the level of each question.

    Raises:
      UserError: there is no question, the lengths differ, a prompt or an answer has no tokens, or both answers are the
        same.
    """

    name: str
    prompts: tuple[tuple[int, ...], ...]
    matching: tuple[tuple[int, ...], ...]
    other: tuple[tuple[int, ...], ...]
    factors: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.prompts)
        if not n:
            raise UserError(f"{self.name} has no questions")
        lengths = {"matching": len(self.matching), "other": len(self.other)}
        lengths |= {f"the factor {name}": len(levels) for name, levels in self.factors.items()}
        for what, length in lengths.items():
            if length != n:
                raise UserError(f"{self.name}: {what} has {length} entries for {n} questions")
        for i, texts in enumerate(zip(self.prompts, self.matching, self.other, strict=True)):
            if not all(texts):
                raise UserError(f"{self.name}: the prompt and both answers of question {i} need at least one token")
            if texts[1] == texts[2]:
                raise UserError(f"{self.name}: both answers of question {i} are the same tokens")

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: np.ndarray | list[int]) -> Questions:
        """Some of the questions, in this order; or those where a boolean mask is True."""
        index = np.arange(len(self))[np.asarray(rows)].tolist()
        at = lambda values: tuple(values[i] for i in index)
        factors = {name: at(levels) for name, levels in self.factors.items()}
        return Questions(self.name, at(self.prompts), at(self.matching), at(self.other), factors)
