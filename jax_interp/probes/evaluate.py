"""`evaluate_probes`: fit probes, and say with every figure how far to trust it.

    report = evaluate_probes(model, Logistic(C=(0.01, 1.0)), data, "blocks.*.resid_post", others={"negated": negated})
    print("\\n".join(report.lines()))

The test part is used once, for the figures. Site, token rule and strength are chosen on a validation part of the
training part; then the probe is fitted on the whole training part.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.probes.baselines import bag_of_words, length_alone, lengths, reset
from jax_interp.probes.causal_report import CausalEffect
from jax_interp.probes.controls import (
    Activations,
    Fitting,
    Reading,
    Scores,
    directions,
    scores_of,
    shuffled_labels,
    within_classes,
)
from jax_interp.probes.fit import FittedProbes
from jax_interp.probes.judging import Cell, Judge, Target, repetitions, score_of
from jax_interp.probes.kind import Kind
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.measures import Roc, roc_curve
from jax_interp.probes.report import ProbeFigures, ProbeReport, Score, SetSummary, SplitSummary, WithinClassShuffle
from jax_interp.probes.report_causes import Answers, effect_of
from jax_interp.probes.report_warnings import warnings_of
from jax_interp.probes.restyling import ORIGINAL
from jax_interp.probes.splits import Split, group_split, leaking_groups
from jax_interp.probes.token_rules import LAST, TokenRule
from jax_interp.surgery import Model


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """What is judged, and what stands beside it.

    Args:
      rules: the token rules.
      validation: the share of the training part that chooses site, rule and strength.
      fprs: the rates of false alarms at which recall is given. Rates that the control set is too small for are left
        out, with a warning.
      shuffles: the number of times that labels are shuffled, for each split. 0: no such control.
      resets: the number of reset networks. 0: no such control.
      within_class: whether coordinates are shuffled within classes. Only kinds that read rows have this control.
      seeds: the seeds of the fit.
      batch: the number of examples in one forward pass.
      at_once: the number of sites that are fitted side by side (`fit_probes`).
      answers: what the model itself answers, for the effect of moving along the chosen direction. None: not measured.
    """

    rules: tuple[TokenRule, ...] = (LAST,)
    validation: float = 0.25
    fprs: tuple[float, ...] = (0.01, 0.001)
    shuffles: int = 3
    resets: int = 1
    within_class: bool = True
    seeds: tuple[int, ...] = (0,)
    batch: int = 32
    at_once: int = 1
    answers: Answers | None = None


DEFAULTS = EvaluationOptions()
CONTROL = "control of false alarms"


def evaluate_probes(
    model: Model,
    kinds: Kind | Sequence[Kind] | Mapping[str, Kind],
    data: LabelledTokens,
    at: str | Sequence[str],
    *,
    split: Split | None = None,
    control: LabelledTokens | None = None,
    others: Mapping[str, LabelledTokens] | None = None,
    options: EvaluationOptions = DEFAULTS,
) -> ProbeReport:
    """Fit probes of each kind at each site, token rule and strength, and judge them.

    Args:
      model: the model.
      kinds: how probes are found: binary kinds, with names or without.
      data: the labelled set. The second of its two classes is the positive one.
      at: the addresses.
      split: training and test parts. None: three grouped splits, `group_split(data, seeds=(0, 1, 2))`.
      control: benign examples of the kind that the probe would see in use, which nothing else is fitted on. Thresholds
        for rates of false alarms are from them. Their labels are not used.
      others: sets with the same two classes that nothing is fitted on: other topics, negations, other languages,
        restyled texts (`restyled`). Examples with a text of `data` are left out and counted. Of restyled texts, those
        of test examples are judged.
      options: token rules, controls and sizes.

    Raises:
      UserError: the classes differ, a part lacks a class, a kind does not tell two classes apart, or as `fit_probes`.
    """
    named = _named(kinds)
    if len(data.classes) != 2:
        raise UserError(f"{data.name} has the classes {', '.join(data.classes) or 'none'}: a report needs two")
    split = group_split(data, seeds=(0, 1, 2)) if split is None else split
    left = None if control is None else without_texts_of(data, control)
    run = _Run(
        _judge(data, split, 0 if left is None else len(left[0]), options),
        {name: _comparable(data, other, name) for name, other in (others or {}).items()},
        left,
        options,
    )
    found: list[ProbeFigures] = []
    chosen: dict[str, ProbeFigures] = {}
    roc: dict[str, Roc] = {}
    fitted: dict[str, FittedProbes] = {}
    causes: dict[str, CausalEffect] = {}
    for tokens in sorted({kind.takes == "sequences" for kind in named.values()}):
        reading = Reading((at,) if isinstance(at, str) else tuple(at), options.rules, tokens, options.batch)
        on = {name: reading.of(model, of) for name, of in run.sets().items()}
        untrained = [reading.of(reset(model, jax.random.key(draw)), data) for draw in range(options.resets)]
        for name, kind in named.items():
            if (kind.takes == "sequences") == tokens:
                fitted[name], figures, curves = run.of_kind(name, kind, on, untrained)
                best = int(np.argmax([one.validation for one in figures]))
                chosen[name], roc[name] = figures[best], curves[best]
                found += figures
                if options.answers is not None and not tokens and directions(fitted[name]) is not None:
                    parts = split.train[0], split.test[0]
                    causes[name] = effect_of(model, chosen[name], fitted[name], on[""], parts, options.answers)
    report = ProbeReport(
        summary(data),
        split_summary(data, split),
        {name: summary(other, removed) for name, (other, removed) in run.others.items()},
        None if run.control is None else summary(*run.control),
        run.judge.of_text(), tuple(found), chosen, roc, fitted, causes, (),
    )  # fmt: skip
    return dataclasses.replace(report, warnings=warnings_of(report, options.fprs))


@dataclasses.dataclass(frozen=True, eq=False)
class _Run:
    judge: Judge
    others: Mapping[str, tuple[LabelledTokens, int]]
    control: tuple[LabelledTokens, int] | None
    options: EvaluationOptions

    def sets(self) -> dict[str, LabelledTokens]:
        """All sets that are read, by name. The set itself is "", and the control set is "control of false alarms"."""
        control = {} if self.control is None else {CONTROL: self.control[0]}
        return {"": self.judge.data, **{name: other for name, (other, _) in self.others.items()}, **control}

    def of_kind(
        self, name: str, kind: Kind, on: Mapping[str, Activations], untrained: Sequence[Activations]
    ) -> tuple[FittedProbes, list[ProbeFigures], list[Roc]]:
        """(the probes fitted on the training parts; figures and curves of each site, rule and strength)."""
        split, options = self.judge.split, self.options
        fit = Fitting(kind, options.seeds, options.at_once)
        part = np.stack([train & ~held for train, held in zip(split.train, self.judge.validation)])
        both = fit(on[""], np.concatenate([split.train, part]))
        final, partial = _splits(both, slice(0, len(split))), _splits(both, slice(len(split), None))
        fits = _Fits(
            {name: scores_of(final, of) for name, of in on.items()},
            scores_of(partial, on[""]),
            list(shuffled_labels(fit, on[""], split, options.shuffles)) if options.shuffles else [],
            [scores_of(fit(of, split.train), of) for of in untrained],
            list(within_classes(fit, on[""], split)) if options.within_class and kind.takes == "rows" else [],
            directions(final),
            both.probes.log_odds,
        )
        sites, rules, strengths = (final.axes[axis] for axis in ("site", "rule", "strength"))
        cells = list(itertools.product(range(len(sites)), range(len(rules)), range(len(strengths))))
        figures = [self.figures((name, sites[i], rules[j], strengths[k]), (i, j, k), fits) for i, j, k in cells]
        return final, figures, [self.curve(fits.scores[""], cell) for cell in cells]

    def figures(self, labels: tuple[str, str, str, float | None], cell: Cell, fits: _Fits) -> ProbeFigures:
        """Everything about the probes at one site, rule and strength."""
        judge, scores, splits = self.judge, fits.scores, len(self.judge.split)
        own = scores[""]
        return ProbeFigures(
            *labels,
            validation=judge.validation_auroc(fits.partial, cell),
            train=judge.train_accuracy(own, cell),
            test=score_of(repetitions(own, cell, splits), judge.test),
            spread=judge.spread(own, cell),
            gap=judge.gap(own, cell),
            recalls=judge.recalls(own, scores[CONTROL], cell) if CONTROL in scores else (),
            calibration=judge.calibration(own, cell) if fits.log_odds else None,
            shuffled=judge.shuffled(fits.shuffled, cell) if fits.shuffled else None,
            reset=self.reset(fits.untrained, cell),
            within_class=self.within_class(fits, cell),
            elsewhere={
                name: score_of(repetitions(scores[name], cell, splits), self.target(other))
                for name, (other, _) in self.others.items()
            },
            length=judge.length(own, cell),
        )

    def reset(self, untrained: Sequence[Scores], cell: Cell) -> Score | None:
        """The figures of reset networks."""
        runs = [run for scores in untrained for run in repetitions(scores, cell, len(self.judge.split))]
        return score_of(runs, self.judge.test) if runs else None

    def within_class(self, fits: _Fits, cell: Cell) -> WithinClassShuffle | None:
        """The control with shuffled coordinates."""
        if not fits.within:
            return None
        runs, cosines = [], []
        site, rule, strength = cell
        for split, fitted, scores in fits.within:
            runs += [(split, values, decided) for _, values, decided in repetitions(scores, cell, 1)]
            other = directions(fitted)
            if fits.directions is not None and other is not None:
                own = fits.directions[site, rule, 0, split, strength]
                cosines += (own * other[site, rule, 0, 0, strength]).sum(axis=-1).tolist()
        return WithinClassShuffle(score_of(runs, self.judge.test), float(np.mean(cosines)) if cosines else None)

    def target(self, other: LabelledTokens) -> Target:
        """The examples of another set that are judged: all, or those whose original is a test example."""
        test = self.judge.split.test
        if ORIGINAL not in other.columns:
            return Target.of(other, [np.ones(len(other), bool)] * len(test))
        return Target.of(other, [rows[np.asarray(other.columns[ORIGINAL], int)] for rows in test])

    def curve(self, scores: Scores, cell: Cell) -> Roc:
        """The ROC curve on the test part of the first split."""
        _, values, _ = repetitions(scores, cell, 1)[0]
        rows = self.judge.test.rows[0]
        return roc_curve(values[rows], self.judge.test.positive[rows])


@dataclasses.dataclass(frozen=True, eq=False)
class _Fits:
    """The scores of one kind: on each set; of probes fitted without the validation part; and of the controls."""

    scores: Mapping[str, Scores]
    partial: Scores
    shuffled: list[tuple[int, Scores, np.ndarray]]
    untrained: list[Scores]
    within: list[tuple[int, FittedProbes, Scores]]
    directions: np.ndarray | None
    log_odds: bool


def _splits(fitted: FittedProbes, part: slice) -> FittedProbes:
    """The probes of some splits, which are numbered from 0."""
    probes = jax.tree.map(lambda a: a[:, :, :, part], fitted.probes)
    return dataclasses.replace(
        fitted, probes=probes, axes={**fitted.axes, "split": tuple(range(len(fitted.axes["split"][part])))}
    )


def _judge(data: LabelledTokens, split: Split, controls: int, options: EvaluationOptions) -> Judge:
    parts = [
        group_split(data, options.validation, (seed,), among=train).test[0]
        for seed, train in zip(split.seeds, split.train)
    ]
    fprs = tuple(fpr for fpr in options.fprs if controls * fpr >= 1 - 1e-9)
    text = {"bag of words": bag_of_words(data, split.train), "length": length_alone(data, split.train)}
    return Judge(data, split, parts, text, fprs, Target.of(data, list(split.test)))


def _named(kinds: Kind | Sequence[Kind] | Mapping[str, Kind]) -> dict[str, Kind]:
    if isinstance(kinds, Kind):
        kinds = (kinds,)
    if not isinstance(kinds, Mapping):
        names = [type(kind).__name__ for kind in kinds]
        kinds = {name if names.count(name) == 1 else repr(kind): kind for name, kind in zip(names, kinds, strict=True)}
    if not kinds:
        raise UserError("give at least one kind of probe")
    for name, kind in kinds.items():
        if kind.target != "binary":
            raise UserError(f"{name} does not tell two classes apart, and this report is about two classes")
    return dict(kinds)


def _comparable(data: LabelledTokens, other: LabelledTokens, name: str) -> tuple[LabelledTokens, int]:
    """Another set with the classes in the same order, without texts of the data unless it restyles them."""
    if set(other.classes) != set(data.classes):
        raise UserError(
            f"{name} has the classes {', '.join(other.classes) or 'none'}; {data.name} has {', '.join(data.classes)}"
        )
    other = other.ordered(data.classes)
    other, removed = (other, 0) if ORIGINAL in other.columns else without_texts_of(data, other)
    if len(np.unique(other.labels)) < 2:
        raise UserError(f"{name} has examples of one class only, so no AUROC: give a set with both")
    return other, removed


def without_texts_of(data: LabelledTokens, other: LabelledTokens) -> tuple[LabelledTokens, int]:
    """Leave out the examples that have a text of another set.

    Args:
      data: the set whose texts are known.
      other: the examples.

    Returns:
      The examples whose text is not one of `data`, and the number of the others.

    Raises:
      UserError: no example is left.
    """
    text = lambda of, row: of.tokens[row][of.mask[row]].astype(np.int64).tobytes()
    known = {text(data, row) for row in range(len(data))}
    kept = np.array([text(other, row) not in known for row in range(len(other))], bool)
    if not kept.any():
        raise UserError(f"all texts of {other.name} are in {data.name} too: give other examples")
    return other.take(kept), int((~kept).sum())


def summary(data: LabelledTokens, removed: int = 0) -> SetSummary:
    """A set in numbers."""
    length = lengths(data)
    return SetSummary(
        data.name, data.counts(), len(np.unique(leaking_groups(data))), data.repeated,
        (int(length.min()), float(np.median(length)), int(length.max())), removed,
    )  # fmt: skip


def split_summary(data: LabelledTokens, split: Split) -> SplitSummary:
    """A split in numbers."""
    groups = leaking_groups(data)
    train, test = (tuple(side.sum(axis=1).tolist()) for side in (split.train, split.test))
    return SplitSummary(
        split.how, split.seeds, train, test, tuple(len(np.unique(groups[rows])) for rows in split.test), split.divided
    )
