"""Attributes of entities, as in RAVEL: "Paris is a city in the country of" is followed by " France".

In the corrupted prompt the entity is another one, with another value of the attribute (Huang et al. 2024,
arXiv:2402.17700). The table is a file of yours, or of the public RAVEL data; without one, a few cities are used.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from jax_interp.circuits.contrast import make_contrast
from jax_interp.circuits.metrics import LogitDifference
from jax_interp.circuits.tasks.examples import Examples
from jax_interp.circuits.tasks.task import TASKS, Task, check_count
from jax_interp.circuits.tasks.wording import encode_pairs, fill, one_token, texts, word_ids
from jax_interp.core.errors import UserError
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.dictionaries.evaluation.ravel.table import SLOT, EntityTable

_CITIES = {
    "Paris": ("France", "Europe", "French"),
    "London": ("England", "Europe", "English"),
    "Berlin": ("Germany", "Europe", "German"),
    "Madrid": ("Spain", "Europe", "Spanish"),
    "Rome": ("Italy", "Europe", "Italian"),
    "Moscow": ("Russia", "Europe", "Russian"),
    "Tokyo": ("Japan", "Asia", "Japanese"),
    "Beijing": ("China", "Asia", "Chinese"),
    "Delhi": ("India", "Asia", "Hindi"),
    "Cairo": ("Egypt", "Africa", "Arabic"),
    "Lagos": ("Nigeria", "Africa", "English"),
    "Sydney": ("Australia", "Australia", "English"),
    "Boston": ("America", "America", "English"),
}
CITIES = EntityTable(
    {city: dict(zip(("country", "continent", "language"), values)) for city, values in _CITIES.items()},
    {
        "country": ["The city of %s lies in the country of", "People who live in %s are citizens of"],
        "continent": ["The city of %s lies on the continent of"],
        "language": ["Most people in the city of %s speak"],
    },
)


@TASKS.register
@dataclasses.dataclass(frozen=True)
class Attribute(Task):
    """One attribute of entities.

    Args:
      attribute: the attribute that is asked for.
      entities: a JSON file of entities and their attributes, in the layout of RAVEL. None: a few cities.
      prompts: a JSON file of prompts by attribute. It goes with `entities`.
    """

    attribute: str = "country"
    entities: str | None = None
    prompts: str | None = None

    name = "attribute"
    about = "What is known of an entity, such as the country of a city."

    def sample(self, tokenizer: Tokenizer, n: int, seed: int = 0) -> Examples:
        check_count(n)
        table = self._table()
        if self.attribute not in table.prompts:
            raise UserError(f"there is no attribute {self.attribute!r}; there are {', '.join(table.prompts)}")
        values = {name: found[self.attribute] for name, found in table.attributes.items() if self.attribute in found}
        usable = set(one_token(tokenizer, [*dict.fromkeys([*values, *values.values()])], 4, "entities and values"))
        values = {name: value for name, value in values.items() if {name, value} <= usable}
        if len(set(values.values())) < 2:
            raise UserError(f"fewer than two values of {self.attribute!r} are one token in this tokenizer")
        rng, drawn = np.random.default_rng(seed), []
        templates = [one.replace(SLOT, "{ENTITY}") for one in table.prompts[self.attribute]]
        for _ in range(n):
            entity = str(rng.choice(list(values)))
            other = str(rng.choice([name for name, value in values.items() if value != values[entity]]))
            drawn.append((int(rng.integers(len(templates))), entity, other))
        sides = [[fill(templates[one[0]], {"ENTITY": one[k]}) for one in drawn] for k in (1, 2)]
        encoded = encode_pairs(tokenizer, sides[0], sides[1])
        answers, others = (word_ids(tokenizer, [values[one[k]] for one in drawn]) for k in (1, 2))
        factors = {
            "template": tuple(str(one[0]) for one in drawn),
            "entity": tuple(one[1] for one in drawn),
            "value": tuple(values[one[1]] for one in drawn),
        }
        metric = LogitDifference(jnp.asarray(answers), jnp.asarray(others))
        contrast = make_contrast(encoded.clean, encoded.corrupted, metric, mask=encoded.mask)
        return Examples(contrast, texts(sides[0]), texts(sides[1]), encoded.positions, factors, answers)

    def _table(self) -> EntityTable:
        if (self.entities is None) != (self.prompts is None):
            raise UserError("entities and prompts are two files of one table: give both, or none")
        return (
            CITIES if self.entities is None or self.prompts is None else EntityTable.read(self.entities, self.prompts)
        )
