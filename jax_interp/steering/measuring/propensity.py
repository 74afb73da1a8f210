"""Propensity: how much a model prefers the matching answer, at several strengths of a steering.

    m(x, λ) = log P(matching answer | x, λ) - log P(other answer | x, λ)

    found = propensities(model, questions, vector, (-1.5, -1, -0.5, 0, 0.5, 1, 1.5), placement="answer")
    found.values, found.p_matching                     [question, strength]

Log probabilities are summed over the tokens of an answer (Tan et al. 2024, arXiv:2407.12404). `p_matching` is the
probability of the matching answer among the two (Rimsky et al. 2023, arXiv:2312.06681).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.core import config_json
from jax_interp.core.errors import UserError
from jax_interp.core.objectives import cross_entropy
from jax_interp.steering.measuring.placing import at_tokens
from jax_interp.steering.measuring.steered_rows import (
    BATCHING,
    Batching,
    Rows,
    at_strengths,
    checked_strengths,
    padded_rows,
    takes,
)
from jax_interp.steering.questions import Questions
from jax_interp.steering.vector import Steering
from jax_interp.surgery import Model, edit
from jax_interp.training.placement import automatic

STRENGTHS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
"""The strengths of Tan et al. 2024."""


@dataclasses.dataclass(frozen=True, eq=False)
class Propensities:
    """The log probability of both answers of each question, at each strength.

    Args:
      questions: the name of the set.
      strengths: the strengths.
      matching: log P of the matching answer, in nats.
      other: log P of the other answer, in nats.
      groups: the number of the group of each question.
      factors: the level of each nuisance factor of each question.
    """

    questions: str
    strengths: Float[np.ndarray, " strength"]
    matching: Float[np.ndarray, "question strength"]
    other: Float[np.ndarray, "question strength"]
    groups: Int[np.ndarray, " question"]
    factors: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.matching)

    @property
    def values(self) -> Float[np.ndarray, "question strength"]:
        """The propensity: log P(matching) - log P(other), in nats."""
        return self.matching - self.other

    @property
    def p_matching(self) -> Float[np.ndarray, "question strength"]:
        """P(matching) / (P(matching) + P(other))."""
        return 1 / (1 + np.exp(-self.values))

    @property
    def p_answers(self) -> Float[np.ndarray, "question strength"]:
        """P(matching) + P(other). Where it is small, the model gives neither answer, and the propensity says little."""
        return np.exp(np.logaddexp(self.matching, self.other))

    def take(self, rows: np.ndarray | Sequence[int]) -> Propensities:
        """Some of the questions; or those where a boolean mask is True."""
        index = np.arange(len(self))[np.asarray(rows)]
        return dataclasses.replace(
            self,
            matching=self.matching[index],
            other=self.other[index],
            groups=self.groups[index],
            factors={name: tuple(levels[i] for i in index.tolist()) for name, levels in self.factors.items()},
        )

    def to_json(self) -> dict[str, Any]:
        arrays = {name: getattr(self, name).tolist() for name in ("strengths", "matching", "other", "groups")}
        factors = {name: list(levels) for name, levels in self.factors.items()}
        return {"questions": self.questions, **arrays, "factors": factors}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Propensities:
        """What `to_json` wrote.

        Raises:
          UserError: it is something else.
        """
        table = tuple[tuple[float, ...], ...]
        kinds: dict[str, Any] = {"questions": str, "strengths": tuple[float, ...], "matching": table, "other": table}
        kinds |= {"groups": tuple[int, ...], "factors": dict[str, tuple[str, ...]]}
        if not isinstance(values, Mapping) or set(values) != set(kinds):
            raise UserError(f"propensities have the entries {', '.join(kinds)}")
        found = {name: config_json.from_json(kind, values[name], name) for name, kind in kinds.items()}
        shape = (len(found["groups"]), len(found["strengths"]))
        levels = {len(of) for of in found["factors"].values()}
        rows = {len(row) for name in ("matching", "other") for row in found[name]}
        if {len(found["matching"]), len(found["other"])} | levels != {shape[0]} or rows != {shape[1]}:
            raise UserError(f"the propensities of {found['questions']!r} have parts of different lengths")
        arrays = {name: np.asarray(found[name], np.float64) for name in ("strengths", "matching", "other")}
        return cls(found["questions"], **arrays, groups=np.asarray(found["groups"]), factors=found["factors"])


def propensities(
    model: Model,
    questions: Questions,
    steering: Steering,
    strengths: Sequence[float] = STRENGTHS,
    *,
    placement: str | Sequence[int] = "all",
    batching: Batching = BATCHING,
) -> Propensities:
    """The log probability of both answers of each question, at each strength.

    If both answers of all questions are one token, one forward pass of the prompt gives both.

    Args:
      model: any model from tokens `[batch, pos]` to logits. It need not know the tokens of the answers as whole words.
      questions: the questions. They should not be those that the vector was found on.
      steering: what steers the model, such as a `SteeringVector`.
      strengths: the strengths. 0 is the model without an added vector.
      placement: the tokens at which it acts: a name in `PLACEMENTS` (see `Questions.steered_tokens`), or the first
        steered position of each question.
      batching: how rows are put into batches.

    Raises:
      UserError: a strength is not finite or stands twice, a log probability is NaN, a token id is outside the
        vocabulary, there is no such placement, or the steering belongs to the rows of one batch.
    """
    found = checked_strengths(strengths)
    short = all(len(a) == len(b) == 1 for a, b in zip(questions.matching, questions.other, strict=True))
    last_only = short and takes(model, "last_only")
    rows, of_question = (_prompt_rows if short else _answer_rows)(questions, placement)
    totals = at_strengths(partial(_log_probabilities, (short, last_only)), model, steering, rows, found, batching)
    log_p = np.zeros((len(questions), len(found), 2))
    np.add.at(log_p, of_question, totals["log_p"])
    if (wrong := ~np.isfinite(log_p).all(axis=-1)).any():
        question, strength = np.argwhere(wrong)[0].tolist()
        raise UserError(
            f"{questions.name}: an answer of question {question} has the log probability "
            f"{log_p[question, strength].tolist()} at strength {found[strength]:g}: look for NaN in the model and the "
            "vector, or for an overflow if it computes in float16; or use smaller strengths"
        )
    groups, factors = questions.group_numbers, dict(questions.factors)
    return Propensities(questions.name, found, log_p[..., 0], log_p[..., 1], groups, factors)


def _steered(questions: Questions, placement: str | Sequence[int], length: int) -> np.ndarray | None:
    """The steered tokens of each question. None: all."""
    if isinstance(placement, str):
        return None if placement == "all" else questions.steered_tokens(placement, length)
    first = np.asarray(placement)
    if first.shape != (len(questions),) or first.dtype.kind not in "iu" or (first < 0).any():
        raise UserError(f"give the first steered position of each of the {len(questions)} questions, from 0 on")
    return np.arange(length)[None, :] >= first[:, None]


def _prompt_rows(questions: Questions, placement: str | Sequence[int]) -> tuple[Rows, np.ndarray]:
    """A row for each question: its prompt. Both answers are one token."""
    tokens, mask = padded_rows(questions.prompts)
    answers = np.asarray([[a[0], b[0]] for a, b in zip(questions.matching, questions.other, strict=True)], np.int32)
    steered = _steered(questions, placement, tokens.shape[1])
    ends = mask.sum(axis=1).astype(np.int32) - 1
    rows = Rows(tokens, mask, steered, by_row={"answers": answers, "ends": ends})
    return rows, np.arange(len(questions))


def _answer_rows(questions: Questions, placement: str | Sequence[int]) -> tuple[Rows, np.ndarray]:
    """Two rows for each question: its prompt with each answer, without the last token, which predicts nothing."""
    sequences, parts = [], []
    for number, answers in enumerate(zip(questions.matching, questions.other, strict=True)):
        for which, answer in enumerate(answers):
            sequences.append((*questions.prompts[number], *answer[:-1]))
            parts.append((number, which, len(questions.prompts[number]) - 1, answer))
    tokens, mask = padded_rows(sequences)
    targets = np.full((*tokens.shape, 2), -1, np.int32)
    for row, (_, which, start, answer) in enumerate(parts):
        targets[row, start : start + len(answer), which] = answer
    of_question = np.asarray([part[0] for part in parts])
    steered = _steered(questions, placement, tokens.shape[1])
    steered = None if steered is None else steered[of_question]
    return Rows(tokens, mask, steered, by_token={"targets": targets}), of_question


@partial(jax.jit, static_argnums=0)
@automatic
def _log_probabilities(
    how: tuple[bool, bool], model: Model, steering: Steering, strength: Float[Array, " row"], inputs: dict[str, Any]
) -> dict[str, Array]:
    """log P of both answers, of the parts of them that are in each row: `[row, 2]`."""
    short, last_only = how
    edited = edit(model, *at_tokens(steering.edits(strength[:, None]), inputs["steered"]))
    more: dict[str, Any] = {} if inputs["mask"] is None else {"mask": inputs["mask"]}
    more |= {"last_only": True} if last_only else {}
    logits = edited(inputs["tokens"], **more)
    if short:
        if not last_only:
            logits = jnp.take_along_axis(logits, inputs["ends"][:, None, None], axis=1)
        losses = [cross_entropy(logits[:, 0], inputs["answers"][:, which]) for which in range(2)]
        return {"log_p": -jnp.stack(losses, axis=-1)}
    targets = inputs["targets"]
    losses = [cross_entropy(logits, targets[..., which]) for which in range(2)]
    counted = [jnp.sum(loss, axis=1, where=targets[..., which] >= 0) for which, loss in enumerate(losses)]
    return {"log_p": -jnp.stack(counted, axis=-1)}
