"""Indirect object identification: "Then, Ann and Tom went to the store. Tom gave a ring to" is followed by " Ann".

The indirect object (IO) is the name that occurs once, the subject (S) the name that occurs twice (Wang et al. 2022,
arXiv:2211.00593).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import jax.numpy as jnp
import numpy as np

from jax_interp.circuits.contrast import make_contrast
from jax_interp.circuits.metrics import LogitDifference
from jax_interp.circuits.tasks.examples import Examples
from jax_interp.circuits.tasks.task import TASKS, PublishedCircuit, Task, check_count
from jax_interp.circuits.tasks.wording import Prompt, encode_pairs, fill, one_token, texts, word_ids, words
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json
from jax_interp.data.tokenizer import Tokenizer

Corruption = Literal["ABC", "S2→IO", "S2→random", "IO→random", "S1→random", "S→random", "IO↔S1"]
"""What the corrupted prompt changes. ABC: three other names, so no name is twice. S2→IO: the second subject becomes the
indirect object, so the answer is the other name. →random: a new name. IO↔S1: the order of the first two names."""
Order = Literal["both", "ABBA", "BABA"]
Words: TypeAlias = Mapping[str, Sequence[str]]
"""The words of the generator: "names", "places", "objects", and templates by order."""

NAMES = words(
    "Adam Alan Alex Alice Amy Andrew Angela Anna Anthony Arthur Ben Brian Carl Charles Chris Claire Dan Daniel David "
    "Diana Edward Elizabeth Emily Emma Eric Frank George Grace Graham Harry Helen Henry Ian Jack James Jane Jason "
    "Jennifer Jessica Joe John Jonathan Joseph Kate Kelly Kevin Kim Laura Lisa Louis Lucy Luke Maria Mark Martin Mary "
    "Matthew Michael Michelle Nathan Nick Oliver Oscar Patrick Paul Peter Philip Rachel Rebecca Richard Robert Roger "
    "Rose Ruby Ryan Sam Sarah Scott Sean Simon Stephen Steve Susan Thomas Tim Tom Victoria Will"
)
PLACES = words("bank beach garden hospital house library market office park restaurant school station store")
OBJECTS = words("ball bag bone book computer cup drink gift key letter necklace phone ring")
TEMPLATES = (
    "Then, {FIRST} and {SECOND} went to the {PLACE}. {S} gave a {OBJECT} to",
    "After {FIRST} and {SECOND} left the {PLACE}, {S} gave a {OBJECT} to",
    "When {FIRST} and {SECOND} met at the {PLACE}, {S} handed a {OBJECT} to",
    "Yesterday {FIRST} and {SECOND} walked to the {PLACE}. {S} wanted to give a {OBJECT} to",
    "While {FIRST} and {SECOND} were working at the {PLACE}, {S} passed a {OBJECT} to",
    "Later {FIRST} and {SECOND} had a long talk at the {PLACE}. In the end {S} offered a {OBJECT} to",
    "The {PLACE} was full when {FIRST} and {SECOND} came in. {S} sold a {OBJECT} to",
    "As soon as {FIRST} and {SECOND} reached the {PLACE}, {S} showed a {OBJECT} to",
)
"""S is the second occurrence of the subject. FIRST and SECOND are the two names in one order or the other."""


@TASKS.register
@dataclasses.dataclass(frozen=True)
class IOI(Task):
    """Indirect object identification.

    Args:
      corruption: what the corrupted prompt changes.
      order: ABBA: the indirect object comes first. BABA: the subject comes first. both: half of each. Order is a factor
        of the examples: a mean over both can hide that a mechanism serves one of them only.
      symmetric: each pair of prompts is followed by the same one with the two names exchanged. `n` must be even.
      lists: a JSON file with the lists of the published generator (NAMES, ABBA_TEMPLATES, BABA_TEMPLATES, PLACES,
        OBJECTS). None: the words of this file.
    """

    corruption: Corruption = "ABC"
    order: Order = "both"
    symmetric: bool = False
    lists: str | None = None

    name = "ioi"
    about = "Which of two names is the indirect object: the one that was named once."
    published = PublishedCircuit(
        model="gpt2",
        heads={
            "name mover": ((9, 9), (10, 0), (9, 6)),
            "negative name mover": ((10, 7), (11, 10)),
            "backup name mover": ((10, 10), (10, 6), (10, 2), (10, 1), (11, 2), (9, 7), (9, 0), (11, 9)),
            "S-inhibition": ((7, 3), (7, 9), (8, 6), (8, 10)),
            "induction": ((5, 5), (5, 8), (5, 9), (6, 9)),
            "duplicate token": ((0, 1), (0, 10), (3, 0)),
            "previous token": ((2, 2), (4, 11)),
        },
        positions={
            "name mover": "end", "negative name mover": "end", "backup name mover": "end", "S-inhibition": "end",
            "induction": "S2", "duplicate token": "S2", "previous token": "S1+1",
        },
        mlps=(),
        figures={"logit difference": 3.56, "share of prompts with IO > S": 0.993},
        source="Wang et al. 2022, arXiv:2211.00593: GPT-2 small, mean ablation by template",
    )  # fmt: skip

    def sample(self, tokenizer: Tokenizer, n: int, seed: int = 0) -> Examples:
        check_count(n)
        if self.corruption not in get_args(Corruption) or self.order not in get_args(Order):
            raise UserError(
                f"corruption={self.corruption!r}, order={self.order!r}: choose from {', '.join(get_args(Corruption))}; "
                f"{', '.join(get_args(Order))}"
            )
        if self.symmetric and n % 2:
            raise UserError(f"n={n} is odd: with symmetric=True prompts come in pairs")
        given = self._words()
        names = one_token(tokenizer, given["names"], 6, "names")
        places = one_token(tokenizer, given["places"], 1, "places")
        objects = one_token(tokenizer, given["objects"], 1, "objects")
        rng, drawn = np.random.default_rng(seed), []
        for i in range(n // 2 if self.symmetric else n):
            order = ("ABBA", "BABA")[i % 2] if self.order == "both" else self.order
            template = int(rng.integers(len(given[order])))
            persons = [names[k] for k in rng.choice(len(names), 5, replace=False)]
            one = _Drawn(template, order, persons, str(rng.choice(places)), str(rng.choice(objects)))
            drawn.append(one)
            if self.symmetric:
                drawn.append(dataclasses.replace(one, persons=[persons[1], persons[0], *persons[2:]]))
        clean = [_filled(given, one, *_names(one, None)) for one in drawn]
        corrupted = [_filled(given, one, *_names(one, self.corruption)) for one in drawn]
        encoded = encode_pairs(tokenizer, clean, corrupted, ("FIRST", "SECOND", "S"))
        answers, others = (word_ids(tokenizer, [one.persons[k] for one in drawn]) for k in (0, 1))
        io_first = np.asarray([one.order == "ABBA" for one in drawn])
        first, second = encoded.positions["FIRST"], encoded.positions["SECOND"]
        s1 = np.where(io_first, second, first)
        positions = {
            "IO": np.where(io_first, first, second), "S1": s1, "S1+1": s1 + 1, "S2": encoded.positions["S"],
            "end": encoded.positions["end"],
        }  # fmt: skip
        factors = {
            "template": [str(one.template) for one in drawn], "order": [one.order for one in drawn],
            "IO name": [one.persons[0] for one in drawn], "S name": [one.persons[1] for one in drawn],
            "place": [one.place for one in drawn], "object": [one.thing for one in drawn],
        }  # fmt: skip
        metric = LogitDifference(jnp.asarray(answers), jnp.asarray(others))
        contrast = make_contrast(encoded.clean, encoded.corrupted, metric, mask=encoded.mask)
        labels = {name: tuple(values) for name, values in factors.items()}
        return Examples(contrast, texts(clean), texts(corrupted), positions, labels, answers)

    def _words(self) -> Words:
        if self.lists is None:
            return {"names": NAMES, "places": PLACES, "objects": OBJECTS, "ABBA": TEMPLATES, "BABA": TEMPLATES}
        return read_lists(Path(self.lists))


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """One prompt as it was drawn. `persons`: the indirect object, the subject, and three other names."""

    template: int
    order: str
    persons: list[str]
    place: str
    thing: str


def _names(one: _Drawn, corruption: str | None) -> tuple[str, str, str, str]:
    """(IO, first S, second S, order) of the clean prompt, or of a corrupted one."""
    io, s, x, y, z = one.persons
    other = {"ABBA": "BABA", "BABA": "ABBA"}[one.order]
    return {
        None: (io, s, s, one.order),
        "ABC": (x, y, z, one.order),
        "S2→IO": (io, s, io, one.order),
        "S2→random": (io, s, x, one.order),
        "IO→random": (x, s, s, one.order),
        "S1→random": (io, x, s, one.order),
        "S→random": (io, x, x, one.order),
        "IO↔S1": (io, s, s, other),
    }[corruption]


def _filled(given: Words, one: _Drawn, io: str, s1: str, s2: str, order: str) -> Prompt:
    template = given[one.order][one.template]
    first, second = (io, s1) if order == "ABBA" else (s1, io)
    return fill(template, {"FIRST": first, "SECOND": second, "S": s2, "PLACE": one.place, "OBJECT": one.thing})


def read_lists(path: Path) -> Words:
    """The words of a JSON file of the published generator.

    In its templates, [A] is the indirect object and [B] the subject. The text after the last name is not used.

    Raises:
      UserError: the file is no such file.
    """
    given = read_json(path)
    keys = ("NAMES", "ABBA_TEMPLATES", "BABA_TEMPLATES", "PLACES", "OBJECTS")
    for key in keys:
        if not isinstance(given.get(key), list) or not all(isinstance(one, str) for one in given[key]):
            raise UserError(f"{path}: there should be a list of texts {key!r}; the file has {', '.join(given)}")
    found: dict[str, Sequence[str]] = {
        "names": given["NAMES"], "places": given["PLACES"], "objects": given["OBJECTS"]
    }  # fmt: skip
    for order in ("ABBA", "BABA"):
        found[order] = [_slotted(path, text) for text in given[f"{order}_TEMPLATES"]]
    return found


def _slotted(path: Path, text: str) -> str:
    """A published template with the slots of this file."""
    body = text.rstrip()
    if not body.endswith("[A]") or body.count("[B]") != 2 or body.count("[A]") != 2:
        raise UserError(f"{path}: the template {text!r} should have [B] twice, and [A] twice, also at its end")
    body = body.removesuffix("[A]").rstrip()
    io, s = body.index("[A]"), body.index("[B]")
    first, second = ("[A]", "[B]") if io < s else ("[B]", "[A]")
    body = body.replace(first, "{FIRST}", 1).replace(second, "{SECOND}", 1).replace("[B]", "{S}")
    return body.replace("[PLACE]", "{PLACE}").replace("[OBJECT]", "{OBJECT}")
