"""A table of entities and their attributes, with prompts that ask for an attribute.

The package ships no table. `EntityTable.read` reads the layout of the public RAVEL files (explanare/ravel, data.tgz):

    ravel_city_entity_attributes.json      {"Paris": {"Country": "France", "Continent": "Europe"}, ...}
    ravel_city_attribute_to_prompts.json   {"Country": ["%s is a city in the country of", ...], ...}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json
from jax_interp.data.token_offsets import token_offsets
from jax_interp.data.tokenizer import Tokenizer

SLOT = "%s"


@dataclasses.dataclass(frozen=True)
class EntityTable:
    """Entities, attributes and prompts.

    Args:
      attributes: the values of each entity by attribute. An entity may lack an attribute.
      prompts: the prompts that ask for an attribute, with %s where the entity stands.
    """

    attributes: Mapping[str, Mapping[str, str]]
    prompts: Mapping[str, Sequence[str]]

    def __post_init__(self) -> None:
        if not self.attributes or not self.prompts:
            raise UserError("the table needs at least one entity and one attribute with prompts")
        for name, templates in self.prompts.items():
            if isinstance(templates, str) or not templates:
                raise UserError(f"attribute {name!r} needs a list of prompts")
            for template in templates:
                if template.count(SLOT) != 1:
                    raise UserError(f"the prompt {template!r:.100} must have {SLOT} once, where the entity stands")

    @classmethod
    def read(cls, entities: Path | str, prompts: Path | str) -> EntityTable:
        """Read the two files of an entity type. Values that are numbers become text; empty values are left out.

        Raises:
          UserError: a file is missing, or has another layout.
        """
        table, asked = read_json(entities), read_json(prompts)
        for entity, values in table.items():
            if not isinstance(values, dict):
                raise UserError(f"{entities}: {entity!r:.60} should have a value for each attribute, in an object")
            for name, value in values.items():
                if not isinstance(value, str | int | float | None):
                    raise UserError(f"{entities}: {name!r} of {entity!r:.60} should be a text, it is {value!r:.60}")
        for name, templates in asked.items():
            if not isinstance(templates, list) or not all(isinstance(one, str) for one in templates):
                raise UserError(f"{prompts}: the prompts of {name!r:.60} should be a list of texts")
        kept = {e: {k: str(v) for k, v in row.items() if v not in (None, "")} for e, row in table.items()}
        return cls(kept, asked)


@dataclasses.dataclass(frozen=True)
class EntityPrompt:
    """A prompt about one entity, as tokens, with the right answer.

    Args:
      entity: the name of the entity.
      attribute: the attribute that the prompt asks for.
      values: the values of the entity, by attribute.
      tokens: the tokens of the prompt.
      position: the position of the last token of the entity.
      answers: the tokens of each value of the attribute, for any entity.
    """

    entity: str
    attribute: str
    values: Mapping[str, str]
    tokens: tuple[int, ...]
    position: int
    answers: Mapping[str, tuple[int, ...]]

    @property
    def answer(self) -> tuple[int, ...]:
        """The tokens of the right answer."""
        return self.answers[self.values[self.attribute]]


def entity_prompts(table: EntityTable, tokenizer: Tokenizer, *, answer_tokens: int = 6) -> list[EntityPrompt]:
    """The prompts of a table as tokens: every entity in every prompt of every attribute that it has.

    The answer follows the prompt after a space; after a space, a quotation mark or an opening bracket it follows
    without one. It is cut after `answer_tokens` tokens (SAEBench generates six).

    Args:
      table: the table.
      tokenizer: the tokenizer of the model. Prompts begin with BOS if it has one.
      answer_tokens: the largest number of tokens of an answer.
    """
    bos, found = tokenizer.bos_id is not None, []
    for attribute, templates in table.prompts.items():
        values = sorted({row[attribute] for row in table.attributes.values() if attribute in row})
        for template in templates:
            space = "" if template[-1:] in " \n\t\"'([{“‘" else " "
            answers = {value: tuple(tokenizer.encode(space + value, bos=False)[:answer_tokens]) for value in values}
            start = template.index(SLOT)
            for entity, row in table.attributes.items():
                if attribute in row:
                    text = template.replace(SLOT, entity)
                    offsets = token_offsets(tokenizer, text, bos=bos)
                    last = start + len(entity) - 1
                    position = max(i for i, o in enumerate(offsets) if o.start <= last < o.end)
                    tokens = tuple(o.id for o in offsets)
                    found.append(EntityPrompt(entity, attribute, row, tokens, position, answers))
    return found


def attributes_of(prompts: Iterable[EntityPrompt]) -> tuple[str, ...]:
    """The attributes that some prompts ask for, in alphabetical order."""
    return tuple(sorted({one.attribute for one in prompts}))
