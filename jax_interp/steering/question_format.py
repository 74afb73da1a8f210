"""How questions become tokens: `asked(tokenizer, texts, format)`.

A format is data: the text of the instruction, and the beginning of the response that the model continues.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from jax_interp.core.errors import UserError
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.steering.question_texts import LETTER, QuestionText, QuestionTexts
from jax_interp.steering.questions import Questions


@dataclasses.dataclass(frozen=True)
class QuestionFormat:
    """How a question and an answer are written as one text: instruction, response, answer.

    Args:
      name: the name of the format in tables: the level of the factor "template".
      instruction: the text of the instruction, with `{question}` where the question stands. A system prompt and the
        markers of a chat are part of it.
      response: the text between the instruction and the answer.
      before_letter: what follows `response` if the answers are letters. It belongs to the prompt, as published, so that
        the answer begins with the letter.
      after_letter: what ends the answer if it is a letter. Empty: the answer is the letter alone. ")" counts the
        closing bracket too.
      before_words: what stands before an answer in words.

    Example:
        QuestionFormat("llama2", "[INST] {question} [/INST]", "", " (")
    """

    name: str = "plain"
    instruction: str = "{question}\n\n"
    response: str = "Answer:"
    before_letter: str = " ("
    after_letter: str = ""
    before_words: str = " "

    def __post_init__(self) -> None:
        if self.instruction.count("{question}") != 1:
            raise UserError(f"the instruction of the format {self.name!r} must have {{question}} once")

    def after_system(self, name: str, system: str) -> QuestionFormat:
        """The same format under another name, with a text before the instruction."""
        return dataclasses.replace(self, name=name, instruction=system + self.instruction)

    def written(self, row: QuestionText) -> tuple[str, str, str, str]:
        """The instruction, the whole prompt, and the texts of the two answers that follow it."""
        instruction = self.instruction.replace("{question}", row.question)
        answers = []
        for text in (row.matching, row.other):
            letter = LETTER.match(text)
            answers.append(self.before_words + text.strip() if letter is None else letter.group(1) + self.after_letter)
        prompt = instruction + self.response + ("" if row.letter is None else self.before_letter)
        return instruction, prompt, answers[0], answers[1]


PLAIN = QuestionFormat()
"""The question, an empty line, and "Answer:"."""


def asked(tokenizer: Tokenizer, texts: QuestionTexts, style: QuestionFormat = PLAIN) -> Questions:
    """Questions as tokens.

    A prompt and its answer are encoded as one text, so that the tokens are those of the text. If a token reaches over
    the end of the prompt, it belongs to the answers. The factors are the letter of the matching answer, whether it says
    yes or no, the order of the options, and the template. Of the first three, a factor with one level is left out.

    Args:
      tokenizer: the tokenizer of the model. Prompts begin with BOS if it has one.
      texts: the questions.
      style: how they are written.

    Raises:
      UserError: a question holds the text of a special token, or an answer adds no token to its prompt.
    """
    special = [token for i in sorted(tokenizer.special_ids) if (token := tokenizer.backend.id_to_token(i))]
    written = []
    for number, row in enumerate(texts.rows):
        for text in (row.question, row.matching, row.other):
            if found := next((token for token in special if token in text), None):
                raise UserError(
                    f"{texts.name}: question {number} contains {found!r}, which the tokenizer reads as a special "
                    "token: change it, or leave the question out"
                )
        written.append(style.written(row))
    bos = tokenizer.bos_id is not None
    encode = lambda of: tokenizer.encode_batch([of(row) for row in written], bos=bos)
    ends, prompts = encode(lambda row: row[0]), encode(lambda row: row[1])
    matching, other = encode(lambda row: row[1] + row[2]), encode(lambda row: row[1] + row[3])
    cuts = [min(_shared(prompt, a), _shared(prompt, b)) for prompt, a, b in zip(prompts, matching, other, strict=True)]
    for number, (cut, a, b) in enumerate(zip(cuts, matching, other, strict=True)):
        if not 1 <= cut < min(len(a), len(b)):
            raise UserError(f"{texts.name}: an answer of question {number} adds no token to its prompt, or has none")
    return Questions(
        texts.name,
        tuple(tuple(ids[:cut]) for ids, cut in zip(prompts, cuts, strict=True)),
        tuple(tuple(ids[cut:]) for ids, cut in zip(matching, cuts, strict=True)),
        tuple(tuple(ids[cut:]) for ids, cut in zip(other, cuts, strict=True)),
        _factors(texts.rows, style),
        tuple(row.group for row in texts.rows),
        tuple(max(1, _shared(end, prompt[:cut])) for end, prompt, cut in zip(ends, prompts, cuts, strict=True)),
        texts.left_out,
    )


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of tokens at the start that two texts have in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _factors(rows: Sequence[QuestionText], style: QuestionFormat) -> Mapping[str, tuple[str, ...]]:
    levels = {
        "letter": tuple(row.letter.upper() if row.letter else "none" for row in rows),
        "yes_no": tuple(row.yes_no() for row in rows),
        "order": tuple(row.order for row in rows),
    }
    found = {factor: of for factor, of in levels.items() if len(set(of)) > 1}
    return {**found, "template": (style.name,) * len(rows)}
