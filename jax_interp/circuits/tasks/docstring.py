"""Docstring: after two documented parameters, ":param" is followed by the third one of the signature.

    def load(self, first, files, page, names, size, read):
        \"\"\"sector gap population

        :param page: message tree
        :param names: detail mine
        :param                                          → size

Heimersheim & Janiak 2023. The metric is the logit of the right name minus the largest logit of the other names.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np

from jax_interp.circuits.contrast import make_contrast
from jax_interp.circuits.metrics import LogitMargin
from jax_interp.circuits.tasks.examples import Examples
from jax_interp.circuits.tasks.task import TASKS, PublishedCircuit, Task, check_count
from jax_interp.circuits.tasks.wording import Prompt, encode_pairs, fill, one_token, texts, word_ids, words
from jax_interp.core.errors import UserError
from jax_interp.data.tokenizer import Tokenizer

Corruption = Literal["all names", "signature", "docstring", "answer"]
"""all names: the three names of the signature and the two of the docstring become others, all different
(random_random). signature, docstring: only the two documented names, there. answer: only the third name."""

NAMES = words(
    "data name file value test new result line user key path output node item url model text version function string "
    "field start number index error context image message size event state row parser end query label run target code "
    "table source config first options update module status group content last read command base format color order "
    "count title parent session token server host date mode page option task shape port"
)
WORDS = words(
    "action age area bank book box building business car case change child city class color cost country course day "
    "door effect end event field form game group hand health home house hour idea image job level light line list "
    "market minute money month name night number order page part people place point price problem process question "
    "rate reason report result road room school sense side state story street system table team test time town type "
    "use value voice wall war water way week woman word work world year"
)
TEMPLATE = (
    "\ndef {NAME}(self, {X}, {Y}, {A_DEF}, {B_DEF}, {C_DEF}, {Z}):\n"
    '    """{W1} {W2} {W3}\n\n    :param {A_DOC}: {W4} {W5}\n    :param {B_DOC}: {W6} {W7}\n    :param'
)


@TASKS.register
@dataclasses.dataclass(frozen=True)
class Docstring(Task):
    """The docstring task.

    Args:
      corruption: what the corrupted prompt changes.
    """

    corruption: Corruption = "all names"

    name = "docstring"
    about = "The next documented parameter of a Python function is the next one of its signature."
    published = PublishedCircuit(
        model="attn-only-4l",
        heads={"circuit": ((0, 5), (1, 2), (1, 4), (2, 0), (3, 0), (3, 6)), "helpers": ((0, 2), (0, 4))},
        positions={},
        mlps=(),
        figures={},
        source="Heimersheim & Janiak 2023, a circuit for Python docstrings in a 4-layer attention-only transformer",
    )

    def sample(self, tokenizer: Tokenizer, n: int, seed: int = 0) -> Examples:
        check_count(n)
        if self.corruption not in get_args(Corruption):
            raise UserError(f"corruption={self.corruption!r}: choose from {', '.join(get_args(Corruption))}")
        names = one_token(tokenizer, NAMES, 13, "names of parameters")
        words = one_token(tokenizer, WORDS, 8, "words")
        rng, drawn = np.random.default_rng(seed), []
        for _ in range(n):
            drawn.append(
                (
                    [names[i] for i in rng.choice(len(names), 13, replace=False)],
                    [words[i] for i in rng.choice(len(words), 7, replace=False)],
                )
            )
        sides = [
            [_prompt(chosen, nouns, corruption) for chosen, nouns in drawn] for corruption in (None, self.corruption)
        ]
        encoded = encode_pairs(tokenizer, sides[0], sides[1])
        answers = word_ids(tokenizer, [chosen[6] for chosen, _ in drawn])
        # The wrong names are all other names that either prompt has.
        wrong = np.stack([word_ids(tokenizer, [chosen[k] for chosen, _ in drawn]) for k in _wrong(self.corruption)], 1)
        positions = {name: encoded.positions[name] for name in ("A_DEF", "B_DEF", "C_DEF", "A_DOC", "B_DOC", "end")}
        factors = {"answer": tuple(chosen[6] for chosen, _ in drawn)}
        contrast = make_contrast(
            encoded.clean, encoded.corrupted, LogitMargin(jnp.asarray(answers), jnp.asarray(wrong)), mask=encoded.mask
        )
        return Examples(contrast, texts(sides[0]), texts(sides[1]), positions, factors, answers)


def _wrong(corruption: Corruption) -> list[int]:
    """The entries of the drawn names that are wrong answers: those in the clean prompt and the new ones."""
    new = {"all names": [8, 9, 10, 11, 12], "signature": [8, 9], "docstring": [8, 9], "answer": [10]}[corruption]
    return [2, 3, 4, 5, 7, *new]


def _prompt(names: list[str], nouns: list[str], corruption: Corruption | None) -> Prompt:
    """A prompt from names: [1] function, [2, 3] before, [4, 5, 6] the three parameters, [7] after, [8...] new ones."""
    a_def, b_def, c_def, a_doc, b_doc = names[4], names[5], names[6], names[4], names[5]
    match corruption:
        case "all names":
            a_def, b_def, c_def, a_doc, b_doc = names[8:13]
        case "signature":
            a_def, b_def = names[8:10]
        case "docstring":
            a_doc, b_doc = names[8:10]
        case "answer":
            c_def = names[10]
    words = {
        "NAME": names[1], "X": names[2], "Y": names[3], "A_DEF": a_def, "B_DEF": b_def, "C_DEF": c_def, "Z": names[7],
        "A_DOC": a_doc, "B_DOC": b_doc, **{f"W{i + 1}": noun for i, noun in enumerate(nouns)},
    }  # fmt: skip
    return fill(TEMPLATE, words)
