"""The texts of the requests, and how the answers are read.

An answer that cannot be read is a `MalformedAnswerError`, which names the unit, the request and the answer.

    explanation   a sentence. "This neuron activates on …" is taken off, and a final full stop
    detection     the numbers of the examples in which the unit is on somewhere: "2, 5", or "None"
    fuzzing       the numbers of the examples in which the marked tokens are those where the unit is on
    simulation    a line "number: value" for each token, with a value from 0 to 10
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from jax_interp.core.errors import UserError
from jax_interp.dashboards.interpretation.judge import Request, Shown

ABOUT = (
    "A unit of a neural network is a number that the network computes at every token of a text. A unit is usually on "
    "(not zero) for a certain token, a certain meaning, or a certain kind of context, and off otherwise."
)
EXPLAIN = (
    f"{ABOUT} You see excerpts of texts in which one unit is on, from the strongest activation to the weakest. Tokens "
    "where it is on stand between << and >>. Say in one sentence what the unit is on for. Cover most of the marked "
    "tokens, and say no more than they have in common: some units are on for one word only, others for every token of "
    "a text about a topic. Notice capitals, spaces and punctuation where they matter. Use at most 20 words and no list "
    'of words. Answer with the sentence alone, in the form "This unit is on for ...".'
)
DETECT = (
    f"{ABOUT} You get an explanation of one unit, and numbered excerpts in random order. In which excerpts is the unit "
    'on for at least one token? Answer with the numbers of these excerpts, separated by commas, or with "None" if '
    'there is no such excerpt. Write nothing else. An answer looks like this: "2, 3, 7".'
)
FUZZ = (
    f"{ABOUT} You get an explanation of one unit, and numbered excerpts in which some tokens stand between << and >>. "
    "In some excerpts the marked tokens are those where the unit is on; in the others the marks are on other tokens. "
    "In which excerpts do the marked tokens fit the explanation? Answer with the numbers of these excerpts, separated "
    'by commas, or with "None". Write nothing else. An answer looks like this: "1, 4".'
)
SIMULATE = (
    f"{ABOUT} You get an explanation of one unit, and a text with one token on each line, after its number. For every "
    "token, predict how strongly the unit is on, from 0 (off) to 10 (its strongest activation). Answer with one line "
    'for every token, "number: value", and write nothing else.'
)


class MalformedAnswerError(UserError):
    """An answer of a judge that cannot be read."""


def as_text(example: Shown) -> str:
    """The text of an example, with << and >> around marked tokens. Line ends are shown as ↵."""
    marked = example.marked or (False,) * len(example.tokens)
    text = "".join(f"<<{token}>>" if on else token for token, on in zip(example.tokens, marked))
    return text.replace("\r\n", "↵").replace("\n", "↵").replace("\r", "↵")


def explanation_request(examples: Sequence[Shown]) -> Request:
    """Ask for an explanation of marked examples."""
    return Request("explanation", EXPLAIN, f"The excerpts:\n\n{_numbered(examples)}", None, tuple(examples))


def detection_request(explanation: str, examples: Sequence[Shown]) -> Request:
    """Ask in which of the examples a unit is on."""
    return Request("detection", DETECT, _judged(explanation, examples), explanation, tuple(examples))


def fuzzing_request(explanation: str, examples: Sequence[Shown]) -> Request:
    """Ask in which of the examples the marks are right."""
    return Request("fuzzing", FUZZ, _judged(explanation, examples), explanation, tuple(examples))


def simulation_request(explanation: str, example: Shown) -> Request:
    """Ask for the activation at every token of one example."""
    lines = "\n".join(f"{i}: {as_text(Shown((token,)))}" for i, token in enumerate(example.tokens, 1))
    prompt = f"The explanation: the unit is on for {explanation}.\n\nThe tokens:\n\n{lines}"
    return Request("simulation", SIMULATE, prompt, explanation, (example,))


def read_explanation(answer: str) -> str:
    """The explanation of an answer.

    Raises:
      MalformedAnswerError: the answer is empty.
    """
    text = " ".join(answer.split())
    text = re.sub(
        r"^this (unit|neuron|feature|latent) (is on for|is on|activates on|activates for|fires on)\s+",
        "",
        text,
        flags=re.I,
    )
    text = text.strip().rstrip(".").strip()
    if not text:
        raise MalformedAnswerError(f"the judge's explanation is empty: {answer!r:.200}")
    return text


def read_numbers(answer: str, count: int) -> tuple[bool, ...]:
    """Whether each of `count` examples was named.

    Raises:
      MalformedAnswerError: the answer is not a list of numbers from 1 to `count`, nor "None".
    """
    text = answer.strip().strip("\"'`").rstrip(".").strip()
    if text.lower() == "none":
        return (False,) * count
    parts = [part.strip() for part in re.split(r",|\band\b|\s+", text) if part.strip()]
    if not parts or not all(re.fullmatch(r"[0-9]{1,9}", part) and 1 <= int(part) <= count for part in parts):
        raise MalformedAnswerError(
            f'the judge should answer with numbers from 1 to {count}, like "2, 3", or "None"; it answered '
            f"{answer!r:.200}"
        )
    named = {int(part) for part in parts}
    return tuple(i in named for i in range(1, count + 1))


def read_values(answer: str, count: int) -> tuple[float, ...]:
    """The predicted activation of each of `count` tokens.

    Raises:
      MalformedAnswerError: the answer is not a line "number: value" for each token, with values from 0 to 10.
    """
    values: dict[int, float] = {}
    for line in filter(None, map(str.strip, answer.splitlines())):
        found = re.fullmatch(r"([0-9]{1,9})\s*:\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)", line)
        if not found or not 1 <= int(found[1]) <= count or int(found[1]) in values or not 0 <= float(found[2]) <= 10:
            raise MalformedAnswerError(
                f'the judge should answer with one line "number: value" for each of {count} tokens, with values from 0 '
                f"to 10; it wrote {line!r:.80}"
            )
        values[int(found[1])] = float(found[2])
    if len(values) != count:
        raise MalformedAnswerError(f"the judge predicted {len(values)} of {count} tokens: {answer!r:.200}")
    return tuple(values[i] for i in range(1, count + 1))


def _numbered(examples: Sequence[Shown]) -> str:
    return "\n".join(f"{i}. {as_text(example)}" for i, example in enumerate(examples, 1))


def _judged(explanation: str, examples: Sequence[Shown]) -> str:
    return f"The explanation: the unit is on for {explanation}.\n\nThe excerpts:\n\n{_numbered(examples)}"
