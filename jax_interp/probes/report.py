"""What `evaluate_probes` finds: `ProbeReport`. No figure of a probe stands alone.

report.chosen["Logistic"]       the figures of the site, token rule and strength that validation data chose
report.lines()                  for a terminal
report.to_json()                for a file or a page
report.warnings                 what a reader should know before quoting a figure
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jax_interp.core.estimates import Estimate
from jax_interp.probes.causal_report import CausalEffect
from jax_interp.probes.fit import FittedProbes
from jax_interp.probes.length_confound import LengthConfound
from jax_interp.probes.measures import Calibration, RecallAtFpr, Roc
from jax_interp.probes.probe import Probe


@dataclasses.dataclass(frozen=True)
class SetSummary:
    """A labelled set in numbers.

    Args:
      name: its name.
      classes: the number of examples of each class.
      groups: the number of groups that a split keeps whole: groups, repeated texts and contrast pairs.
      repeated: the number of examples whose text is also that of an earlier example.
      tokens: the smallest, the median and the largest number of readable tokens.
      removed: the number of examples that were left out because the training set has the same text.
    """

    name: str
    classes: Mapping[str, int]
    groups: int
    repeated: int
    tokens: tuple[int, float, int]
    removed: int = 0

    @property
    def examples(self) -> int:
        """The number of examples."""
        return sum(self.classes.values())

    def to_json(self) -> dict[str, Any]:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "classes": dict(self.classes), "tokens": list(self.tokens), "examples": self.examples}


@dataclasses.dataclass(frozen=True)
class SplitSummary:
    """How the set was split.

    Args:
      how: "grouped", "random" or "given".
      seeds: the seed of each split.
      train: the number of training examples of each split.
      test: the number of test examples of each split.
      test_groups: for each split, the number of groups with test examples.
      divided: for each split, the number of groups on both sides. Where it is not 0, the test part leaks.
    """

    how: str
    seeds: tuple[int, ...]
    train: tuple[int, ...]
    test: tuple[int, ...]
    test_groups: tuple[int, ...]
    divided: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()}


@dataclasses.dataclass(frozen=True)
class Score:
    """How well scores tell the classes apart. Each figure is the mean over splits and seeds, and so are the two ends of
    its interval. The interval therefore is that of one split.

    Args:
      auroc: the area under the ROC curve.
      accuracy: the share of right answers at the threshold that was chosen on training data.
    """

    auroc: Estimate
    accuracy: Estimate

    def __str__(self) -> str:
        return f"AUROC {self.auroc}, accuracy {self.accuracy}"

    def to_json(self) -> dict[str, Any]:
        return {"auroc": self.auroc.to_json(), "accuracy": self.accuracy.to_json()}


@dataclasses.dataclass(frozen=True)
class ShuffledLabels:
    """The same fit on labels that were shuffled within the training part.

    Args:
      draws: the number of shuffles, for each split.
      auroc: the mean AUROC on the true test labels, with the smallest and the largest of all draws.
      accuracy: the same for the accuracy.
      memorised: the accuracy on the shuffled training labels themselves. 1: the probe can fit any labels.
    """

    draws: int
    auroc: Estimate
    accuracy: Estimate
    memorised: float

    def to_json(self) -> dict[str, Any]:
        return {
            "draws": self.draws,
            "auroc": self.auroc.to_json(),
            "accuracy": self.accuracy.to_json(),
            "memorised": self.memorised,
        }


@dataclasses.dataclass(frozen=True)
class WithinClassShuffle:
    """The same fit on training activations of which each coordinate was shuffled within each class.

    The shuffle keeps the class means and removes what coordinates have in common within a class. What logistic
    regression then finds is nearly D⁻¹(μ₊ - μ₋), with the variances D of the coordinates. It depends on the basis: here
    it is the basis in which the site is stored.

    Args:
      score: on the test part.
      cosine: between the two directions. None: the probe has no single direction.
    """

    score: Score
    cosine: float | None

    def to_json(self) -> dict[str, Any]:
        return {**self.score.to_json(), "cosine": self.cosine, "basis": "the coordinates of the site"}


@dataclasses.dataclass(frozen=True)
class ProbeFigures:
    """Everything that is known of the probes of one kind, site, token rule and strength.

    Args:
      kind: the name of the kind.
      site: the address.
      rule: the token rule.
      strength: the strength of regularisation. None: the kind has none.
      validation: the AUROC on the validation part, by which site, rule and strength are chosen.
      train: the accuracy on the training part.
      test: on the test part.
      spread: the standard deviation of the test AUROC over splits and seeds. None: there is one only.
      gap: test AUROC minus that of the bag of words, paired.
      recalls: recall at rates of false alarms. The threshold is from the control set.
      calibration: of sigmoid(score) on the test part. None: the score of this kind is not a log-odds.
      shuffled: the control with shuffled labels. None: it was not asked for.
      reset: the same fit on the network with re-initialised weights. None: it was not asked for.
      within_class: the control with shuffled coordinates. None: it was not asked for, or the kind reads tokens.
      elsewhere: on the other sets.
      length: how much of the score is the length of the text.
    """

    kind: str
    site: str
    rule: str
    strength: float | None
    validation: float
    train: float
    test: Score
    spread: float | None
    gap: Estimate
    recalls: tuple[RecallAtFpr, ...]
    calibration: Calibration | None
    shuffled: ShuffledLabels | None
    reset: Score | None
    within_class: WithinClassShuffle | None
    elsewhere: Mapping[str, Score]
    length: LengthConfound

    @property
    def selectivity(self) -> float | None:
        """The test accuracy minus that of probes on shuffled labels (Hewitt & Liang 2019, with labels shuffled over
        examples)."""
        return None if self.shuffled is None else self.test.accuracy.value - self.shuffled.accuracy.value

    @property
    def where(self) -> str:
        """The site, the token rule and the strength, for a person."""
        return f"{self.site}, {self.rule}" + ("" if self.strength is None else f", strength {self.strength:g}")

    def to_json(self) -> dict[str, Any]:
        one = lambda value: None if value is None else value.to_json()
        return {
            **{name: getattr(self, name) for name in ("kind", "site", "rule", "strength", "validation", "train")},
            "test": self.test.to_json(),
            "spread": self.spread,
            "gap": self.gap.to_json(),
            "recalls": [recall.to_json() for recall in self.recalls],
            "calibration": one(self.calibration),
            "shuffled": one(self.shuffled),
            "selectivity": self.selectivity,
            "reset": one(self.reset),
            "within_class": one(self.within_class),
            "elsewhere": {name: score.to_json() for name, score in self.elsewhere.items()},
            "length": self.length.to_json(),
        }


@dataclasses.dataclass(frozen=True, eq=False)
class ProbeReport:
    """Probes, and how far to trust them.

    Args:
      data: the set that they were fitted and judged on.
      split: how it was split.
      others: the other sets, on which nothing was fitted.
      control: the benign set that thresholds are from. None: there is none, and so no recall at a rate of false alarms.
      text: what can be told from the text alone: "bag of words" and "length".
      probes: the figures of each kind, site, token rule and strength.
      chosen: for each kind, the figures of the site, rule and strength with the highest validation AUROC.
      roc: for each kind, the ROC curve of the chosen probe on the test part of the first split.
      fitted: for each kind, the fitted probes. The split axis has the training parts. They are not in `to_json`.
      causes: for each kind with a direction, what the model answers when test examples of the first split are moved
        along it, at the chosen site, beside control directions. Empty: not measured.
      warnings: what a reader should know before quoting a figure.
    """

    data: SetSummary
    split: SplitSummary
    others: Mapping[str, SetSummary]
    control: SetSummary | None
    text: Mapping[str, Score]
    probes: tuple[ProbeFigures, ...]
    chosen: Mapping[str, ProbeFigures]
    roc: Mapping[str, Roc]
    fitted: Mapping[str, FittedProbes]
    causes: Mapping[str, CausalEffect]
    warnings: tuple[str, ...]

    def probe(self, kind: str) -> Probe:
        """The chosen probe of a kind, from the first split and seed."""
        best, fitted = self.chosen[kind], self.fitted[kind]
        seeds, splits = fitted.axes["seed"], fitted.axes["split"]
        return fitted.probe(
            site=best.site, rule=best.rule, strength=best.strength, seed=seeds[0], split=splits[0]
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """All figures as JSON values."""
        return {
            "data": self.data.to_json(),
            "split": self.split.to_json(),
            "others": {name: other.to_json() for name, other in self.others.items()},
            "control": None if self.control is None else self.control.to_json(),
            "text": {name: score.to_json() for name, score in self.text.items()},
            "probes": [figures.to_json() for figures in self.probes],
            "chosen": {kind: self.probes.index(figures) for kind, figures in self.chosen.items()},
            "roc": {kind: roc.to_json() for kind, roc in self.roc.items()},
            "causes": {kind: effect.to_json() for kind, effect in self.causes.items() if answered(effect)},
            "warnings": list(self.warnings),
        }

    def lines(self) -> list[str]:
        """The report for a terminal: the set, the text alone, the chosen probe of each kind, and the warnings."""
        classes = ", ".join(f"{count} {name}" for name, count in self.data.classes.items())
        test, train = np.mean(self.split.test), np.mean(self.split.train)
        out = [
            f"{self.data.name}: {self.data.examples} examples ({classes}) in {self.data.groups} groups; "
            f"{self.split.how} split, {train:.0f} to fit on and {test:.0f} to judge on, {len(self.split.seeds)} times"
        ]
        out += [f"  {name} alone: {score}" for name, score in self.text.items()]
        for kind, best in self.chosen.items():
            out += [f"{kind}, chosen on validation data: {best.where}", *(f"  {line}" for line in _lines(best))]
            if kind in self.causes and answered(self.causes[kind]):
                out += [f"  {line}" for line in self.causes[kind].lines()]
        return out + [f"! {warning}" for warning in self.warnings]


def answered(effect: CausalEffect) -> bool:
    """Whether the model's own answers tell the classes apart. If not, no share of the difference can be given."""
    gap = effect.gap()
    return gap.low > 0 or gap.high < 0


def _lines(best: ProbeFigures) -> list[str]:
    out = [f"test: {best.test}", f"AUROC over bag of words: {best.gap}"]
    if best.shuffled is not None:
        out.append(
            f"shuffled labels: accuracy {best.shuffled.accuracy}, of the shuffled training labels "
            f"{best.shuffled.memorised:.3f}; selectivity {best.selectivity:.3f}"
        )
    if best.reset is not None:
        out.append(f"reset network: {best.reset}")
    if best.within_class is not None:
        cosine = (
            "" if best.within_class.cosine is None else f", cosine of the directions {best.within_class.cosine:.3f}"
        )
        out.append(f"coordinates shuffled within classes: {best.within_class.score}{cosine}")
    out += [str(recall) for recall in best.recalls]
    if best.calibration is not None:
        out.append(f"calibration: ECE {best.calibration.ece:.3f}, Brier {best.calibration.brier:.3f}")
    out.append(str(best.length))
    return out + [f"{name}: {score}" for name, score in best.elsewhere.items()]
