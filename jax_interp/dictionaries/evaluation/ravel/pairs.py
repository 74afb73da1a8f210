"""Pairs of a base prompt and a source prompt, with what the model should answer after the interchange.

    cause        the base asks for the target attribute; the answer should become that of the source's entity
    isolation    the base asks for another attribute; the answer should stay that of the base's entity

The answer is predicted with the right tokens before it, in one pass. It counts as right if every token of it is the
most probable one; a greedy generation would then begin with it. So no generation is needed, and any causal model that
returns logits [seq, pos, vocab] can be measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.objectives import log_probabilities, negative_log_likelihood
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.evaluation.ravel.table import EntityPrompt
from jax_interp.surgery import Model


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of prompts as arrays. Tokens are padded on the right, which a causal model does not see.

    Args:
      base: the base prompts followed by the answers.
      answer: where the answers stand in `base`.
      base_position: the position of the last token of the base's entity.
      source: the source prompts.
      source_position: the position of the last token of the source's entity.
      cause: True for cause, False for isolation.
      group: the number of the attribute that the base asks for, in alphabetical order.
      base_value: the number of the base entity's value of the target attribute. -1: it has none.
      source_value: that of the source's entity.
    """

    base: Int[Array, "pair pos"]
    answer: Bool[Array, "pair pos"]
    base_position: Int[Array, " pair"]
    source: Int[Array, "pair pos"]
    source_position: Int[Array, " pair"]
    cause: Bool[Array, " pair"]
    group: Int[Array, " pair"]
    base_value: Int[Array, " pair"]
    source_value: Int[Array, " pair"]

    def __len__(self) -> int:
        return len(self.cause)

    def __getitem__(self, chosen: Int[np.ndarray, " some"]) -> Pairs:
        """Some of the pairs."""
        return jax.tree.map(lambda a: a[chosen], self)


def answer_loss(
    logits: Float[Array, "pair pos vocab"], tokens: Int[Array, "pair pos"], answer: Bool[Array, "pair pos"]
) -> tuple[Float[Array, " pair"], Bool[Array, " pair"]]:
    """(mean cross-entropy of the answer's tokens, whether each of them is the most probable one), of each pair."""
    loss = negative_log_likelihood(log_probabilities(logits[:, :-1]), tokens[:, 1:])
    here = answer[:, 1:]
    right = jnp.argmax(logits[:, :-1], axis=-1).astype(tokens.dtype) == tokens[:, 1:]
    total = jnp.sum(jnp.where(here, loss, 0.0), axis=1)
    return total / jnp.sum(here, axis=1).astype(loss.dtype), jnp.all(right | ~here, axis=1)


@jax.jit
def _is_right(model: Model, tokens: Array, answer: Array) -> Array:
    return answer_loss(model(tokens), tokens, answer)[1]


def known_prompts(model: Model, prompts: Sequence[EntityPrompt], batch: int = 64) -> list[EntityPrompt]:
    """The prompts that the model itself answers rightly. Only they are used by the benchmark.

    Args:
      model: any causal model that returns logits.
      prompts: the prompts.
      batch: the number of prompts in a pass.

    Raises:
      UserError: there are no prompts, or the model answers none of them rightly.
    """
    if not prompts:
        raise UserError("there are no prompts")
    rows = [(one.tokens, one.answer) for one in prompts]
    tokens, answer = padded(rows, max(len(a) + len(b) for a, b in rows))
    right = [np.asarray(_is_right(model, *part)) for part in batches_of((tokens, answer), batch)]
    known = [one for one, yes in zip(prompts, np.concatenate(right)[: len(prompts)]) if yes]
    if not known:
        raise UserError(f"the model answers none of {len(prompts)} prompts rightly: there is nothing to measure")
    return known


