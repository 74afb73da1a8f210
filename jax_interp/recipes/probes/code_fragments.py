"""Labelled fragments of Python's standard library: is the reader inside a string, inside a comment, or in code?

Every machine with Python has this text, and the labels are exact, because Python's own tokenizer gives them. Fragments
of one module are one group. Docstrings are strings.
"""

from __future__ import annotations

import io
import tokenize
from collections.abc import Iterator

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.data.stdlib import stdlib_corpus

QUESTIONS = {"inside-strings": "string", "inside-comments": "comment"}
"""The names of the sets, and the positive class. The other class is code."""
PER_MODULE = 4
"""The most fragments of one class from one module."""
SHORTEST = 12
"""The fewest characters of a string or a comment in which a fragment may end."""


def code_fragments(question: str, examples: int, seed: int, length: int = 160) -> dict[str, list[str]]:
    """Fragments of source text, half of which end inside a string (or a comment), and the others in code.

    A fragment ends in the middle of a word or after it, never at a quotation mark, and does not show how it goes on. It
    begins `length` characters earlier, which may be inside a string.

    Args:
      question: "inside-strings" or "inside-comments".
      examples: the number of fragments, half of each class. At most eight are from one module.
      seed: the seed of the draw.
      length: the number of characters of a fragment.

    Returns:
      Columns text, label ("code", or "string" / "comment") and module.

    Raises:
      UserError: there is no such question, or there are not so many fragments.
    """
    if question not in QUESTIONS:
        raise UserError(f"no set {question!r}; there are {', '.join(QUESTIONS)}")
    positive = QUESTIONS[question]
    rng, half = np.random.default_rng(seed), examples // 2
    corpus = stdlib_corpus()
    documents = (*corpus.train, *corpus.validation)
    found: dict[str, list[tuple[str, str, str]]] = {"code": [], positive: []}
    for number in rng.permutation(len(documents)).tolist():
        if all(len(rows) >= half for rows in found.values()):
            break
        text, module = documents[number].text, documents[number].path
        stretches = [one for one in _stretches(text, positive) if one[1] >= length]
        for label, rows in found.items():
            of = [one for one in stretches if one[0] == label]
            for i in rng.permutation(len(of))[:PER_MODULE].tolist():
                end = int(rng.integers(of[i][1], of[i][2]))
                rows.append((text[end - length : end], label, module))
    for label, rows in found.items():
        if len(rows) < half:
            raise UserError(f"{question}: there are {len(rows)} fragments of the class {label!r}, not {half}")
    chosen = [row for rows in found.values() for row in rows[:half]]
    chosen = [chosen[i] for i in rng.permutation(len(chosen)).tolist()]
    texts, labels, modules = zip(*chosen)
    return {"text": list(texts), "label": list(labels), "module": list(modules)}


def _stretches(text: str, positive: str) -> Iterator[tuple[str, int, int]]:
    """(class, first character, end) of places where a fragment may end."""
    starts = np.cumsum([0, *(len(line) + 1 for line in text.split("\n"))])
    at = lambda place: int(starts[place[0] - 1]) + place[1]
    wanted = tokenize.STRING if positive == "string" else tokenize.COMMENT
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            start, end = at(token.start), at(token.end)
            if token.type == wanted and end - start >= SHORTEST:
                yield positive, start + 4, end - 3
            elif token.type == tokenize.NAME and end - start > 1:
                yield "code", start + 1, end
    except (tokenize.TokenError, SyntaxError):
        return
