"""`MonitorReport`: what `evaluate_monitors` finds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.core.estimates import Estimate
from jax_interp.core.labelled import Labelled
from jax_interp.probes.measures.recall import RecallAtFpr
from jax_interp.probes.measures.roc import Roc
from jax_interp.probes.monitors.cascade import CascadeFigures
from jax_interp.probes.monitors.uplift import Uplift


@dataclasses.dataclass(frozen=True, eq=False)
class MonitorFigures:
    """One monitor, or one combination of monitors, that scores every example.

    Args:
      name: the name.
      access: "white box" if a value inside the watched model is read, else "black box".
      members: the monitors that are combined; the monitor itself if it is one.
      cost: the mean cost of a benign example.
      auroc: the AUROC on the test examples.
      recall: for each rate of false alarms, the recall at the threshold from the control examples.
      false_alarms: for each set of benign examples, the share above each of these thresholds. Where it is far from the
        rate that was asked for, the threshold does not carry over.
      roc: the ROC curve on the test examples.
      length_correlation: the rank correlation of score and length on the control examples.
    """

    name: str
    access: str
    members: tuple[str, ...]
    cost: float
    auroc: Estimate
    recall: tuple[RecallAtFpr, ...]
    false_alarms: Mapping[str, tuple[Estimate, ...]]
    roc: Roc
    length_correlation: float

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "access": self.access,
            "members": list(self.members),
            "cost": self.cost,
            "auroc": self.auroc.to_json(),
            "recall": [of.to_json() for of in self.recall],
            "false_alarms": {name: [of.to_json() for of in rates] for name, rates in self.false_alarms.items()},
            "roc": self.roc.to_json(),
            "length_correlation": self.length_correlation,
        }


@dataclasses.dataclass(frozen=True, eq=False)
class CascadeCurve:
    """One pair of monitors at several budgets.

    Args:
      cheap: the monitor of all examples.
      expensive: the monitor of the examples that the cheap one sends to it.
      second: what the second decision looks at: the name of the expensive monitor, or of a combination.
      fpr: the rate of false alarms on the control examples.
      figures: the figures at each budget.
    """

    cheap: str
    expensive: str
    second: str
    fpr: float
    figures: tuple[CascadeFigures, ...]

    @property
    def name(self) -> str:
        return f"{self.cheap} → {self.expensive}" + ("" if self.second == self.expensive else f" ({self.second})")

    def to_json(self) -> dict[str, Any]:
        own = {"cheap": self.cheap, "expensive": self.expensive, "second": self.second, "fpr": self.fpr}
        return own | {"figures": [of.to_json() for of in self.figures]}


@dataclasses.dataclass(frozen=True, eq=False)
class MonitorReport:
    """The figures of several monitors, their combinations and their cascades.

    Args:
      sizes: for each set, the number of suspicious and of benign examples.
      unit: the unit of costs.
      fprs: the rates of false alarms.
      monitors: the monitors, in the order in which they were given.
      combinations: the combinations.
      cascades: the pairs of monitors.
      uplifts: white-box monitors, and combinations, against black-box monitors.
      correlation: the rank correlation of the monitors within a class, on validation data. 0 is what the
        likelihood-ratio combination assumes.
      cautions: what a reader of the figures must know, in sentences.
    """

    sizes: Mapping[str, tuple[int, int]]
    unit: str
    fprs: tuple[float, ...]
    monitors: tuple[MonitorFigures, ...]
    combinations: tuple[MonitorFigures, ...]
    cascades: tuple[CascadeCurve, ...]
    uplifts: tuple[Uplift, ...]
    correlation: Labelled
    cautions: tuple[str, ...]

    def figures(self, name: str) -> MonitorFigures:
        """The figures of a monitor or a combination, by name. Raises UserError if there is none."""
        found = {of.name: of for of in (*self.monitors, *self.combinations)}
        if name not in found:
            raise UserError(f"no monitor {name!r}; there are {', '.join(found)}")
        return found[name]

    def cost_curves(self) -> dict[str, tuple[list[float], list[float]]]:
        """name -> (costs, recalls) on the test data, for a plot. A monitor that scores everything is one point."""
        curves = {of.name: ([of.cost], [of.recall[0].recall.value]) for of in (*self.monitors, *self.combinations)}
        for curve in self.cascades:
            curves[curve.name] = ([of.cost for of in curve.figures], [of.recall.value for of in curve.figures])
        return curves

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        names = list(self.correlation.axes["monitor"])
        return {
            "sizes": {name: {"suspicious": s, "benign": b} for name, (s, b) in self.sizes.items()},
            "unit": self.unit,
            "fprs": list(self.fprs),
            "monitors": [of.to_json() for of in self.monitors],
            "combinations": [of.to_json() for of in self.combinations],
            "cascades": [of.to_json() for of in self.cascades],
            "uplifts": [of.to_json() for of in self.uplifts],
            "correlation": {"monitors": names, "values": np.asarray(self.correlation.values).tolist()},
            "cautions": list(self.cautions),
        }

    def lines(self) -> list[str]:
        """The report as text."""
        sizes = [f"{name}: {s} suspicious, {b} benign" for name, (s, b) in self.sizes.items()]
        found = ["; ".join(sizes), "", _table(self._monitor_rows())]
        if self.cascades:
            found += [
                "",
                f"Cascades at {self.fprs[0]:.3g} false alarms on the control set, at budgets that change them",
                _table(self._cascade_rows()),
            ]
        if self.uplifts:
            head = ("uplift", "AUROC", f"recall at {self.fprs[0]:.3g}")
            rows = [(f"{of.monitor} over {of.baseline}", str(of.auroc), str(of.recall)) for of in self.uplifts]
            found += ["", _table([head, *rows])]
        found += ["", *(f"! {caution}" for caution in self.cautions)] if self.cautions else []
        return "\n".join(found).split("\n")

    def _monitor_rows(self) -> list[tuple[str, ...]]:
        head = ("monitor", "access", f"cost, {self.unit}", "AUROC", *(f"recall at {fpr:.3g}" for fpr in self.fprs))
        rows = [
            (of.name, of.access, f"{of.cost:.4g}", str(of.auroc), *(str(r.recall_with_threshold) for r in of.recall))
            for of in (*self.monitors, *self.combinations)
        ]
        return [head, *rows]

    def _cascade_rows(self) -> list[tuple[str, ...]]:
        head = ("cascade", f"budget, {self.unit}", "cost", "escalated", "recall", "false alarms")
        rows = [
            (
                curve.name, f"{of.budget:.4g}", f"{of.cost:.4g}", f"{of.escalated:.1%}", str(of.recall),
                str(of.false_positives),
            )
            for curve in self.cascades
            for i, of in enumerate(curve.figures)
            if not i or of.chosen != curve.figures[i - 1].chosen
        ]  # fmt: skip
        return [head, *rows]


def _table(rows: list[tuple[str, ...]]) -> str:
    """Rows in columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
