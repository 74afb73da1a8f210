"""A model that recalls attributes of entities: each attribute in a subspace of its own, or all of them entangled.

    model = entity_attributes(jax.random.key(0), entities=12, values=(3, 4))
    logits = model(jnp.array([[model.entity(5), model.question(1), 0]]))       at position 1: the value of attribute 1

A prompt is the token of an entity and the token of a question; the answer is the next token. The entity's vector is
the value `x`. If the model is `entangled`, entities have orthogonal directions of their own and the answer is looked up
by entity: no part of x holds one attribute and not the others.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Site
from jax_interp.toys.toy import TOYS, Toy

GAIN = 10.0
"""The logit of a value whose direction has the coordinate 1."""


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class EntityAttributes:
    """`model(tokens)` returns logits [seq, pos, vocab]; its value is `x`, the vectors of the tokens.

    Tokens are numbered: first the entities, then the questions, then the values of attribute 0, of attribute 1, ...

    Args:
      vectors: the vector of each entity.
      directions: the directions that answers are read from.
      answers: what each of these directions says about each value: 1 or 0.
      table: the number of each entity's value of each attribute.
      values: the number of values of each attribute.
    """

    vectors: Float[Array, "entity d"]
    directions: Float[Array, "direction d"]
    answers: Float[Array, "direction value"]
    table: Int[Array, "entity attribute"]
    values: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def entity(self, number: int) -> int:
        """The token of an entity."""
        return number

    def question(self, attribute: int) -> int:
        """The token that asks for an attribute."""
        return len(self.vectors) + attribute

    def value(self, attribute: int, number: int) -> int:
        """The token of a value."""
        return len(self.vectors) + len(self.values) + sum(self.values[:attribute]) + number

    def __call__(self, tokens: Int[Array, "seq pos"], *, taps: tuple = ()) -> Any:
        site = Site.open(taps)
        n = len(self.vectors)
        is_entity = (tokens < n)[..., None]
        x = site("x", jnp.where(is_entity, self.vectors[jnp.clip(tokens, 0, n - 1)], 0.0))
        read = GAIN * jnp.einsum("spd,kd,kv->spv", jnp.cumsum(x, axis=1), self.directions, self.answers)
        owner = jnp.repeat(jnp.arange(len(self.values)), np.asarray(self.values), total_repeat_length=sum(self.values))
        asked = tokens[..., None] - n == owner[None, None, :]
        logits = jnp.where(asked, read, -GAIN)
        rest = jnp.full((*tokens.shape, n + len(self.values)), -2 * GAIN)
        return site.close(site("logits", jnp.concatenate([rest, logits], axis=-1), "batch pos vocab"))


def entity_attributes(
    key: Key[Array, ""], entities: int = 12, values: tuple[int, ...] = (3, 4), *, entangled: bool = False
) -> EntityAttributes:
    """Make a model that knows a random value of each attribute of each entity.

    Args:
      key: random key of the values and of the directions.
      entities: the number of entities.
      values: the number of values of each attribute, each at least 2.
      entangled: whether entities have directions of their own instead of a direction for each value.

    Raises:
      UserError: an attribute has fewer than two values, or there are fewer entities than values.
    """
    if min(values, default=0) < 2 or entities < max(values):
        raise UserError(f"{entities} entities with {values} values: at least 2 values, and an entity for each of them")
    table_key, rotation_key = jax.random.split(key)
    keys = jax.random.split(table_key, len(values))
    # every value occurs about equally often
    columns = [jax.random.permutation(k, jnp.arange(entities, dtype=jnp.int32) % v) for k, v in zip(keys, values)]
    table = jnp.stack(columns, axis=1)
    one_hot = jnp.concatenate([jax.nn.one_hot(table[:, a], v) for a, v in enumerate(values)], axis=1)
    width = entities if entangled else sum(values)
    directions = jnp.linalg.qr(jax.random.normal(rotation_key, (width, width)))[0]
    if entangled:
        return EntityAttributes(directions, directions, one_hot, table, values)
    return EntityAttributes(one_hot @ directions, directions, jnp.eye(width), table, values)


@TOYS.register
class EntityAttributesToy(Toy[EntityAttributes]):
    """Entities whose attributes are asked for. See `entity_attributes`."""

    name = "entity-attributes"

    def example(self, key: Key[Array, ""]) -> EntityAttributes:
        return entity_attributes(key)

    def sample(self, model: EntityAttributes, key: Key[Array, ""], batch: int) -> Int[Array, "batch 2"]:
        first, second = jax.random.split(key)
        entity = jax.random.randint(first, (batch,), 0, len(model.vectors))
        question = len(model.vectors) + jax.random.randint(second, (batch,), 0, len(model.values))
        return jnp.stack([entity, question], axis=1)
