"""Contrast pairs: labelled texts in pairs, of which one shows a behaviour and the other does not.

data = pairs_of_questions(questions)                               each question with its matching and its other answer
data = pairs_of_texts(tokenizer, ["I love it", ...], ["I hate it", ...])

Both are `LabelledTokens` with `pairs`, so whatever probes are fitted on serves too: `tokenized(..., pairs=...)`.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.probes.class_numbers import joined_groups
from jax_interp.probes.labelled_texts import tokenized
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.steering.questions import Questions

CLASSES = ("other", "matching")
"""The classes of the answers. The second one is the positive class."""
CHOICE = "choice"
"""The span of the first token in which the two answers to a question differ."""


class UnbalancedChoicesWarning(UserWarning):
    """One of two choices, such as a letter, is the matching one more often than the other."""


def pairs_of_questions(questions: Questions, *, special_ids: Sequence[int] = ()) -> LabelledTokens:
    """Each question twice: followed by its matching answer, and followed by its other answer.

    The spans are "prompt", "answer" (its tokens) and "choice": the first token of an answer that the other answer does
    not have at this place. In the answers "(A)" and "(B)" it is the letter. Contrastive activation addition
    (Rimsky et al. 2023, arXiv:2312.06681) reads this token. Where one answer is the beginning of the other one, the
    choice of the shorter answer is its last token.

    Args:
      questions: the questions. Their factors become columns.
      special_ids: tokens that are never read, such as BOS.

    Returns:
      The examples: all questions with the matching answer, and then all with the other one. `pairs` has both.

    Raises:
      UserError: a choice is a special token.

    Warns:
      UnbalancedChoicesWarning: as in `imbalance`, by more than 5 %. The mean difference then contains the direction
        from one letter to the other. `balanced` leaves questions out.
    """
    n = len(questions)
    if (share := imbalance(questions)) > 0.05:
        warnings.warn(
            f"{questions.name}: the choices are unbalanced by {share:.0%}: one choice (a letter, or yes and no) is the "
            "matching one more often than the other. A difference of means then contains the direction from one choice "
            "to the other. `balanced(questions)` leaves questions out until it cancels",
            UnbalancedChoicesWarning,
            stacklevel=2,
        )
    answers = (*questions.matching, *questions.other)
    prompts = questions.prompts * 2
    size = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    tokens, mask = np.zeros((2 * n, size), np.int32), np.zeros((2 * n, size), bool)
    spans = {name: np.zeros((2 * n, size), bool) for name in ("prompt", "answer", CHOICE)}
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        start, end = len(prompt), len(prompt) + len(answer)
        tokens[row, :start], tokens[row, start:end], mask[row, :end] = prompt, answer, True
        spans["prompt"][row, :start] = spans["answer"][row, start:end] = True
        spans[CHOICE][row, start + _choice(questions, row % n)[row // n]] = True
    readable = mask & ~np.isin(tokens, list(special_ids))
    if (lost := spans[CHOICE] & ~readable).any():
        row = int(np.argmax(lost.any(axis=1)))
        raise UserError(f"{questions.name}: the choice of question {row % n} is a special token, which is never read")
    pairs = np.stack([np.arange(n), n + np.arange(n)], axis=1).astype(np.int32)
    return LabelledTokens(
        questions.name,
        tokens,
        mask,
        readable,
        np.repeat(np.asarray([1, 0], np.int32), n),
        CLASSES,
        joined_groups(2 * n, None, [bytes(np.asarray(prompt)) for prompt in prompts], pairs=pairs),
        pairs=pairs,
        spans=spans,
        columns={name: tuple(levels) * 2 for name, levels in questions.factors.items()},
    )


def pairs_of_texts(
    tokenizer: Tokenizer, positive: Sequence[str], negative: Sequence[str], *, name: str = "texts"
) -> LabelledTokens:
    """Pairs of texts, of which the first shows the behaviour. Both are read at their last token by default.

    Args:
      tokenizer: the tokenizer of the model.
      positive: the texts that show the behaviour.
      negative: the other text of each pair.
      name: the name of the set in tables.

    Raises:
      UserError: the lengths differ, or as in `tokenized`.
    """
    if len(positive) != len(negative):
        raise UserError(f"{name}: {len(positive)} positive and {len(negative)} negative texts are no pairs")
    n = len(positive)
    pairs = np.stack([np.arange(n), n + np.arange(n)], axis=1).astype(np.int32)
    labels = ["positive"] * n + ["negative"] * n
    data = tokenized(tokenizer, [*positive, *negative], labels, name=name, pairs=pairs)
    return data.ordered(("negative", "positive"))


def imbalance(questions: Questions) -> float:
    """How far the choices are from balance, between 0 and 1.

    Two choices (a, b) are in balance if a is the matching one as often as b. The imbalance is the sum of the
    differences, divided by the number of questions. Choices that occur in one question only do not count: then the
    answers are texts, and not letters.
    """
    counts, unbalanced, n = Counter(_choices(questions)), 0, 0
    for (matching, other), count in counts.items():
        reverse = counts.get((other, matching), 0)
        if count + reverse > 1:
            n += count
            unbalanced += max(count - reverse, 0)
    return unbalanced / n if n else 0.0


def balanced(questions: Questions) -> Questions:
    """The first questions of each kind, as many as there are with the choices exchanged, so that letters cancel.

    Raises:
      UserError: no question has a counterpart with the choices exchanged.
    """
    choices = _choices(questions)
    counts, seen, kept = Counter(choices), Counter[tuple[int, int]](), []
    for row, (matching, other) in enumerate(choices):
        seen[matching, other] += 1
        if seen[matching, other] <= counts.get((other, matching), 0):
            kept.append(row)
    if not kept:
        raise UserError(
            f"{questions.name}: no two questions have the same choices exchanged, such as (A matching, B other) and "
            "(B matching, A other), so no part of them is balanced: exchange the letters of half of the questions"
        )
    return questions.take(kept)


def _choice(questions: Questions, row: int) -> tuple[int, int]:
    """The number of the token of (the matching answer, the other answer) in which they differ first."""
    matching, other = questions.matching[row], questions.other[row]
    shorter = min(len(matching), len(other))
    at = next((i for i in range(shorter) if matching[i] != other[i]), shorter)
    return min(at, len(matching) - 1), min(at, len(other) - 1)


def _choices(questions: Questions) -> list[tuple[int, int]]:
    """The tokens of the choices (matching, other) of each question."""
    found = []
    for row in range(len(questions)):
        first, second = _choice(questions, row)
        found.append((questions.matching[row][first], questions.other[row][second]))
    return found
