"""`Questions`: prompts with two possible answers, of which one shows a behaviour.

Steering is found and measured on them.
The propensity of a model is log P(matching answer) - log P(other answer).

    questions = asked(tokenizer, read_questions("lm_survival-instinct.jsonl").both_orders())
    parts = questions.split({"train": 0.4, "validation": 0.1, "test": 0.5}, seed=0)
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int

from jax_interp.core.errors import UserError

PLACEMENTS = ("all", "after_instruction", "answer")
"""At which tokens of a question a model is steered. `Questions.steered_tokens` says what the names mean."""


@dataclasses.dataclass(frozen=True, eq=False)
class Questions:
    """Prompts and their two answers, as token ids.

    Args:
      name: the name of the set in tables.
      prompts: the token ids of each prompt, BOS included if the model has one.
      matching: the token ids of the answer that shows the behaviour.
      other: the token ids of the other answer.
      factors: nuisance factors by name, such as the letter of the matching answer: the level of each question.
      groups: what leaks between questions: copies of one question (with exchanged options, with another template) have
        the same group. Empty: each question is its own group.
      instructions: the number of tokens of each prompt up to the end of the instruction, BOS included. Empty: the whole
        prompt is the instruction.
      left_out: the number of rows that are not in the set, by reason.

    Raises:
      UserError: there is no question, the lengths differ, a prompt or an answer has no tokens, both answers are the
        same, or an instruction is longer than its prompt.
    """

    name: str
    prompts: tuple[tuple[int, ...], ...]
    matching: tuple[tuple[int, ...], ...]
    other: tuple[tuple[int, ...], ...]
    factors: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    groups: tuple[str, ...] = ()
    instructions: tuple[int, ...] = ()
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.prompts)
        if not n:
            raise UserError(f"{self.name} has no questions")
        lengths = {"matching": len(self.matching), "other": len(self.other)}
        lengths |= {f"the factor {name}": len(levels) for name, levels in self.factors.items()}
        lengths |= {"groups": len(self.groups)} if self.groups else {}
        lengths |= {"instructions": len(self.instructions)} if self.instructions else {}
        for what, length in lengths.items():
            if length != n:
                raise UserError(f"{self.name}: {what} has {length} entries for {n} questions")
        for i, texts in enumerate(zip(self.prompts, self.matching, self.other, strict=True)):
            if not all(texts):
                raise UserError(f"{self.name}: the prompt and both answers of question {i} need at least one token")
            if texts[1] == texts[2]:
                raise UserError(f"{self.name}: both answers of question {i} are the same tokens")
        for i, (end, prompt) in enumerate(zip(self.instructions, self.prompts, strict=False)):
            if not 1 <= end <= len(prompt):
                raise UserError(
                    f"{self.name}: the instruction of question {i} has {end} tokens, and its prompt {len(prompt)}"
                )

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: np.ndarray | list[int]) -> Questions:
        """Some of the questions, in this order; or those where a boolean mask is True."""
        index = np.arange(len(self))[np.asarray(rows)].tolist()
        at = lambda values: tuple(values[i] for i in index) if values else ()
        return dataclasses.replace(
            self,
            prompts=at(self.prompts),
            matching=at(self.matching),
            other=at(self.other),
            factors={name: at(levels) for name, levels in self.factors.items()},
            groups=at(self.groups),
            instructions=at(self.instructions),
        )

    def renamed(self, name: str) -> Questions:
        """The same questions under another name."""
        return dataclasses.replace(self, name=name)

    @property
    def group_numbers(self) -> Int[np.ndarray, " question"]:
        """The number of the group of each question: 0 is the group of the first question."""
        if not self.groups:
            return np.arange(len(self))
        numbers = {group: number for number, group in enumerate(dict.fromkeys(self.groups))}
        return np.asarray([numbers[group] for group in self.groups])

    def split(self, parts: Mapping[str, float], seed: int = 0) -> dict[str, Questions]:
        """The questions in parts. Copies of one question are always in one part.

        The part of a question depends on its group and the seed. So copies of one set (under other templates, with
        exchanged options) are split alike: a question of the test part is in no training part.

        Args:
          parts: the share of each part, such as {"train": 0.4, "validation": 0.1, "test": 0.5}.
          seed: another seed gives another split.

        Raises:
          UserError: the shares do not add up to 1, or a part gets no question.
        """
        shares = np.asarray(list(parts.values()), float)
        if not parts or (shares <= 0).any() or abs(shares.sum() - 1) > 1e-6:
            raise UserError(f"the shares of the parts must be above 0 and add up to 1, not {dict(parts)}")
        numbers = self.group_numbers
        names = list(dict.fromkeys(self.groups)) or [str(number) for number in range(len(self))]
        drawn = [hashlib.sha256(f"{seed} {name}".encode()).hexdigest() for name in names]
        rank = np.argsort(np.argsort(drawn, kind="stable"), kind="stable")
        ends = np.rint(np.cumsum(shares) * len(names))
        of_group = np.searchsorted(ends, rank, side="right")
        found = {}
        for number, part in enumerate(parts):
            rows = of_group[numbers] == number
            if not rows.any():
                raise UserError(
                    f"{self.name} has {len(names)} different questions: the part {part!r} with the share "
                    f"{parts[part]:g} gets none of them. Give it a larger share"
                )
            found[part] = self.take(rows)
        return found

    def steered_tokens(self, placement: str, length: int) -> Bool[np.ndarray, "question pos"]:
        """At which tokens a placement steers each question, prompt and answer together, without padding on the left.

        Args:
          placement: "all" tokens; "after_instruction": from the last token of the instruction on, as Rimsky et al. 2023
            steer; "answer": the tokens that predict the answer, from the last token of the prompt on.
          length: the number of positions.

        Raises:
          UserError: there is no such placement.
        """
        starts = self._starts(placement)
        return np.arange(length)[None, :] >= starts[:, None]

    def _starts(self, placement: str) -> Int[np.ndarray, " question"]:
        ends = np.asarray([len(prompt) for prompt in self.prompts])
        if placement == "all":
            return np.zeros_like(ends)
        if placement == "after_instruction":
            return (np.asarray(self.instructions) if self.instructions else ends) - 1
        if placement == "answer":
            return ends - 1
        raise UserError(f"no placement {placement!r}: there are {', '.join(PLACEMENTS)}")

    def describe(self) -> str:
        """One line: how many questions and groups there are, what was left out, and the levels of each factor."""
        n = len(self)
        groups = f"{n} questions in {int(self.group_numbers.max()) + 1} groups"
        out = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items()) or "nothing"
        parts = [f"{self.name}: {groups}", f"left out: {out}"]
        for factor, levels in self.factors.items():
            counts = {level: levels.count(level) for level in sorted(set(levels))}
            parts.append(f"{factor}: " + ", ".join(f"{count} {level}" for level, count in counts.items()))
        return "; ".join(parts)


def joined_questions(sets: Sequence[Questions], name: str) -> Questions:
    """All questions of some sets, one set after the other.

    Questions of one group stay in one group. Factors that all sets have are kept.

    Args:
      sets: the sets, such as one set under several templates.
      name: the name of the result.

    Raises:
      UserError: there is no set.
    """
    if not sets:
        raise UserError("give at least one set of questions")
    chain = lambda of: tuple(value for one in sets for value in of(one))
    factors = [factor for factor in sets[0].factors if all(factor in one.factors for one in sets)]
    groups = lambda one: one.groups or tuple(f"{one.name} {number}" for number in range(len(one)))
    ends = lambda one: one.instructions or tuple(map(len, one.prompts))
    reasons = dict.fromkeys(reason for one in sets for reason in one.left_out)
    return Questions(
        name,
        chain(lambda one: one.prompts),
        chain(lambda one: one.matching),
        chain(lambda one: one.other),
        {factor: chain(lambda one: one.factors[factor]) for factor in factors},  # noqa: B023
        chain(groups),
        chain(ends),
        {reason: sum(one.left_out.get(reason, 0) for one in sets) for reason in reasons},
    )
