"""`Check`: estimated effects against effects that were measured by patching for real."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

LOW = 0.8
"""A Pearson correlation below this is reported as a failure of the estimates."""


class AttributionWarning(UserWarning):
    """The estimates of an attribution do not agree with patching."""


@dataclasses.dataclass(frozen=True, eq=False)
class Check:
    """Estimated and measured effects of some units: those with the largest estimates, and others drawn at random.

    Units with large estimates show wrong positives; only units drawn at random can show what the estimates miss.

    Attributes:
      names: the name of each unit that was patched.
      units: its number.
      drawn: whether it was drawn at random. The others have the largest estimates.
      estimated: the estimates, averaged over the prompts.
      measured: the effects of patching, averaged over the prompts. If the estimates are magnitudes, the average of the
        magnitudes.
      signed: whether estimates have a sign.
    """

    names: tuple[str, ...]
    units: Int[np.ndarray, " unit"]
    drawn: np.ndarray
    estimated: Float[np.ndarray, " unit"]
    measured: Float[np.ndarray, " unit"]
    signed: bool = True

    def pearson(self, drawn: bool | None = None) -> float:
        """The correlation of estimates and effects over all units, or over the units that were (not) drawn at random.

        NaN if there are fewer than three units, or if one side is constant.
        """
        chosen = np.ones(len(self.units), bool) if drawn is None else self.drawn == drawn
        return correlation(self.estimated[chosen], self.measured[chosen])

    def spearman(self) -> float:
        """The correlation of the ranks, over all units."""
        return correlation(ranks(self.estimated), ranks(self.measured))

    def sign_agreement(self) -> float:
        """The fraction of units whose estimate has the sign of the effect. NaN for magnitudes."""
        return float(np.mean(np.sign(self.estimated) == np.sign(self.measured))) if self.signed else float("nan")

    @property
    def is_low(self) -> bool:
        """Whether the estimates failed: the correlation over all units is below `LOW`, or not defined."""
        return not self.pearson() >= LOW

    def worst(self, n: int = 5) -> list[tuple[str, float, float]]:
        """The units with the largest error: (name, estimated, measured), the worst first."""
        order = np.argsort(-np.abs(self.estimated - self.measured), kind="stable")[:n]
        return [(self.names[i], float(self.estimated[i]), float(self.measured[i])) for i in order]

    def warning(self) -> str | None:
        """What is wrong with the estimates; None if they agree with patching."""
        if not self.is_low:
            return None
        found = self.pearson()
        how = "is not defined" if np.isnan(found) else f"is {found:.2f}, below {LOW}"
        return (
            f"DO NOT TRUST THESE ESTIMATES: their correlation with real patching {how} ({len(self.units)} units, "
            f"{int(self.drawn.sum())} of them random). Use node_effects, integrated gradients, or smaller units"
        )

    def figures(self) -> list[str]:
        """What was checked, and how well the estimates agree, as two lines."""
        number = lambda x: "n/a" if np.isnan(x) else f"{x:.2f}"
        return [
            f"checked against patching: {int((~self.drawn).sum())} largest and {int(self.drawn.sum())} random units",
            f"Pearson {number(self.pearson())} (largest {number(self.pearson(False))}, random "
            f"{number(self.pearson(True))}), Spearman {number(self.spearman())}, sign agreement "
            f"{number(self.sign_agreement())}",
        ]

    def __str__(self) -> str:
        what, how_well = self.figures()
        lines = [
            what,
            f"  {how_well}",
            "  worst misses (estimated, measured):",
            *(f"    {name}: {estimate:+.4g}, {measured:+.4g}" for name, estimate, measured in self.worst()),
        ]
        if warning := self.warning():
            bar = "!" * 100
            lines = [bar, f"!! {warning}", bar, *lines]
        return "\n".join(lines)


def correlation(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Pearson's correlation. NaN for fewer than three entries, or if one side is constant."""
    a, b = (
        np.asarray(a, np.float64) - np.mean(a, dtype=np.float64),
        np.asarray(b, np.float64) - np.mean(b, dtype=np.float64),
    )
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / scale) if len(a) > 2 and scale > 0 else float("nan")


def ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Ranks from 0; equal values share the mean of their ranks."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(count)
    return ((ends - count + ends - 1) / 2)[place]
