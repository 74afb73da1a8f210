"""Batches for many members at once: what each member sees in each step.

The texts of a member depend on its concept, its seed and the number of the step only, so a member sees the same texts
alone and beside others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float

from jax_interp.core.errors import UserError
from jax_interp.steering.questions import Questions
from jax_interp.steering.trained.completions import Concept, Texts, texts_of
from jax_interp.steering.trained.config import Member, TrainedSteeringConfig
from jax_interp.steering.trained.objectives import Batch
from jax_interp.training import RowBatches


@dataclasses.dataclass(frozen=True, eq=False)
class ConceptTexts:
    """The texts of one concept, on the host.

    Args:
      wanted: the wanted completions.
      other: the other completions; None if the objective needs none.
      plain: both without reserved tokens, one after the other, for the model without steering.
    """

    wanted: Texts
    other: Texts | None
    plain: Texts | None

    def __len__(self) -> int:
        return len(self.wanted.tokens)


def concept_texts(config: TrainedSteeringConfig, concepts: Mapping[str, Concept]) -> dict[str, ConceptTexts]:
    """The texts of each concept, all of one length.

    Raises:
      UserError: there is no concept, or the objective needs pairs and a concept has none.
    """
    if not concepts:
        raise UserError('there is nothing to train on: give texts by concept, {"french": completions}')
    reserved, found = config.intervention.reserved, {}
    for name, data in concepts.items():
        asked = isinstance(data, Questions)
        if config.objective.pairs and not asked:
            raise UserError(
                f"{type(config.objective).__name__} compares two completions of a prompt: give Questions for {name!r}, "
                f"not {type(data).__name__}"
            )
        make = lambda completions, reserved, data=data: texts_of(data.prompts, completions, config.changed, reserved)
        wanted = make(data.matching if asked else data.completions, reserved)
        if not (config.objective.pairs and asked):
            found[name] = ConceptTexts(wanted, None, None)
            continue
        sides = _same_length([make(data.matching, 0), make(data.other, 0)])
        plain = jax.tree.map(lambda *sides: np.concatenate(sides), *sides)
        found[name] = ConceptTexts(wanted, make(data.other, reserved), plain)
    length = max(texts.tokens.shape[1] for c in found.values() for texts in (c.wanted, c.other) if texts is not None)
    longer = lambda texts: None if texts is None else texts.padded(length)
    plain = {name: None if c.plain is None else c.plain.padded(length - reserved) for name, c in found.items()}
    return {name: ConceptTexts(c.wanted.padded(length), longer(c.other), plain[name]) for name, c in found.items()}


def _same_length(texts: Sequence[Texts]) -> list[Texts]:
    length = max(t.tokens.shape[1] for t in texts)
    return [t.padded(length) for t in texts]


def member_batches(
    config: TrainedSteeringConfig,
    members: Sequence[Member],
    texts: Mapping[str, ConceptTexts],
    reference: Mapping[str, Float[np.ndarray, "row 2"] | None],
) -> RowBatches[Batch]:
    """The batches of a run: arrays `[row, member, ...]`.

    Args:
      config: the number of rows.
      members: the members.
      texts: the texts by concept.
      reference: log p of both completions of each pair under the model without steering, by concept.
    """

    def of_member(member: Member, step: int, start: int, stop: int) -> Batch:
        rows = _rows(len(texts[member.concept]), config.batch, member.seed, step)[start:stop]
        draws = np.random.default_rng((member.seed, step, 1)).random(config.batch, np.float32)[start:stop]
        concept, known = texts[member.concept], reference[member.concept]
        other = None if concept.other is None else concept.other.take(rows)
        return Batch(concept.wanted.take(rows), other, None if known is None else known[rows], draws)  # type: ignore[arg-type]

    def of_rows(step: int, start: int, stop: int) -> Batch:
        each = [of_member(member, step, start, stop) for member in members]
        return jax.tree.map(lambda *arrays: np.stack(arrays, axis=1), *each)

    return RowBatches(config.batch, of_rows)


def _rows(count: int, batch: int, seed: int, step: int) -> np.ndarray:
    """The rows of a step. Each pass over the texts has its own order."""
    places = np.arange(step * batch, (step + 1) * batch)
    orders = {
        epoch: np.random.default_rng((seed, epoch)).permutation(count) for epoch in set((places // count).tolist())
    }
    return np.asarray([orders[place // count][place % count] for place in places.tolist()])