def padded(rows: Sequence[tuple[Sequence[int], Sequence[int]]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts with answers after them, padded with 0 on the right; and where the answers stand."""
    tokens, answer = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), bool)
    for i, (prompt, after) in enumerate(rows):
        tokens[i, : len(prompt) + len(after)] = (*prompt, *after)
        answer[i, len(prompt) : len(prompt) + len(after)] = True
    return tokens, answer


def batches_of(arrays, size: int):
    """Parts of `size` rows of a pytree of arrays; the last one is filled up with its first rows."""
    n = len(jax.tree.leaves(arrays)[0])
    for first in range(0, n, size):
        rows = (first + np.arange(size)) % n if first + size > n else np.arange(first, first + size)
        yield jax.tree.map(lambda a, rows=rows: jnp.asarray(a)[rows], arrays)


def make_pairs(
    prompts: Sequence[EntityPrompt],
    attribute: str,
    n: int,
    *,
    split: Literal["train", "test"],
    train: float = 0.7,
    seed: int = 0,
) -> Pairs:
    """Draw pairs for one target attribute, half of them for cause and half for isolation.

    Training and test pairs have different entities. The base is drawn evenly over the attributes, then over their
    prompts; the source is any prompt about an entity whose value differs in the attribute that the base asks for.

    Args:
      prompts: prompts that the model answers rightly, of at least two attributes.
      attribute: the target attribute.
      n: the number of pairs.
      split: the entities to use.
      train: the fraction of entities for training.
      seed: the seed of the division and of the pairs.

    Raises:
      UserError: no prompt asks for the attribute or for another one, or too few values differ.
    """
    asked = sorted({one.attribute for one in prompts})
    others = [name for name in asked if name != attribute]
    if attribute not in asked or not others:
        raise UserError(f"pairs for {attribute!r} need prompts for it and for another attribute; they ask for {asked}")
    entities = sorted({one.entity for one in prompts})
    shuffled = np.random.default_rng(seed).permutation(entities)
    cut = round(train * len(entities))
    chosen = set(shuffled[:cut].tolist() if split == "train" else shuffled[cut:].tolist())
    here = [one for one in prompts if one.entity in chosen]
    by_attribute = {name: [one for one in here if one.attribute == name] for name in asked}
    rng = np.random.default_rng((seed, split == "test"))
    drawn = []
    for i in range(n):
        name = attribute if i % 2 == 0 else others[(i // 2) % len(others)]
        drawn.append((name, *_draw(rng, by_attribute[name], here, name, split)))
    return _arrays(drawn, attribute, asked)


def _draw(
    rng: np.random.Generator, bases: list[EntityPrompt], sources: list[EntityPrompt], name: str, split: str
) -> tuple[EntityPrompt, EntityPrompt]:
    for _ in range(1000):
        if not bases:
            break
        base, source = bases[rng.integers(len(bases))], sources[rng.integers(len(sources))]
        value = source.values.get(name)
        if value is not None and value in base.answers and base.answers[value] != base.answer:
            return base, source
    raise UserError(
        f"the {split} entities have no two that differ in {name!r}, among prompts that the model answers rightly: give "
        "more entities"
    )


def _arrays(drawn: list[tuple[str, EntityPrompt, EntityPrompt]], attribute: str, asked: list[str]) -> Pairs:
    rows = []
    number = {value: i for i, value in enumerate(sorted({v for _, b, s in drawn for v in _values(b, s, attribute)}))}
    for name, base, source in drawn:
        rows.append((base.tokens, base.answers[source.values[name]] if name == attribute else base.answer))
    tokens, answer = padded(rows, max(len(a) + len(b) for a, b in rows))
    sources = padded([(source.tokens, ()) for _, _, source in drawn], max(len(s.tokens) for _, _, s in drawn))[0]
    integers = lambda values: jnp.asarray(np.asarray(values, np.int32))
    return Pairs(
        jnp.asarray(tokens),
        jnp.asarray(answer),
        integers([base.position for _, base, _ in drawn]),
        jnp.asarray(sources),
        integers([source.position for _, _, source in drawn]),
        jnp.asarray([name == attribute for name, _, _ in drawn]),
        integers([asked.index(name) for name, _, _ in drawn]),
        integers([number.get(base.values.get(attribute, ""), -1) for _, base, _ in drawn]),
        integers([number.get(source.values.get(attribute, ""), -1) for _, _, source in drawn]),
    )


def _values(base: EntityPrompt, source: EntityPrompt, attribute: str) -> list[str]:
    return [one.values[attribute] for one in (base, source) if attribute in one.values]
