"""Splits into a training part and a test part that share nothing that leaks.

    split = group_split(data, test=0.2, seeds=(0, 1, 2))
    fit_probes(kind, vectors, train=split.train)

A group (`data.groups`: the city of a statement, the conversation of a reply), a repeated text and a contrast pair are
never divided. Group by what leaks, and by nothing larger. In a set where each city stands once in a true and once in a
false statement, a classifier of words knows the wrong answer for the twin of each training row if rows are split at
random, and knows "a country that I saw only as a filler is false" if statements are grouped by country.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from jax_interp.core.errors import UserError
from jax_interp.probes.class_numbers import joined_groups
from jax_interp.probes.labelled_tokens import LabelledTokens


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Which examples are fitted on and which are judged on. Each row is one split.

    Args:
      train: the examples to fit on.
      test: the examples to judge on.
      seeds: the seed of each split.
      how: how it was made: "grouped", "random" or "given".
      divided: for each split, the number of groups (repeated texts and pairs included) with examples on both sides.
    """

    train: Bool[np.ndarray, "split example"]
    test: Bool[np.ndarray, "split example"]
    seeds: tuple[int, ...]
    how: str
    divided: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.train)


def group_split(
    data: LabelledTokens,
    test: float = 0.2,
    seeds: Sequence[int] = (0,),
    *,
    among: Bool[np.ndarray, " example"] | None = None,
) -> Split:
    """Split whole groups at random, so that both sides have the classes in the shares of the whole as nearly as groups
    allow.

    Args:
      data: the examples.
      test: the share of examples in the test part.
      seeds: one split for each seed.
      among: the examples to split, such as a training part of which a validation part is wanted. The others are on
        neither side. None: all.

    Raises:
      UserError: a side has no example, or lacks a class.
    """
    return _split(data, leaking_groups(data), test, seeds, among, "grouped")


def random_split(
    data: LabelledTokens,
    test: float = 0.2,
    seeds: Sequence[int] = (0,),
    *,
    among: Bool[np.ndarray, " example"] | None = None,
) -> Split:
    """Split rows at random, stratified by class, whatever their groups. `divided` says how many groups leak.

    It is here to measure the leak. Use `group_split` to judge a probe. Args and Raises as there.
    """
    return _split(data, np.arange(len(data)), test, seeds, among, "random")


def given_split(
    data: LabelledTokens, train: Bool[np.ndarray, "*split example"], test: Bool[np.ndarray, "*split example"]
) -> Split:
    """A split that comes with the data.

    Raises:
      UserError: an example is on both sides, or a side has no example or lacks a class.
    """
    sides = [np.atleast_2d(np.asarray(side, bool)) for side in (train, test)]
    if sides[0].shape != sides[1].shape or sides[0].shape[1] != len(data):
        raise UserError(f"train {sides[0].shape} and test {sides[1].shape} must have an entry for each example")
    if (both := sides[0] & sides[1]).any():
        raise UserError(f"example {int(np.argwhere(both)[0][1])} is in the training part and in the test part")
    return _checked(data, sides[0], sides[1], tuple(range(len(sides[0]))), "given")


def leaking_groups(data: LabelledTokens) -> Int[np.ndarray, " example"]:
    """The number of each example's group, where examples with the same text and the two sides of a contrast pair are in
    one group too (transitively)."""
    texts = [row.tobytes() for row in np.where(data.mask, data.tokens, -1)]
    found = joined_groups(len(data), None if data.groups is None else data.groups.tolist(), texts, pairs=data.pairs)
    return np.arange(len(data)) if found is None else found


def _split(
    data: LabelledTokens,
    groups: Int[np.ndarray, " example"],
    test: float,
    seeds: Sequence[int],
    among: Bool[np.ndarray, " example"] | None,
    how: str,
) -> Split:
    if not 0 < test < 1:
        raise UserError(f"test={test} must lie between 0 and 1: it is the share of the test part")
    if not seeds:
        raise UserError("give at least one seed")
    kept = np.ones(len(data), bool) if among is None else np.asarray(among, bool)
    if kept.shape != (len(data),):
        raise UserError(f"`among` has shape {kept.shape}, and there are {len(data)} examples")
    if not kept.any():
        raise UserError(f"{data.name}: there is no example to split")
    classes = data.labels if data.classes else np.zeros(len(data), int)
    counts = np.zeros((groups.max() + 1, int(classes.max()) + 1))
    np.add.at(counts, (groups[kept], classes[kept]), 1)
    tests = np.stack([_some_groups(counts, test, seed)[groups] & kept for seed in seeds])
    return _checked(data, kept & ~tests, tests, tuple(seeds), how)


def _some_groups(counts: np.ndarray, share: float, seed: int) -> Bool[np.ndarray, " group"]:
    """Groups that together have about this share of each class: in random order, those that bring the sum nearer."""
    wanted, have = share * counts.sum(axis=0), np.zeros(counts.shape[1])
    chosen = np.zeros(len(counts), bool)
    for group in np.random.default_rng(seed).permutation(len(counts)):
        with_it = have + counts[group]
        if ((wanted - with_it) ** 2).sum() < ((wanted - have) ** 2).sum():
            chosen[group], have = True, with_it
    return chosen


def _checked(data: LabelledTokens, train: np.ndarray, test: np.ndarray, seeds: tuple[int, ...], how: str) -> Split:
    groups = leaking_groups(data)
    divided = tuple(len(np.intersect1d(groups[a], groups[b])) for a, b in zip(train, test))
    for number, sides in enumerate(zip(train, test)):
        for name, side in zip(("training", "test"), sides):
            missing = [c for c, label in enumerate(data.classes) if not (data.labels[side] == c).any()]
            if not side.any() or missing:
                lacks = f"no example of the class {data.classes[missing[0]]!r}" if missing else "no example"
                raise UserError(
                    f"{data.name}: the {name} part of split {number} has {lacks}. There are "
                    f"{len(np.unique(groups))} groups: give more groups, or smaller ones, or another share or seed"
                )
    return Split(train, test, seeds, how, divided)
