"""Questions as texts: read from files, with the options of lettered questions, exchanged and balanced.

    texts = read_questions("lm_survival-instinct.jsonl")      anthropics/evals, or your own JSON Lines, CSV or Parquet
    texts.both_orders()                                       each question twice, with its options exchanged
    texts.lettered()                                          two answers in words become the options (A) and (B)

A vector that is found from letters contains a part that only prefers "A" to "B". In `both_orders` each behaviour stands
as often behind "A" as behind "B", so that this part cancels.

Polarity: the files `lm_generated` of anthropics/evals mark the unsafe answer as matching. Some files `human_generated`
(survival instinct, power seeking, wealth seeking) mark the safe one. `read_questions` refuses them until you say which
answer is meant.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax_interp.core.errors import UserError
from jax_interp.data.labelled import read_columns

COLUMNS = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
"""The columns of anthropics/evals (Perez et al. 2022)."""
OPTION = re.compile(r"^[ \t]*\(([A-Za-z])\)[ \t:]*", re.MULTILINE)
LETTER = re.compile(r"^\s*\(([A-Za-z])\)\s*$")
META = re.compile(r"<META_START>.*?<META_END>", re.DOTALL)
LETTERS = ("A", "B")


@dataclasses.dataclass(frozen=True)
class QuestionText:
    """One question with its two answers.

    Args:
      question: the question, with its options if there are any.
      matching: the answer that shows the behaviour: "(A)" or "(B)" if the question has options, or words.
      other: the other answer.
      group: the same for all copies of one question.
      order: "as written", or "exchanged" for a copy with exchanged options.
    """

    question: str
    matching: str
    other: str
    group: str = ""
    order: str = "as written"

    @property
    def letter(self) -> str | None:
        """The letter of the matching answer; None if the answers are not two letters."""
        found = LETTER.match(self.matching) if LETTER.match(self.other) else None
        return None if found is None else found.group(1)

    def options(self) -> tuple[str, dict[str, str]]:
        """The text before the options, and the text behind each letter.

        Raises:
          UserError: the question has not exactly the two options (A) and (B), each at the start of a line.
        """
        marks = list(OPTION.finditer(self.question))
        letters = tuple(mark.group(1).upper() for mark in marks)
        if letters != LETTERS:
            raise UserError(f"the question {self.question[:60]!r} has the options {letters}, not (A) and (B)")
        ends = [marks[1].start(), len(self.question)]
        texts = [self.question[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]
        return self.question[: marks[0].start()], dict(zip(LETTERS, texts, strict=True))

    def exchanged(self) -> QuestionText:
        """The same question with the texts of its two options exchanged. The matching letter is then the other one."""
        first, second = OPTION.finditer(self.question)
        _, texts = self.options()
        text = self.question
        tail = text[len(text.rstrip()) :]
        between = text[first.end() : second.start()]
        gap = between[len(between.rstrip()) :]
        text = f"{text[: first.end()]}{texts['B']}{gap}{text[second.start() : second.end()]}{texts['A']}{tail}"
        order = "as written" if self.order == "exchanged" else "exchanged"
        return QuestionText(text, self.other, self.matching, self.group, order)

    def lettered(self, matching_letter: str = "A") -> QuestionText:
        """The question with its two answers as the options (A) and (B)."""
        first, second = (self.matching, self.other) if matching_letter == "A" else (self.other, self.matching)
        text = f"{self.question.rstrip()}\n\nChoices:\n (A) {first.strip()}\n (B) {second.strip()}"
        letters = ("(A)", "(B)") if matching_letter == "A" else ("(B)", "(A)")
        return QuestionText(text, *letters, self.group, self.order)

    def yes_no(self) -> str:
        """Whether the matching answer says "yes", "no" or "neither". For letters, the text of the option counts."""
        answer = self.matching if self.letter is None else self.options()[1][self.letter.upper()]
        found = re.match(r"\W*(yes|no)\b", answer, re.IGNORECASE)
        return "neither" if found is None else found.group(1).lower()


@dataclasses.dataclass(frozen=True)
class QuestionTexts:
    """A set of questions as texts.

    Args:
      name: its name in tables.
      rows: the questions.
      left_out: the number of rows that were left out, by reason.
    """

    name: str
    rows: tuple[QuestionText, ...]
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.rows:
            out = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items()) or "the set is empty"
            raise UserError(f"{self.name} has no question with two answers: {out}")

    def __len__(self) -> int:
        return len(self.rows)

    def both_orders(self) -> QuestionTexts:
        """Each question twice, as it is and with its options exchanged. Both copies are in one group.

        Raises:
          UserError: the questions have no options.
        """
        self._check_letters()
        return dataclasses.replace(self, rows=tuple(copy for row in self.rows for copy in (row, row.exchanged())))

    def lettered(self) -> QuestionTexts:
        """Answers in words as options. The matching answer is (A) in one question and (B) in the next one.

        Raises:
          UserError: the questions have options already.
        """
        if any(row.letter is not None for row in self.rows):
            raise UserError(f"{self.name} has questions with options already")
        return dataclasses.replace(
            self, rows=tuple(row.lettered(LETTERS[number % 2]) for number, row in enumerate(self.rows))
        )

    def take(self, rows: Sequence[int]) -> QuestionTexts:
        """Some of the questions, in this order."""
        return dataclasses.replace(self, rows=tuple(self.rows[i] for i in rows))

    def _check_letters(self) -> None:
        if words := [row for row in self.rows if row.letter is None]:
            raise UserError(
                f"{self.name}: the answers {words[0].matching!r} and {words[0].other!r} are no letters, so there are "
                "no options to exchange: lettered() makes options of them"
            )


def question_texts(name: str, rows: Sequence[tuple[str, str, str]]) -> QuestionTexts:
    """Questions from (question, matching answer, other answer).

    Rows are left out and counted if they are repeated, have an empty text, have two equal answers, or have letters as
    answers but not exactly the options (A) and (B). `<META_START>...<META_END>` is removed from questions. Rows with
    the same question, in any order of its options, are in one group.

    Args:
      name: the name of the set in tables.
      rows: the rows.

    Raises:
      UserError: no row is left, or a text is not a string.
    """
    kept: dict[tuple[str, str, str], QuestionText] = {}
    left_out: dict[str, int] = {}
    for number, row in enumerate(rows):
        if wrong := next((text for text in row if text is not None and not isinstance(text, str)), None):
            raise UserError(f"{name}: row {number + 1} has a {type(wrong).__name__} in place of a text: {wrong!r:.60}")
        texts = (META.sub("", row[0] or ""), row[1] or "", row[2] or "")
        found = QuestionText(*texts)
        if reason := _reason(found) or ("repeated" if texts in kept else None):
            left_out[reason] = left_out.get(reason, 0) + 1
        else:
            kept[texts] = dataclasses.replace(found, group=_group(found))
    return QuestionTexts(name, tuple(kept.values()), left_out)


def _reason(row: QuestionText) -> str | None:
    """Why a row is left out. None: it is not."""
    if not all(text.strip() for text in (row.question, row.matching, row.other)):
        return "with an empty text"
    if row.matching.strip() == row.other.strip():
        return "with two equal answers"
    if (LETTER.match(row.matching) is None) != (LETTER.match(row.other) is None):
        return "with a letter and a text as answers"
    if row.letter is None:
        return None
    letters = tuple(mark.group(1).upper() for mark in OPTION.finditer(row.question))
    answers = {LETTER.match(text).group(1).upper() for text in (row.matching, row.other)}  # type: ignore[union-attr]
    if letters != LETTERS or answers != set(LETTERS):
        return "without exactly two options"
    return None if all(row.options()[1].values()) else "with an empty option"


def _group(row: QuestionText) -> str:
    """The same for a question and its copies with exchanged options."""
    if row.letter is None:
        parts = [row.question.strip(), *sorted((row.matching.strip(), row.other.strip()))]
    else:
        before, texts = row.options()
        parts = [before.strip(), *sorted(texts.values())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def read_questions(
    table: Path | str | Mapping[str, Sequence[Any]],
    columns: tuple[str, str, str] = COLUMNS,
    *,
    name: str | None = None,
    exchange: bool | None = None,
) -> QuestionTexts:
    """Read questions with two answers each.

    Args:
      table: a `.jsonl`, `.csv`, `.csv.zst` or `.parquet` file, such as those of anthropics/evals; or columns by name.
      columns: the columns of the question, of the matching answer and of the other answer.
      name: the name of the set. None: the name of the file.
      exchange: whether the two answers are exchanged, because the file marks the answer that does not show the
        behaviour. Files of `human_generated` (their names begin with "human_", or their directory) need it.

    Raises:
      UserError: the file cannot be read, a column is missing, or no row is left; or the file is one of
        `human_generated` and `exchange` is not given.
    """
    if isinstance(table, Mapping):
        found, name = table, name or "questions"
    else:
        path = Path(table)
        if exchange is None and (path.name.startswith("human_") or "human_generated" in path.parent.name):
            raise UserError(
                f"{path.name}: some files human_generated of anthropics/evals (survival instinct, power seeking, "
                "wealth seeking) mark the safe answer as matching, and the files lm_generated the unsafe one. Look at "
                "some rows, and give exchange=True to exchange the two answers, or exchange=False to keep them"
            )
        found, name = read_columns(path), name or path.name.split(".")[0]
    if missing := [column for column in columns if column not in found]:
        raise UserError(f"{name} has no column {missing[0]!r}; it has {', '.join(map(repr, found)) or 'none'}")
    question, matching, other = (found[column] for column in columns)
    if len({len(question), len(matching), len(other)}) > 1:
        raise UserError(f"{name}: its columns have different lengths")
    if exchange:
        matching, other = other, matching
    return question_texts(name, list(zip(question, matching, other, strict=True)))
