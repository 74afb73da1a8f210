"""Prompts of questions as labelled texts: two levels of a factor are the classes, and no answer is read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.steering.questions import Questions


def prompts_by_factor(
    questions: Questions, factor: str, negative: str, positive: str, *, special_ids: Sequence[int] = ()
) -> LabelledTokens:
    """The prompts of two levels of a factor. By default they are read at their last token.

    Directions of answers contain the direction from one answer to the other. Directions of prompts do not: they go from
    what the model has understood in one kind of prompts to what it has understood in the other kind.

    Args:
      questions: the questions.
      factor: the name of the factor.
      negative: the level that the direction begins at.
      positive: the level that it goes to.
      special_ids: tokens that are never read, such as BOS.

    Raises:
      UserError: there is no such factor, or no question of a level.
    """
    if factor not in questions.factors:
        known = ", ".join(questions.factors) or "none"
        raise UserError(f"{questions.name} has no factor {factor!r}; it has {known}")
    levels = np.asarray(questions.factors[factor], object)
    for level in (negative, positive):
        if not (levels == level).any():
            raise UserError(
                f"no question of {questions.name} has {factor} = {level!r}; there are {sorted(set(levels))}"
            )
    rows = np.flatnonzero((levels == negative) | (levels == positive)).tolist()
    size = max(len(questions.prompts[row]) for row in rows)
    tokens, mask = np.zeros((len(rows), size), np.int32), np.zeros((len(rows), size), bool)
    for i, row in enumerate(rows):
        prompt = questions.prompts[row]
        tokens[i, : len(prompt)], mask[i, : len(prompt)] = prompt, True
    readable = mask & ~np.isin(tokens, list(special_ids))
    labels = (levels[rows] == positive).astype(np.int32)
    groups = np.asarray(questions.group_numbers)[rows]
    return LabelledTokens(questions.name, tokens, mask, readable, labels, (negative, positive), groups)
