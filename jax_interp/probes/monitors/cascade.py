"""`cascade`: a cheap monitor scores every example, and sends some of them to an expensive one.

chosen = cascade(cheap, expensive, budget, validation=validation, control=control, fpr=0.01)
chosen.decide(data)                    alarms; the expensive monitor runs on the examples that are sent to it only
chosen.evaluate(test)                  recall, false alarms and cost, with intervals

`thresholds` has the decision rule and the search.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jax_interp.core.errors import UserError
from jax_interp.core.estimates import Estimate
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.measures.intervals import clopper_pearson
from jax_interp.probes.monitors.combining import Combination, Combined
from jax_interp.probes.monitors.monitor import Monitor
from jax_interp.probes.monitors.text_monitors import positives
from jax_interp.probes.monitors.thresholds import Choice, Staged, search


@dataclasses.dataclass(frozen=True)
class CascadeFigures:
    """What a cascade does on examples that its thresholds were not chosen on.

    Args:
      budget: the largest expected cost that was allowed.
      chosen: the thresholds, with their figures on the validation data.
      recall: the share of suspicious examples with an alarm, with its Clopper-Pearson interval.
      false_positives: the share of benign examples with an alarm, likewise.
      cost: the expected cost of an example.
      escalated: the share of the traffic that the expensive monitor scores.
    """

    budget: float
    chosen: Choice
    recall: Estimate
    false_positives: Estimate
    cost: float
    escalated: float

    def to_json(self) -> dict[str, Any]:
        """JSON values. An infinite threshold or budget is written as null."""
        finite = lambda value: value if np.isfinite(value) else None
        validation = {name: value for name, value in dataclasses.asdict(self.chosen).items() if name != "thresholds"}
        return {
            "budget": finite(self.budget),
            "thresholds": {name: finite(t) for name, t in dataclasses.asdict(self.chosen.thresholds).items()},
            "validation": validation,
            "recall": self.recall.to_json(),
            "false_positives": self.false_positives.to_json(),
            "cost": self.cost,
            "escalated": self.escalated,
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Decisions:
    """What a cascade decides.

    Args:
      alarm: whether there is an alarm.
      escalated: whether the expensive monitor was asked.
      cost: what each example has cost.
    """

    alarm: Bool[np.ndarray, " example"]
    escalated: Bool[np.ndarray, " example"]
    cost: Float[np.ndarray, " example"]


@dataclasses.dataclass(frozen=True, eq=False)
class Cascade:
    """Two monitors and their thresholds. `cascade` makes it.

    Args:
      cheap: the monitor of all examples.
      expensive: the monitor of some of them.
      budget: the largest expected cost that was allowed.
      prevalence: the share of suspicious examples in the traffic that is paid for.
      chosen: the thresholds.
      combined: what the second decision looks at: None, the score of the expensive monitor; else both scores, combined.
    """

    cheap: Monitor
    expensive: Monitor
    budget: float
    prevalence: float
    chosen: Choice
    combined: Combined | None = None

    def decide(self, data: LabelledTokens) -> Decisions:
        """Score examples. The expensive monitor runs only on the ones that the cheap one sends to it."""
        first, cost = self.cheap.scores(data), self.cheap.costs(data)
        sent = self.chosen.thresholds.escalated(first)
        second = np.full(len(data), -np.inf)
        if sent.any():
            asked = data.take(sent)
            scores = self.expensive.scores(asked)
            if self.combined is not None:
                scores = self.combined(np.stack([first[sent], scores], axis=1))
            second[sent] = scores
            cost = cost.copy()
            cost[sent] += self.expensive.costs(asked)
        return Decisions(self.chosen.thresholds.alarm(first, second), sent, cost)

    def evaluate(self, test: LabelledTokens, benign: LabelledTokens | None = None) -> CascadeFigures:
        """Recall, false alarms and cost on other examples than the ones that the thresholds were chosen on.

        Args:
          test: examples of two classes; the second one is the suspicious one.
          benign: where false alarms and costs are measured. None: the benign examples of `test`.
        """
        suspicious = positives(test)
        both = test.take(suspicious), test.take(~suspicious) if benign is None else benign
        return _figures(self.budget, self.chosen, self.prevalence, [self.decide(of) for of in both])


def cascade(
    cheap: Monitor,
    expensive: Monitor,
    budget: float,
    *,
    validation: LabelledTokens,
    control: LabelledTokens,
    fpr: float = 0.01,
    prevalence: float = 0.0,
    combination: Combination | None = None,
) -> Cascade:
    """Choose the thresholds of a cascade: the highest recall on the validation data within the budget.

    Args:
      cheap: the monitor of all examples.
      expensive: the monitor of the examples that the cheap one sends to it.
      budget: the largest expected cost of an example, in the unit of the monitors.
      validation: examples of two classes; recall is measured on the suspicious ones.
      control: benign examples like the traffic. False alarms and costs are measured on them.
      fpr: the largest share of control examples with an alarm.
      prevalence: the share of suspicious examples in the traffic that is paid for.
      combination: how both scores become the second decision. None: the score of the expensive monitor alone.

    Raises:
      UserError: the units of the costs differ, the budget is below the cost of the cheap monitor, or the control set is
        too small for `fpr`.
    """
    _ = cheap.cost + expensive.cost
    of_validation, of_control = staged(cheap, expensive, validation), staged(cheap, expensive, control)
    suspicious = positives(validation)
    combined = None
    if combination is not None:
        combined, (of_validation, of_control) = with_combination(combination, of_validation, suspicious, of_control)
    grid = search(of_validation.take(suspicious), of_control, fpr=fpr, prevalence=prevalence)
    return Cascade(cheap, expensive, budget, prevalence, grid.best(budget), combined)


def staged(cheap: Monitor, expensive: Monitor, data: LabelledTokens) -> Staged:
    """The scores and costs of both monitors on all examples."""
    return Staged(cheap.scores(data), expensive.scores(data), cheap.costs(data), expensive.costs(data))


def with_combination(
    combination: Combination, validation: Staged, suspicious: Bool[np.ndarray, " example"], *others: Staged
) -> tuple[Combined, tuple[Staged, ...]]:
    """Fit a combination, and put the combined score in the place of the second one.

    Args:
      combination: how the scores are combined.
      validation: labelled examples.
      suspicious: their classes.
      others: other examples. The first ones are the benign control examples.
    """
    pair = lambda of: np.stack([of.first, of.second], axis=1)
    combined = combination.fit(pair(validation), suspicious, pair(others[0]))
    changed = (dataclasses.replace(of, second=combined(pair(of))) for of in (validation, *others))
    return combined, tuple(changed)


def figures_of(budget: float, chosen: Choice, prevalence: float, suspicious: Staged, benign: Staged) -> CascadeFigures:
    """The figures of a cascade from scores that are known already, for all examples."""
    decisions = []
    for of in (suspicious, benign):
        sent = chosen.thresholds.escalated(of.first)
        alarm = chosen.thresholds.alarm(of.first, of.second)
        decisions.append(Decisions(alarm, sent, of.first_cost + sent * of.second_cost))
    return _figures(budget, chosen, prevalence, decisions)


def _figures(budget: float, chosen: Choice, prevalence: float, decisions: Sequence[Decisions]) -> CascadeFigures:
    suspicious, benign = decisions
    share = lambda a, b: (1 - prevalence) * float(b.mean()) + prevalence * float(a.mean())
    return CascadeFigures(
        budget,
        chosen,
        clopper_pearson(int(suspicious.alarm.sum()), suspicious.alarm.size),
        clopper_pearson(int(benign.alarm.sum()), benign.alarm.size),
        share(suspicious.cost, benign.cost),
        share(suspicious.escalated, benign.escalated),
    )


def budgets_between(first: float, second: float, count: int = 9) -> tuple[float, ...]:
    """Budgets from the cheap monitor alone to both monitors on everything.

    Args:
      first: the cost of the cheap monitor.
      second: the cost of the expensive one.
      count: the number of budgets. The share that may be escalated is 0, and then grows from 1 % to 1 in equal ratios.

    Raises:
      UserError: there are fewer than 2 budgets.
    """
    if count < 2:
        raise UserError(f"count={count}: give at least 2 budgets")
    shares = np.concatenate([[0.0], np.geomspace(0.01, 1.0, count - 1)])
    return tuple((first + shares * second).tolist())
