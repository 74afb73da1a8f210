"""The thresholds of a cascade: an exact search over a grid.

The first monitor scores every example. A score above `flag` is an alarm at once; a score between `escalate` and `flag`
goes to the second monitor, which gives an alarm above `second`. With flag = ∞ both monitors must agree:

    TPR = P(s₁ > t₁, s₂ > t₂ | suspicious),        cost = C₁ + ρ C₂,        ρ = P(t₁ < s₁)

With escalate = flag the first monitor decides alone, and with -∞ and ∞ the second one. So the best pair is never worse
than the better monitor that the budget allows, on the data that it is chosen on.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from jax_interp.core.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Staged:
    """Both scores of some examples, and what each of them costs."""

    first: Float[np.ndarray, " example"]
    second: Float[np.ndarray, " example"]
    first_cost: Float[np.ndarray, " example"]
    second_cost: Float[np.ndarray, " example"]

    def __post_init__(self):
        shapes = {field.name: np.shape(getattr(self, field.name)) for field in dataclasses.fields(self)}
        if len(set(shapes.values())) > 1 or len(self.first.shape) != 1 or not self.first.size:
            raise UserError(f"each example needs two scores and two costs, got {shapes}")
        for name in shapes:
            if not np.isfinite(getattr(self, name)).all():
                raise UserError(f"{name} has an entry that is not finite")

    def take(self, rows: Bool[np.ndarray, " example"]) -> Staged:
        """Some of the examples."""
        return Staged(self.first[rows], self.second[rows], self.first_cost[rows], self.second_cost[rows])


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """When a cascade gives an alarm.

    Args:
      escalate: above it, a first score goes to the second monitor.
      flag: above it, a first score is an alarm at once.
      second: above it, a second score is an alarm.
    """

    escalate: float
    flag: float
    second: float

    def escalated(self, first: Float[np.ndarray, " example"]) -> Bool[np.ndarray, " example"]:
        """Whether the second monitor is asked."""
        return (first > self.escalate) & (first <= self.flag)

    def alarm(
        self, first: Float[np.ndarray, " example"], second: Float[np.ndarray, " example"]
    ) -> Bool[np.ndarray, " example"]:
        """Whether there is an alarm. `second` counts only where the second monitor is asked."""
        return (first > self.flag) | (self.escalated(first) & (second > self.second))


@dataclasses.dataclass(frozen=True)
class Choice:
    """Thresholds, and what they give on the data that they were chosen on.

    Args:
      thresholds: the thresholds.
      recall: the share of suspicious examples with an alarm.
      false_positives: the share of control examples with an alarm.
      cost: the expected cost of an example.
      escalated: the share of the traffic that the second monitor scores.
    """

    thresholds: Thresholds
    recall: float
    false_positives: float
    cost: float
    escalated: float


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """All pairs of first thresholds, each with the best second threshold. `search` makes it. One entry for each pair.

    Args:
      thresholds: escalate, flag and second.
      recall: as in `Choice`.
      false_positives: as in `Choice`.
      cost: as in `Choice`.
      escalated: as in `Choice`.
      alone: the cost of the first monitor alone.
    """

    thresholds: Float[np.ndarray, "pair 3"]
    recall: Float[np.ndarray, " pair"]
    false_positives: Float[np.ndarray, " pair"]
    cost: Float[np.ndarray, " pair"]
    escalated: Float[np.ndarray, " pair"]
    alone: float

    def best(self, budget: float = np.inf) -> Choice:
        """The highest recall at a cost of at most `budget`. Of equal ones the cheapest.

        Args:
          budget: the largest expected cost of an example.

        Raises:
          UserError: the first monitor alone costs more.
        """
        if not budget >= self.alone * (1 - 1e-12):
            raise UserError(
                f"the budget is {budget:g} for an example, and the first monitor alone costs {self.alone:g}: "
                "no cascade is that cheap"
            )
        allowed = self.cost <= max(budget, self.alone) * (1 + 1e-12)
        at = np.lexsort((self.cost, -self.recall, ~allowed))[0]
        figures = (float(of[at]) for of in (self.recall, self.false_positives, self.cost, self.escalated))
        return Choice(Thresholds(*self.thresholds[at].tolist()), *figures)


def search(positive: Staged, control: Staged, *, fpr: float = 0.01, prevalence: float = 0.0, levels: int = 200) -> Grid:
    """All cascades whose false positive rate on the control examples is at most `fpr`.

    Args:
      positive: suspicious validation examples.
      control: benign validation examples.
      fpr: the largest share of control examples with an alarm.
      prevalence: the share of suspicious examples in the traffic that is paid for. 0: the traffic is like the control
        examples.
      levels: the number of first thresholds that are tried. All scores are tried if there are fewer.

    Raises:
      UserError: `fpr` or `prevalence` is out of range, or at rate `fpr` not one control example may be flagged.
    """
    if not 0 < fpr < 1 or not 0 <= prevalence <= 1:
        raise UserError(f"fpr={fpr} must be between 0 and 1, and prevalence={prevalence} from 0 to 1")
    allowed = int(np.floor(fpr * len(control.first) + 1e-9))
    if not allowed:
        raise UserError(
            f"a false positive rate of {fpr:g} needs at least {int(np.ceil(1 / fpr))} control examples to choose "
            f"thresholds on, there are {len(control.first)}"
        )
    tried = _levels(positive.first, control.first, allowed, levels)
    order = np.argsort(-control.second, kind="stable")
    ranked = np.append(control.second[order], -np.inf)
    direct = (control.first[None] > tried[:, None]).sum(axis=1)
    rows = []
    for flag in tried[direct <= allowed]:
        lows = tried[tried <= flag]
        of_control, of_positive = (
            (of[None] > lows[:, None]) & (of[None] <= flag) for of in (control.first, positive.first)
        )
        left = allowed - int((control.first > flag).sum())
        # benign examples that are asked, from the highest second score on: the first one too many sets the threshold
        too_many = np.cumsum(of_control[:, order], axis=1) > left
        second = ranked[np.where(too_many.any(axis=1), too_many.argmax(axis=1), len(order))]
        alarms = (positive.first > flag)[None] | (of_positive & (positive.second[None] > second[:, None]))
        false = (control.first > flag)[None] | (of_control & (control.second[None] > second[:, None]))
        share = lambda a, b: (1 - prevalence) * a.mean(axis=1) + prevalence * b.mean(axis=1)
        paid = share(of_control * control.second_cost[None], of_positive * positive.second_cost[None])
        figures = (alarms.mean(axis=1), false.mean(axis=1), paid, share(of_control, of_positive))
        rows.append(np.stack([lows, np.full(len(lows), flag), second, *figures], axis=1))
    found = np.concatenate(rows)
    alone = (1 - prevalence) * float(control.first_cost.mean()) + prevalence * float(positive.first_cost.mean())
    return Grid(found[:, :3], found[:, 3], found[:, 4], found[:, 5] + alone, found[:, 6], alone)


def _levels(positive: np.ndarray, control: np.ndarray, allowed: int, levels: int) -> np.ndarray:
    """The first thresholds to try, sorted. The one at which the first monitor alone reaches the rate is among them."""
    if levels < 2:
        raise UserError(f"levels={levels} must be at least 2")
    ranked = np.sort(control)[::-1]
    found = np.unique(np.concatenate([positive, control]))
    if len(found) > levels:
        # half of them divide the suspicious scores evenly, half the benign ones by ratio: the upper tail counts
        even = np.quantile(positive, np.linspace(0, 1, levels // 2), method="lower")
        rank = np.unique(np.geomspace(1, len(ranked), levels // 2).astype(int)) - 1
        found = np.concatenate([even, ranked[rank]])
    return np.unique(np.concatenate([found, [ranked[allowed], -np.inf, np.inf]]))
