"""What a reader should know before quoting a figure of a report on probes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jax_interp.probes.causal_report import CausalEffect
from jax_interp.probes.report import ProbeFigures, ProbeReport, answered

FEW = 10
"""From this number of groups on, an interval of the test part counts as good."""


def warnings_of(report: ProbeReport, fprs: Sequence[float]) -> tuple[str, ...]:
    """The warnings of a report, about the sets first and then about each chosen probe.

    Args:
      report: the report.
      fprs: the rates of false alarms that were asked for.
    """
    return (
        *_of_sets(report, fprs),
        *(w for kind, best in report.chosen.items() for w in _of_probe(kind, best, report)),
    )


def _of_sets(report: ProbeReport, fprs: Sequence[float]) -> Iterator[str]:
    if any(report.split.divided):
        yield (
            f"the {report.split.how} split divides up to {max(report.split.divided)} groups: training and test part "
            "share what leaks"
        )
    if min(report.split.test_groups) < FEW:
        yield f"a test part has {min(report.split.test_groups)} groups only: intervals are wide, and too narrow still"
    words = report.text["bag of words"].auroc
    if words.low > 0.5:
        yield f"the words alone tell the classes apart: AUROC {words}"
    if words.high < 0.5:
        yield (
            f"the words alone give the wrong answer more often than chance, AUROC {words}: each group teaches the "
            "opposite of what the test asks, so that a probe which reads words is below chance too"
        )
    length = report.text["length"].auroc
    if length.low > 0.5 or length.high < 0.5:
        yield f"the classes differ in length: AUROC of a probe on length {length}"
    if not report.others:
        yield "there is no other set: nothing is known outside the distribution of the training set"
    if not report.causes:
        yield "the model was not moved along any direction: nothing is known of whether it uses what the probes read"
    if report.control is None:
        yield "there is no control set: nothing is known of recall at a small rate of false alarms"
        return
    for fpr in fprs:
        if (count := report.control.examples * fpr) < 1:
            yield f"{report.control.examples} control examples are too few for a false-alarm rate of {fpr:g}"
        elif count < 10:
            yield f"the threshold for a false-alarm rate of {fpr:g} rests on {count:.0f} control examples"


def _of_probe(kind: str, best: ProbeFigures, report: ProbeReport) -> Iterator[str]:
    if best.gap.low <= 0:
        yield f"{kind}: not shown to be better than a bag of words (AUROC difference {best.gap})"
    if best.reset is not None and best.reset.auroc.value >= best.test.auroc.low:
        yield f"{kind}: the AUROC on reset networks, {best.reset.auroc.value:.3f}, lies in or above the interval"
    if best.shuffled is not None and best.shuffled.auroc.high >= best.test.auroc.low:
        yield (
            f"{kind}: AUROC {best.shuffled.auroc.high:.3f} of a draw of shuffled labels lies in or above the interval"
        )
    if (effect := report.causes.get(kind)) is not None:
        yield from _of_effect(kind, effect)
    for name, score in best.elsewhere.items():
        if score.auroc.high < 0.5:
            yield f"{kind}: on {name} the direction points the wrong way (AUROC {score.auroc})"
        elif score.auroc.low <= 0.5:
            yield f"{kind}: on {name} not shown to be better than chance (AUROC {score.auroc})"
        elif score.auroc.value > 0.8 and score.accuracy.value < 0.6:
            yield f"{kind}: on {name} the threshold is wrong (AUROC {score.auroc}, accuracy {score.accuracy})"
    equal = best.length.at_equal_length
    if equal is not None and best.test.auroc.value - equal > 0.1:
        yield f"{kind}: at equal length the AUROC is {equal:.3f} only"


def _of_effect(kind: str, effect: CausalEffect) -> Iterator[str]:
    if not answered(effect):
        yield f"{kind}: the model's answers do not tell the classes apart ({effect.gap()}), so no effect can be given"
        return
    rows = effect.rows()
    for way in ("to_positive", "to_negative"):
        control = max(row[way].value for row in rows if row["control"])
        own = max((row[way] for row in rows if not row["control"]), key=lambda one: one.value)
        if own.low <= max(control, 0.0):
            to = "positive" if way == "to_positive" else "negative"
            yield f"{kind}: the move to the {to} class has an effect of {own}, and a control up to {control:.3f}"
