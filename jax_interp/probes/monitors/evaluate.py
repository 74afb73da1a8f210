"""`evaluate_monitors`: monitors, their combinations and their cascades, side by side.

report = evaluate_monitors([probe, surprise, answer], validation=..., test=..., control=...)
print("\\n".join(report.lines()))

Three sets of examples have three uses. Combinations and cascades are fitted on `validation`. Thresholds come from
`control`, which is benign. All figures are of `test`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import combinations as subsets

import numpy as np
from jaxtyping import Float

from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.measures.intervals import clopper_pearson
from jax_interp.probes.measures.recall import recall_at_fpr
from jax_interp.probes.measures.roc import auroc_difference, auroc_interval, roc_curve
from jax_interp.probes.monitors.cascade import budgets_between, figures_of, with_combination
from jax_interp.probes.monitors.combining import (
    Combination,
    LikelihoodRatio,
    RankMean,
    Stacking,
    ZScoreMean,
    within_class_correlation,
)
from jax_interp.probes.monitors.monitor import Access, Monitor
from jax_interp.probes.monitors.report import CascadeCurve, MonitorFigures, MonitorReport
from jax_interp.probes.monitors.text_monitors import positives
from jax_interp.probes.monitors.thresholds import Staged, search
from jax_interp.probes.monitors.uplift import Uplift, recall_difference

NOTABLE = 0.3
"""A rank correlation that is larger than this is a caution of the report."""


@dataclasses.dataclass(frozen=True)
class MonitorOptions:
    """What `evaluate_monitors` compares.

    Args:
      fprs: the rates of false alarms. Cascades and uplifts use the first one.
      combinations: how scores are combined, for each set of monitors in `combine`.
      combine: the sets of monitors that are combined, by name. None: all monitors together.
      pairs: (cheap, expensive) of each cascade, by name. None: each pair in which the second one costs more.
      cascade_combination: what the second decision of cascades looks at. None: the score of the expensive monitor.
      budgets: the budgets of cascades, per example. None: nine, from the cheap monitor alone to both on everything.
        A budget below the cost of the cheap monitor is left out.
      prevalence: the share of suspicious examples in the traffic that is paid for.
      draws: the number of bootstrap samples for intervals of recalls.
      seed: the seed of the samples.
    """

    fprs: tuple[float, ...] = (0.01,)
    combinations: tuple[Combination, ...] = (LikelihoodRatio(), ZScoreMean(), RankMean(), Stacking())
    combine: tuple[tuple[str, ...], ...] | None = None
    pairs: tuple[tuple[str, str], ...] | None = None
    cascade_combination: Combination | None = None
    budgets: tuple[float, ...] | None = None
    prevalence: float = 0.0
    draws: int = 1000
    seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class _Sets:
    """The sets of one evaluation, and the scores and costs of the monitors on them."""

    data: Mapping[str, LabelledTokens]
    suspicious: Mapping[str, np.ndarray]
    scores: Mapping[str, Mapping[str, Float[np.ndarray, " example"]]]
    costs: Mapping[str, Mapping[str, Float[np.ndarray, " example"]]]

    def of(self, names: Sequence[str], which: str) -> Float[np.ndarray, "example monitor"]:
        return np.stack([self.scores[name][which] for name in names], axis=1)

    def staged(self, cheap: str, expensive: str, which: str) -> Staged:
        return Staged(
            self.scores[cheap][which], self.scores[expensive][which],
            self.costs[cheap][which], self.costs[expensive][which],
        )  # fmt: skip


def evaluate_monitors(
    monitors: Sequence[Monitor],
    *,
    validation: LabelledTokens,
    test: LabelledTokens,
    control: LabelledTokens,
    others: Mapping[str, LabelledTokens] | None = None,
    options: MonitorOptions = MonitorOptions(),
) -> MonitorReport:
    """Compare monitors at equal rates of false alarms.

    Args:
      monitors: the monitors, with different names.
      validation: examples of two classes, to fit combinations and cascades on. The second class is the suspicious one.
      test: examples of two classes that were used for nothing else.
      control: benign examples like the traffic, of similar length. Thresholds come from them.
      others: further benign sets, on which the shift of thresholds is measured.
      options: what is compared.

    Raises:
      UserError: two monitors have one name, costs have different units, a set lacks a class, a monitor has been trained
        on fewer classes, a text is in two sets, or the control set is too small for a rate.
    """
    names = tuple(monitor.name for monitor in monitors)
    if not names or len(set(names)) < len(names):
        raise UserError(f"monitors need different names, got {', '.join(names) or 'none'}")
    by_name = dict(zip(names, monitors, strict=True))
    total = monitors[0].cost
    for monitor in monitors[1:]:
        total += monitor.cost
    sets = _scored(by_name, {"validation": validation, "test": test, "control": control}, others or {})
    singles = [_figures(name, monitor.access, (name,), sets, options) for name, monitor in by_name.items()]
    found, combined = [], {}
    for members in _combined_sets(names, options):
        for combination in options.combinations:
            name = _name(combination, members if options.combine is not None and len(options.combine) > 1 else ())
            sets = _with_combination(name, combination, members, sets)
            access: Access = "white box" if any(by_name[m].access == "white box" for m in members) else "black box"
            found.append(_figures(name, access, members, sets, options))
            combined[name] = members
    correlation = within_class_correlation(sets.of(names, "validation"), sets.suspicious["validation"])
    return MonitorReport(
        {name: (int(of.sum()), int((~of).sum())) for name, of in sets.suspicious.items()},
        total.unit,
        options.fprs,
        tuple(singles),
        tuple(found),
        tuple(_curve(*pair, sets, options) for pair in _pairs(by_name, sets, options)),
        tuple(_uplifts(by_name, combined, sets, options)),
        Labelled(correlation, {"monitor": names, "other": names}, "rank correlation within a class"),
        tuple(_cautions(singles + found, correlation, names, sets, options)),
    )


def _scored(
    monitors: Mapping[str, Monitor], main: Mapping[str, LabelledTokens], others: Mapping[str, LabelledTokens]
) -> _Sets:
    if taken := [name for name in others if name in (*main, "test benign")]:
        raise UserError(f"a further benign set cannot have the name {taken[0]!r}")
    data = {**main, **others}
    suspicious = {
        name: positives(of) if name in ("validation", "test") else np.zeros(len(of), bool) for name, of in data.items()
    }
    for name in ("validation", "test"):
        if suspicious[name].all() or not suspicious[name].any():
            raise UserError(f"the {name} set has examples of one class only: {main[name].classes}")
    _check_overlap(main)
    scores = {n: {which: monitor.scores(of) for which, of in data.items()} for n, monitor in monitors.items()}
    costs = {n: {which: monitor.costs(of) for which, of in data.items()} for n, monitor in monitors.items()}
    return _Sets(data, suspicious, scores, costs)


def _check_overlap(main: Mapping[str, LabelledTokens]) -> None:
    texts = {name: {of.tokens[i][of.mask[i]].tobytes() for i in range(len(of))} for name, of in main.items()}
    for first, second in subsets(texts, 2):
        if shared := len(texts[first] & texts[second]):
            raise UserError(f"{shared} texts are in the {first} set and in the {second} set: leave them out of one")


def _name(combination: Combination, members: Sequence[str]) -> str:
    fields = [str(getattr(combination, f.name)) for f in dataclasses.fields(combination)  # pyright: ignore
              if getattr(combination, f.name) != f.default]  # fmt: skip
    name = type(combination).__name__ + (f"({', '.join(fields)})" if fields else "")
    return name + (f" of {' + '.join(members)}" if members else "")


def _combined_sets(names: tuple[str, ...], options: MonitorOptions) -> list[tuple[str, ...]]:
    asked = options.combine if options.combine is not None else ((names,) if len(names) > 1 else ())
    for members in asked:
        if unknown := [name for name in members if name not in names]:
            raise UserError(f"no monitor {unknown[0]!r} to combine; there are {', '.join(names)}")
        if len(members) < 2:
            raise UserError(f"a combination needs at least 2 monitors, got {', '.join(members) or 'none'}")
    return list(asked)


def _with_combination(name: str, combination: Combination, members: Sequence[str], sets: _Sets) -> _Sets:
    fitted = combination.fit(sets.of(members, "validation"), sets.suspicious["validation"], sets.of(members, "control"))
    scores = {which: fitted(sets.of(members, which)) for which in sets.data}
    costs = {which: sum((sets.costs[m][which] for m in members), np.zeros(len(of))) for which, of in sets.data.items()}
    return dataclasses.replace(sets, scores={**sets.scores, name: scores}, costs={**sets.costs, name: costs})


def _figures(
    name: str, access: Access, members: tuple[str, ...], sets: _Sets, options: MonitorOptions
) -> MonitorFigures:
    from scipy.stats import rankdata

    scores, suspicious, control = sets.scores[name], sets.suspicious["test"], sets.scores[name]["control"]
    test = sets.data["test"]
    recall = tuple(
        recall_at_fpr(scores["test"][suspicious], control, fpr, draws=options.draws, seed=options.seed)
        for fpr in options.fprs
    )
    benign = {"test benign": scores["test"][~suspicious]}
    benign |= {which: of for which, of in scores.items() if which not in ("validation", "test", "control")}
    alarms = {
        which: tuple(clopper_pearson(int((of > r.threshold.value).sum()), of.size) for r in recall)
        for which, of in benign.items()
    }
    ranks = np.stack([rankdata(control), rankdata(sets.data["control"].mask.sum(axis=1))])
    varies = (np.ptp(ranks, axis=1) > 0).all()
    return MonitorFigures(
        name,
        access,
        members,
        float(sets.costs[name]["control"].mean()),
        auroc_interval(scores["test"], suspicious, test.groups),
        recall,
        alarms,
        roc_curve(scores["test"], suspicious),
        float(np.corrcoef(ranks)[0, 1]) if varies else 0.0,
    )


def _pairs(monitors: Mapping[str, Monitor], sets: _Sets, options: MonitorOptions) -> list[tuple[str, str]]:
    if options.pairs is not None:
        for name in (name for pair in options.pairs for name in pair):
            if name not in monitors:
                raise UserError(f"no monitor {name!r} for a cascade; there are {', '.join(monitors)}")
        return list(options.pairs)
    cost = {name: float(sets.costs[name]["control"].mean()) for name in monitors}
    return [(cheap, dear) for cheap in monitors for dear in monitors if cost[cheap] < cost[dear]]


def _curve(cheap: str, expensive: str, sets: _Sets, options: MonitorOptions) -> CascadeCurve:
    validation, test, control = (sets.staged(cheap, expensive, which) for which in ("validation", "test", "control"))
    suspicious, second = {which: sets.suspicious[which] for which in ("validation", "test")}, expensive
    if options.cascade_combination is not None:
        changed = with_combination(options.cascade_combination, validation, suspicious["validation"], control, test)[1]
        validation, control, test = changed
        second = _name(options.cascade_combination, ())
    grid = search(
        validation.take(suspicious["validation"]), control, fpr=options.fprs[0], prevalence=options.prevalence
    )
    budgets = options.budgets
    if budgets is None:
        budgets = budgets_between(grid.alone, float(control.second_cost.mean()))
    else:
        budgets = tuple(budget for budget in budgets if budget >= grid.alone)
    parts = test.take(suspicious["test"]), test.take(~suspicious["test"])
    figures = [figures_of(budget, grid.best(budget), options.prevalence, *parts) for budget in budgets]
    return CascadeCurve(cheap, expensive, second, options.fprs[0], tuple(figures))


def _uplifts(
    monitors: Mapping[str, Monitor], combined: Mapping[str, tuple[str, ...]], sets: _Sets, options: MonitorOptions
) -> list[Uplift]:
    """White-box monitors over black-box monitors, and combinations over their black-box members."""
    black = [name for name, monitor in monitors.items() if monitor.access == "black box"]
    white = [name for name in monitors if name not in black]
    pairs = [(w, b) for b in black for w in white]
    pairs += [(c, b) for c, members in combined.items() for b in black if b in members and set(members) & set(white)]
    suspicious, found = sets.suspicious["test"], []
    for first, second in pairs:
        test, control = (sets.of((first, second), which).T for which in ("test", "control"))
        auroc = auroc_difference(test[0], test[1], suspicious, sets.data["test"].groups)
        recall = recall_difference(
            test[:, suspicious], control, options.fprs[0], draws=options.draws, seed=options.seed
        )
        found.append(Uplift(first, second, auroc, recall, options.fprs[0]))
    return found


def _cautions(
    figures: Sequence[MonitorFigures],
    correlation: Float[np.ndarray, "monitor monitor"],
    names: Sequence[str],
    sets: _Sets,
    options: MonitorOptions,
) -> list[str]:
    found, controls = [], len(sets.data["control"])
    for fpr in options.fprs:
        if figures and not figures[0].recall[options.fprs.index(fpr)].resolved:
            found.append(
                f"{controls} control examples are few for a rate of {fpr:g}: the threshold rests on the "
                f"{controls * fpr:.1f} highest scores"
            )
    for i, j in subsets(range(len(names)), 2):
        if abs(correlation[i, j]) > NOTABLE and any(isinstance(c, LikelihoodRatio) for c in options.combinations):
            found.append(
                f"{names[i]} and {names[j]} have the rank correlation {correlation[i, j]:.2f} within a class: the "
                "likelihood ratio takes them as independent and counts what they share twice"
            )
    for of in figures:
        for which, rates in of.false_alarms.items():
            for fpr, rate in zip(options.fprs, rates, strict=True):
                if rate.low > fpr:
                    found.append(f"{of.name} at {fpr:g} on the control set gives {rate} false alarms on {which}")
        if abs(of.length_correlation) > NOTABLE:
            found.append(
                f"{of.name} depends on the length: the rank correlation on the control set is "
                f"{of.length_correlation:.2f}. The lengths of control and traffic should be alike"
            )
    return found
