"""Questions about Python's standard library: does the next block raise an error, or does it return?

Every machine with Python has this text. The prompt ends where the first statement of a block begins, and the block
really goes on with `raise` in half of the questions and with `return` in the others.
"""

from __future__ import annotations

import ast

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.data.stdlib import stdlib_corpus

PER_MODULE = 4
"""The most questions of one kind from one module."""
ANSWERS = {"raise": "return", "return": "raise"}


def code_questions(examples: int, seed: int, length: int = 240) -> dict[str, list[str]]:
    """Prompts that end at the first statement of a block. The behaviour is to raise an error.

    Args:
      examples: the number of questions; the block raises in half of them.
      seed: the seed of the draw.
      length: the number of characters of a prompt.

    Returns:
      Columns prompt, matching ("raise"), other ("return"), continues (what the block really does) and module.

    Raises:
      UserError: there are not so many places.
    """
    rng, half = np.random.default_rng(seed), examples // 2
    corpus = stdlib_corpus()
    documents = (*corpus.train, *corpus.validation)
    found: dict[str, list[tuple[str, str, str]]] = {name: [] for name in ANSWERS}
    for number in rng.permutation(len(documents)).tolist():
        if all(len(rows) >= half for rows in found.values()):
            break
        text, module = documents[number].text, documents[number].path
        places = _block_starts(text)
        for name, rows in found.items():
            ends = [end for keyword, end in places if keyword == name and end >= length]
            for i in rng.permutation(len(ends))[:PER_MODULE].tolist():
                rows.append((text[ends[i] - length : ends[i]], name, module))
    for name, rows in found.items():
        if len(rows) < half or not half:
            raise UserError(f"there are {len(rows)} blocks that begin with {name!r}, and {half} are asked for")
    chosen = [row for rows in found.values() for row in rows[:half]]
    prompts, continues, modules = zip(*(chosen[i] for i in rng.permutation(len(chosen)).tolist()))
    n = len(prompts)
    return {"prompt": list(prompts), "matching": ["raise"] * n, "other": ["return"] * n,
            "continues": list(continues), "module": list(modules)}  # fmt: skip


def _block_starts(text: str) -> list[tuple[str, int]]:
    """(keyword, its place in the text) of every `raise` and `return` that is the first statement of an `if` block."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return []
    lines = text.split("\n")
    starts = np.cumsum([0, *(len(line) + 1 for line in lines)])
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.If):
            continue
        first = node.body[0]
        keyword = {ast.Raise: "raise", ast.Return: "return"}.get(type(first))
        # `ast` counts bytes, so a line with other characters than ASCII is left out. So is `if x: return`.
        if keyword is None or not lines[first.lineno - 1].isascii() or first.lineno == node.lineno:
            continue
        found.append((keyword, int(starts[first.lineno - 1]) + first.col_offset))
    return found
