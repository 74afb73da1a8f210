"""From scores to the figures of a report: `Judge` knows the set, its parts and the text baselines."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from jax_interp.core.estimates import Estimate
from jax_interp.probes.baselines import lengths
from jax_interp.probes.controls import Scores
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.length_confound import LengthConfound, length_confound
from jax_interp.probes.measures import (
    Calibration,
    RecallAtFpr,
    auroc,
    auroc_difference,
    auroc_interval,
    calibration,
    recall_at_fpr,
    share_interval,
)
from jax_interp.probes.report import Score, ShuffledLabels
from jax_interp.probes.splits import Split, leaking_groups

Rows = Sequence[Bool[np.ndarray, " example"]]
"""For each split, the examples that are judged."""
Cell = tuple[int, int, int]
"""The numbers of a site, a token rule and a strength."""


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """A set that scores are compared with.

    Args:
      positive: whether each example is positive.
      groups: the group of each example.
      rows: for each split, the examples to judge on.
    """

    positive: Bool[np.ndarray, " example"]
    groups: Int[np.ndarray, " example"]
    rows: Rows

    @classmethod
    def of(cls, data: LabelledTokens, rows: Rows) -> Target:
        """Some rows of a labelled set."""
        return cls(data.labels == 1, leaking_groups(data), rows)


def mean_estimate(estimates: Sequence[Estimate]) -> Estimate:
    """The means of the values, of the lower ends and of the upper ends."""
    of = lambda name: float(np.mean([getattr(one, name) for one in estimates]))
    return Estimate(of("value"), of("low"), of("high"))


def extremes(values: Sequence[float]) -> Estimate:
    """The mean, with the smallest and the largest value."""
    return Estimate(float(np.mean(values)), float(np.min(values)), float(np.max(values)))


def repetitions(scores: Scores, cell: Cell, splits: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(number of the split, scores, decisions) of each split and seed, at one site, rule and strength."""
    site, rule, strength = cell
    values, positive = scores.values[site, rule, 0, :, strength], scores.positive[site, rule, 0, :, strength]
    return [(s, values[s, e], positive[s, e]) for s in range(splits) for e in range(values.shape[1])]


def score_of(runs: Sequence[tuple[int, np.ndarray, np.ndarray]], target: Target) -> Score:
    """The AUROC and the accuracy, averaged over splits and seeds."""
    found: list[tuple[Estimate, Estimate]] = []
    for split, values, decided in runs:
        rows = target.rows[split]
        truth, groups = target.positive[rows], target.groups[rows]
        found.append((auroc_interval(values[rows], truth, groups), share_interval(decided[rows] == truth, groups)))
    areas, shares = zip(*found)
    return Score(mean_estimate(areas), mean_estimate(shares))


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """What the scores on the set itself are compared with.

    Args:
      data: the set.
      split: training and test parts.
      validation: for each split, the examples of the training part that choose site, rule and strength.
      text: for "bag of words" and "length", scores of each split, whose threshold is 0.
      fprs: the rates of false alarms.
      test: the test part.
    """

    data: LabelledTokens
    split: Split
    validation: Rows
    text: Mapping[str, Float[np.ndarray, "split example"]]
    fprs: tuple[float, ...]
    test: Target

    def of_text(self) -> dict[str, Score]:
        """The figures of the text alone."""
        return {
            name: score_of([(s, values, values > 0) for s, values in enumerate(scores)], self.test)
            for name, scores in self.text.items()
        }

    def validation_auroc(self, scores: Scores, cell: Cell) -> float:
        """The AUROC on the validation part, of probes that were fitted without it."""
        runs = repetitions(scores, cell, len(self.split))
        rows = self.validation
        return float(np.mean([auroc(values[rows[s]], self.test.positive[rows[s]]) for s, values, _ in runs]))

    def train_accuracy(self, scores: Scores, cell: Cell) -> float:
        """The accuracy on the training part."""
        runs, rows = repetitions(scores, cell, len(self.split)), self.split.train
        return float(np.mean([(decided == self.test.positive)[rows[s]].mean() for s, _, decided in runs]))

    def spread(self, scores: Scores, cell: Cell) -> float | None:
        """The standard deviation of the test AUROC over splits and seeds."""
        runs, rows = repetitions(scores, cell, len(self.split)), self.test.rows
        areas = [auroc(values[rows[s]], self.test.positive[rows[s]]) for s, values, _ in runs]
        return float(np.std(areas, ddof=1)) if len(areas) > 1 else None

    def gap(self, scores: Scores, cell: Cell) -> Estimate:
        """The test AUROC minus that of the bag of words."""
        found = []
        for s, values, _ in repetitions(scores, cell, len(self.split)):
            rows, words = self.test.rows[s], self.text["bag of words"][s]
            found.append(auroc_difference(values[rows], words[rows], self.test.positive[rows], self.test.groups[rows]))
        return mean_estimate(found)

    def recalls(self, scores: Scores, control: Scores, cell: Cell) -> tuple[RecallAtFpr, ...]:
        """Recall of the positive test examples at thresholds from the control set, averaged over splits and seeds."""
        out = []
        for fpr in self.fprs:
            found = []
            for (s, values, _), (_, benign, _) in zip(
                repetitions(scores, cell, len(self.split)), repetitions(control, cell, len(self.split))
            ):
                found.append(recall_at_fpr(values[self.test.rows[s] & self.test.positive], benign, fpr))
            names = ("threshold", "recall", "recall_with_threshold", "control_fpr")
            means = {name: mean_estimate([getattr(one, name) for one in found]) for name in names}
            out.append(dataclasses.replace(found[0], **means))
        return tuple(out)

    def calibration(self, scores: Scores, cell: Cell) -> Calibration:
        """The calibration of sigmoid(score), over the test parts of all splits and seeds together."""
        runs = repetitions(scores, cell, len(self.split))
        rows = self.test.rows
        values = np.concatenate([values[rows[s]] for s, values, _ in runs]).astype(np.float64)
        truth = np.concatenate([self.test.positive[rows[s]] for s, _, _ in runs])
        return calibration(1 / (1 + np.exp(-np.clip(values, -700, 700))), truth)

    def length(self, scores: Scores, cell: Cell) -> LengthConfound:
        """How much of the score is length, on the test part of the first split."""
        _, values, _ = repetitions(scores, cell, 1)[0]
        rows = self.test.rows[0]
        return length_confound(values[rows], self.test.positive[rows], lengths(self.data)[rows])

    def shuffled(
        self, runs: Sequence[tuple[int, Scores, Int[np.ndarray, "draw example"]]], cell: Cell
    ) -> ShuffledLabels:
        """The control with shuffled labels."""
        site, rule, strength = cell
        areas, shares, memorised = [], [], []
        for s, scores, labels in runs:
            test, train = self.test.rows[s], self.split.train[s]
            for draw, of in enumerate(labels):
                values = scores.values[site, rule, draw, 0, strength]
                decided = scores.positive[site, rule, draw, 0, strength]
                areas.append(auroc(values[:, test], self.test.positive[test]).mean())
                shares.append((decided == self.test.positive)[:, test].mean())
                memorised.append((decided == (of == 1))[:, train].mean())
        return ShuffledLabels(len(runs[0][2]), extremes(areas), extremes(shares), float(np.mean(memorised)))
