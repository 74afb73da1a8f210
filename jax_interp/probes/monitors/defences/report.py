"""`DefenceReport`: what defences let through and what they cost, with the spread over seeds."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jax_interp.core.config_json import to_json
from jax_interp.core.estimates import Estimate
from jax_interp.core.labelled import Labelled
from jax_interp.probes.monitors.defences.latent_attack import LatentAttack


@dataclasses.dataclass(frozen=True, eq=False)
class DefenceReport:
    """The figures of defences, from `compare_defences`.

    Args:
      figures: `[seed, defence, figure]`. The first defence is the untouched model.
      budgets: for each seed, the largest share of lost control examples.
      thresholds: for each seed and defence, the threshold of its alarm. None: no alarm. Infinity: the model alone loses
        more than the budget, and its alarm is never on.
      attacks: the attacks by name.
    """

    figures: Labelled
    budgets: tuple[float, ...]
    thresholds: tuple[tuple[float | None, ...], ...]
    attacks: dict[str, LatentAttack]

    @property
    def defences(self) -> tuple[str, ...]:
        """The names of the defences, the untouched model first."""
        return tuple(self.figures.axes["defence"])

    def figure(self, defence: str, name: str) -> Estimate:
        """One figure: the mean over seeds, with the least and the largest of them.

        Args:
          defence: the name of a defence.
          name: the name of a figure, such as "harmful: no attack".
        """
        at = [list(self.figures.axes[axis]).index(label) for axis, label in (("defence", defence), ("figure", name))]
        values = self.figures.values[:, at[0], at[1]]
        return Estimate(float(values.mean()), float(values.min()), float(values.max()))

    def lines(self) -> list[str]:
        """The report as text: a table with the mean over seeds, and the range if there are several."""
        names = list(self.figures.axes["figure"])
        many = len(self.budgets) > 1
        rows = [["", *names]]
        for defence in self.defences:
            found = [self.figure(defence, name) for name in names]
            rows.append([defence, *(_cell(one, many, name == "KL") for one, name in zip(found, names))])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        budgets = ", ".join(f"{100 * budget:.1f} %" for budget in dict.fromkeys(self.budgets))
        head = f"Shares in per cent, KL in nats per token. Lost control examples allowed: {budgets}."
        if many:
            head += f" Mean over {len(self.budgets)} seeds (least to largest)."
        return [head, *("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "axes": {name: list(labels) for name, labels in self.figures.axes.items()},
            "figures": self.figures.values.tolist(),
            "budgets": list(self.budgets),
            "thresholds": [
                [one if one is None or np.isfinite(one) else str(one) for one in row] for row in self.thresholds
            ],
            "attacks": {name: to_json(attack) for name, attack in self.attacks.items()},
        }


def _cell(one: Estimate, many: bool, is_kl: bool) -> str:
    form = (lambda x: f"{x:z.3f}") if is_kl else (lambda x: f"{100 * x:.1f}")
    return f"{form(one.value)} ({form(one.low)} to {form(one.high)})" if many else form(one.value)
