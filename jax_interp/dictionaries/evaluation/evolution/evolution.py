"""Features matched from one member of a sequence to the next: births, deaths, lineages, drift.

A sequence is the checkpoints of one dictionary, or the dictionaries of neighbouring layers. Between two members there
is a table of scores: cosines of decoder rows, or a measure of `CoActivation`. A pair of features is a match if its
score is at least the threshold and the pair is in the assignment:

    hungarian    the one-to-one assignment with the largest sum of scores
    mutual       each is the other's best

A feature without a match in the next member dies there; a feature without a match in the member before is born. So a
feature that splits in two continues in one of them, and the other one is born. `passed` does not ask for an assignment:
it is the fraction of features with any score of at least the threshold in the next member (the paper's pass-through).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.evaluation.benchmarks.measure import Estimate, mean_over_examples, mean_over_reseeds
from jax_interp.dictionaries.evaluation.evolution.co_activation import co_activation
from jax_interp.dictionaries.evaluation.similarity import Directions, cosines
from jax_interp.dictionaries.sparse_coder import EncoderDecoder

Assignment = Literal["hungarian", "mutual"]
Scores = Float[np.ndarray, "first second"]


@dataclasses.dataclass(frozen=True)
class Transition:
    """From one member to the next.

    Args:
      pairs: the matched features, [pair, 2].
      scores: the score of each pair.
      deaths: the features of the first that have no match.
      births: the features of the second that have no match.
      passed: the fraction of features of the first with any score of at least the threshold. The interval is a
        bootstrap over features.
      arrived: the fraction of features of the second with such a score.
      chance: `passed` where nothing but chance relates the two: see `evolve_directions` and `evolve_activations`.
        None: not measured.
    """

    pairs: Int[np.ndarray, "pair 2"]
    scores: Float[np.ndarray, " pair"]
    deaths: Int[np.ndarray, " death"]
    births: Int[np.ndarray, " birth"]
    passed: Estimate
    arrived: Estimate
    chance: Estimate | None = None


@dataclasses.dataclass(frozen=True)
class Lineage:
    """One feature through the members, from its birth to its death.

    Args:
      born: the number of the first member that has it.
      features: its index in this member and in those that follow.
      drift: the cosine of its direction in each of these members with that at its birth. None: not known.
    """

    born: int
    features: tuple[int, ...]
    drift: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Evolution:
    """The result of `evolve`."""

    sizes: tuple[int, ...]
    """The number of features of each member."""
    steps: tuple[Transition, ...]
    """From each member to the next."""
    lineages: tuple[Lineage, ...]
    """Every feature of every member is in exactly one of them. Sorted by birth, then by the first feature."""

    def persistence(self) -> list[float]:
        """The fraction of the features of member 0 that are still alive in member 0, 1, 2, ..."""
        first = [len(one.features) for one in self.lineages if one.born == 0]
        return [float(np.mean([life > t for life in first])) if first else float("nan") for t in range(len(self.sizes))]


def match_scores(scores: Scores, threshold: float, assignment: Assignment = "hungarian") -> Int[np.ndarray, "pair 2"]:
    """The matched pairs of a table of scores, in the order of the first.

    Args:
      scores: the score of every pair.
      threshold: pairs below it are no match.
      assignment: how pairs are chosen. "mutual": of equal best scores the first counts.

    Raises:
      UserError: a score is not finite.
    """
    from scipy.optimize import linear_sum_assignment

    table = np.asarray(scores, np.float64)
    if not np.isfinite(table).all():
        raise UserError("some scores are NaN or infinite")
    if not table.size:
        return np.zeros((0, 2), np.int64)
    if assignment == "hungarian":
        # only gains above the threshold count, so that no match is given up for a sum of scores that do not count
        gain = np.where(table >= threshold, table - min(threshold, 0) + 1, 0)
        rows, columns = linear_sum_assignment(gain, maximize=True)
    else:
        rows, columns = np.arange(len(table)), table.argmax(1)
        mutual = table.argmax(0)[columns] == rows
        rows, columns = rows[mutual], columns[mutual]
    matched = table[rows, columns] >= threshold
    return np.stack([rows[matched], columns[matched]], axis=1)


def evolve(
    scores: Sequence[Scores],
    threshold: float,
    *,
    assignment: Assignment = "hungarian",
    directions: Sequence[Directions] | None = None,
    chance: Sequence[Estimate | None] | None = None,
) -> Evolution:
    """Follow features through a sequence, given the scores between neighbours.

    Args:
      scores: a table [features of member t, features of member t + 1] for each step.
      threshold: scores from here on are a match.
      assignment: how matches are chosen.
      directions: the decoder rows of each member, in one space, for the drift.
      chance: the chance level of `passed` at each step.

    Raises:
      UserError: there is no step, or the tables do not fit together.
    """
    if not scores:
        raise UserError("a sequence needs at least two members: give a table of scores for each step")
    tables = [np.asarray(table) for table in scores]
    sizes = (len(tables[0]), *(table.shape[1] for table in tables))
    if any(table.shape != (m, n) for table, m, n in zip(tables, sizes, sizes[1:])):
        raise UserError(f"tables of shapes {[t.shape for t in tables]}: each must begin with the features of the last")
    levels = list(chance) if chance is not None else [None] * len(tables)
    steps = tuple(_transition(table, threshold, assignment, level) for table, level in zip(tables, levels, strict=True))
    return Evolution(sizes, steps, _lineages(sizes, steps, directions))


def _transition(table: Scores, threshold: float, assignment: Assignment, chance: Estimate | None) -> Transition:
    pairs = match_scores(table, threshold, assignment)
    m, n = table.shape
    passed, arrived = (
        mean_over_examples([[np.asarray(best >= threshold, np.float64)]], f"{len(best)} features")
        for best in (table.max(1, initial=-np.inf), table.max(0, initial=-np.inf))
    )
    return Transition(
        pairs,
        table[pairs[:, 0], pairs[:, 1]],
        np.setdiff1d(np.arange(m), pairs[:, 0]),
        np.setdiff1d(np.arange(n), pairs[:, 1]),
        passed,
        arrived,
        chance,
    )


def _lineages(
    sizes: Sequence[int], steps: Sequence[Transition], directions: Sequence[Directions] | None
) -> tuple[Lineage, ...]:
    born: list[tuple[int, list[int]]] = [(0, [i]) for i in range(sizes[0])]
    alive = dict(enumerate(born))
    for t, step in enumerate(steps, 1):
        following = {}
        for before, after in step.pairs.tolist():
            alive[before][1].append(after)
            following[after] = alive[before]
        for after in step.births.tolist():
            following[after] = (t, [after])
            born.append(following[after])
        alive = following
    unit = None if directions is None else [_unit(one) for one in directions]
    return tuple(Lineage(t, tuple(features), _drift(t, features, unit)) for t, features in born)


def _unit(directions: Directions) -> Float[np.ndarray, "feature d"]:
    W = np.asarray(directions, np.float64).reshape(len(directions), -1)
    return W / np.maximum(np.linalg.norm(W, axis=1, keepdims=True), np.finfo(float).tiny)


def _drift(born: int, features: Sequence[int], unit: Sequence[np.ndarray] | None) -> tuple[float, ...] | None:
    if unit is None:
        return None
    first = unit[born][features[0]]
    return tuple(float(first @ unit[born + i][feature]) for i, feature in enumerate(features))


def evolve_directions(
    members: Sequence[Directions],
    threshold: float = 0.7,
    *,
    assignment: Assignment = "hungarian",
    seed: int = 0,
    reseeds: int = 3,
) -> Evolution:
    """Follow features by the cosines of their decoder rows: through training, or across layers of a residual stream.

    The chance level is `passed` with random Gaussian directions, as many as there are, in place of the next member.

    Args:
      members: the decoder rows of each member, in one space.
      threshold: the smallest cosine of a match.
      assignment: how matches are chosen.
      seed: the seed of the random directions.
      reseeds: their number.

    Raises:
      UserError: there are fewer than two members, or their rows have different widths.
    """
    widths = {int(np.prod(one.shape[1:])) for one in members}
    if len(members) < 2 or len(widths) != 1:
        raise UserError(f"{len(members)} members with rows of widths {sorted(widths)}: give two or more, of one width")
    scores = [np.asarray(cosines(a, b)) for a, b in itertools.pairwise(members)]
    keys = jax.random.split(jax.random.key(seed), reseeds)
    chance = []
    for a, b in itertools.pairwise(members):
        random = [jax.random.normal(key, (b.shape[0], *widths)) for key in keys]
        values = [float(np.mean(np.asarray(cosines(a, one)).max(1) >= threshold)) for one in random]
        chance.append(mean_over_reseeds(values))
    return evolve(scores, threshold, assignment=assignment, directions=members, chance=chance)


def evolve_activations(
    members: Sequence[EncoderDecoder],
    rows: Iterable[Sequence[Float[Array, "row d"]]],
    threshold: float = 0.95,
    *,
    assignment: Assignment = "hungarian",
    seed: int = 0,
    reseeds: int = 3,
) -> Evolution:
    """Follow features by the correlation of their activations on the same tokens: across layers, or through training.

    The default threshold is that of Balcells et al. for pass-through. The chance level is `passed` with the tokens of
    the next member in random order within each batch. Directions of different values cannot be compared, so there is no
    drift.

    Args:
      members: the dictionaries.
      rows: batches: for each member the activations that it reads, on the same tokens.
      threshold: the smallest correlation of a match.
      assignment: how matches are chosen.
      seed: the seed of the random orders.
      reseeds: their number.

    Raises:
      UserError: there are fewer than two members, or a batch has not one array for each of them.
    """
    batches = [tuple(one) for one in rows]
    if len(members) < 2 or any(len(one) != len(members) for one in batches):
        raise UserError(
            f"{len(members)} members and {[len(one) for one in batches][:5]} arrays in the batches: give two members "
            "or more, and an array for each of them in every batch"
        )
    scores, chance = [], []
    for t, (a, b) in enumerate(itertools.pairwise(members)):
        pairs = [(one[t], one[t + 1]) for one in batches]
        scores.append(co_activation(a, b, pairs).pearson())
        values = [_by_chance(a, b, pairs, threshold, np.random.default_rng((seed, t, i))) for i in range(reseeds)]
        chance.append(mean_over_reseeds(values))
    return evolve(scores, threshold, assignment=assignment, chance=chance)


def _by_chance(
    a: EncoderDecoder,
    b: EncoderDecoder,
    pairs: Sequence[tuple[Array, Array]],
    threshold: float,
    rng: np.random.Generator,
) -> float:
    moved = [(x, jnp.asarray(y)[rng.permutation(len(y))]) for x, y in pairs]
    return float(np.mean(co_activation(a, b, moved).pearson().max(1) >= threshold))
