"""The questions of a config: a file of your own, or questions that the package makes."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from jax_interp.core.decisions import same_everywhere
from jax_interp.core.errors import UserError
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.recipes.steering.code_questions import code_questions
from jax_interp.steering.question_format import PLAIN, QuestionFormat, asked
from jax_interp.steering.question_texts import COLUMNS, QuestionText, QuestionTexts, read_questions
from jax_interp.steering.questions import Questions

MADE = ("raise-or-return",)
"""The names of the sets that the package makes."""
CODE = QuestionFormat("code", instruction="{question}", response="", before_words="")


@dataclasses.dataclass(frozen=True)
class QuestionSet:
    """Where questions come from, and how they are written."""

    table: Path | None = None
    """A file of your own, CSV, JSON lines or Parquet, such as those of anthropics/evals."""
    made: str = "raise-or-return"
    """A set that the package makes, if there is no file: raise-or-return (does the next block of a module of Python's
    standard library raise an error?)."""
    columns: tuple[str, str, str] = COLUMNS
    """The columns of the question, of the matching answer and of the other answer."""
    format: QuestionFormat = PLAIN
    """How the questions of a file are written. A set that is made is written as code."""
    orders: bool = False
    """Ask each lettered question twice, with its options exchanged."""
    exchange: bool | None = None
    """Exchange the two answers, for a file that marks the answer without the behaviour."""
    examples: int = 400
    """The most questions. Of a file, a random part."""
    name: str = ""
    """The name of the set in tables. Default: the name of the file, or of the set."""
    seed: int = 0
    """The seed of the random part."""

    def __post_init__(self) -> None:
        if self.table is None and self.made not in MADE:
            raise UserError(f"no set {self.made!r}; there are {', '.join(MADE)}. Or give a table")
        if self.examples < 12:
            raise UserError(f"examples={self.examples}: three parts need at least 12 questions")


def read_question_set(source: QuestionSet, tokenizer: Tokenizer) -> Questions:
    """The questions of a set, as tokens of a model.

    Raises:
      UserError: the file cannot be read, or as in `read_questions` and `asked`. Or a process of the run has other
        questions than process 0.
    """
    questions = _made(source, tokenizer) if source.table is None else _from_file(source, tokenizer)
    digest = hashlib.sha256(repr((questions.prompts, questions.matching, questions.other)).encode()).hexdigest()
    same_everywhere(f"the set of questions {questions.name!r:.200}", digest)
    return questions


def _made(source: QuestionSet, tokenizer: Tokenizer) -> Questions:
    columns = code_questions(source.examples, source.seed)
    texts = zip(columns["prompt"], columns["matching"], columns["other"], columns["module"], strict=True)
    rows = tuple(QuestionText(*row) for row in texts)
    questions = asked(tokenizer, QuestionTexts(source.name or source.made, rows), CODE)
    return dataclasses.replace(questions, factors={"continues": tuple(columns["continues"])})


def _from_file(source: QuestionSet, tokenizer: Tokenizer) -> Questions:
    assert source.table is not None
    texts = read_questions(source.table, source.columns, name=source.name or None, exchange=source.exchange)
    rows = np.random.default_rng(source.seed).permutation(len(texts))[: source.examples]
    texts = texts.take(np.sort(rows).tolist())
    return asked(tokenizer, texts.both_orders() if source.orders else texts, source.format)
