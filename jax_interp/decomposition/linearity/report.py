"""The linearity report: the results of all tests for one decomposition, and their excess over an oracle's results."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, SupportsFloat


def ratio(part: SupportsFloat, whole: SupportsFloat) -> float:
    """`part / whole`; NaN if the whole is 0."""
    return float(part) / float(whole) if float(whole) else math.nan


@dataclasses.dataclass(frozen=True)
class Figure:
    """A squared error.

    raw: the mean over rows of ‖f(x; mask) - f(x)‖².
    normalised: `raw` divided by the mean of ‖f(x)‖². NaN if f(x) is 0 on every row.
    excess: `normalised` minus the oracle's `normalised`; None without an oracle.
    """

    raw: float
    normalised: float
    excess: float | None = None

    @property
    def relative(self) -> float:
        """The relative norm of the error: the square root of `normalised`."""
        return math.sqrt(self.normalised)

    def with_excess(self, oracle: Figure) -> Figure:
        """The figure with its excess over the oracle's."""
        return dataclasses.replace(self, excess=self.normalised - oracle.normalised)


@dataclasses.dataclass(frozen=True)
class LinearityReport:
    """The results of all tests. Errors are `Figure`s. Some are curves over a number k, or over the ascent steps.

    faithfulness   ‖Σθ_c - θ‖ / ‖θ‖ by matrix
    all_on         all parts are on
    strict         exactly the parts with an importance above the threshold are on
    stochastic     masks m = g + (1 - g) r with r uniform
    subset         the needed parts and k random other parts are on
    union          the parts that this row or one of k random other rows needs are on
    adversarial    masks after sign ascent on r, by scope and number of steps
    exact          the worst of all on/off patterns of the parts below full importance; None if there are too many
    resample       parts that are not needed use another row's activations, and a Δ that is not needed is off;
                   None if parts have no activations
    scrub, anti    scrub: half of the parts that are not needed are off; anti: half of the needed parts are off.
                   anti / scrub is far above 1 for a good decomposition
    l0, rank, mdl  the number of parts above the threshold on a row; the sum of the ranks of all parts; the bits per
                   row that describe the parts that are on, with their ranks: `Σ_on (log2 parts + rank)`
    interaction    the mean and the largest of |L({i,j}) - L({i}) - L({j}) + L({})|, where L is the normalised error
                   with these parts off and all others on; it shows redundancy that single ablations do not show
    """

    faithfulness: dict[str, float]
    all_on: Figure
    strict: Figure
    stochastic: Figure
    subset: dict[int, Figure]
    union: dict[int, Figure]
    adversarial: dict[str, dict[int, Figure]]
    exact: Figure | None
    resample: Figure | None
    scrub: Figure
    anti: Figure
    l0: float
    rank: int
    mdl: float
    interaction_mean: float
    interaction_max: float

    @property
    def anti_over_scrub(self) -> float:
        """The error when needed parts are ablated, divided by the error when other parts are ablated. NaN if the
        ablation of other parts makes no error."""
        return ratio(self.anti.raw, self.scrub.raw)

    def with_excess(self, oracle: LinearityReport) -> LinearityReport:
        """The report with the excess of every error over the oracle's."""

        def both(own: Any, known: Any) -> Any:
            if isinstance(own, Figure):
                return own.with_excess(known) if isinstance(known, Figure) else own
            if isinstance(own, dict):
                return {name: both(value, known.get(name)) for name, value in own.items()}
            return own

        names = [field.name for field in dataclasses.fields(self)]
        return LinearityReport(**{n: both(getattr(self, n), getattr(oracle, n)) for n in names})

    def rows(self) -> list[tuple[str, Figure | float]]:
        """All entries with their names, in order."""
        found: list[tuple[str, Figure | float]] = [(f"faithfulness {n}", v) for n, v in self.faithfulness.items()]
        found += [("all on", self.all_on), ("strict", self.strict), ("stochastic", self.stochastic)]
        found += [(f"subset +{k}", v) for k, v in self.subset.items()]
        found += [(f"union of {k + 1}", v) for k, v in self.union.items()]
        found += [
            (f"adversarial, {scope}, {n} steps", v) for scope, by in self.adversarial.items() for n, v in by.items()
        ]
        found += [("adversarial, exact", self.exact)] if self.exact is not None else []
        found += [("resample", self.resample)] if self.resample is not None else []
        found += [("scrub", self.scrub), ("anti-scrub", self.anti), ("anti / scrub", self.anti_over_scrub)]
        found += [("L0", self.l0), ("sum of ranks", float(self.rank)), ("MDL, bits a row", self.mdl)]
        return found + [("interaction, mean", self.interaction_mean), ("interaction, max", self.interaction_max)]

    def __str__(self) -> str:
        lines = [f"{'':44}{'raw':>12}{'normalised':>12}{'over oracle':>12}"]
        for name, value in self.rows():
            if isinstance(value, Figure):
                excess = "" if value.excess is None else f"{value.excess:12.4g}"
                lines.append(f"{name:44}{value.raw:12.4g}{value.normalised:12.4g}{excess:>12}")
            else:
                lines.append(f"{name:44}{value:12.4g}")
        return "\n".join(lines)
