"""The page of a report on probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from jax_interp.data.tokenizer import Tokenizer
from jax_interp.models import Decoder
from jax_interp.probes import LabelledTokens, Probe, gather_tokens
from jax_interp.probes.report import ProbeFigures, ProbeReport
from jax_interp.views.probe_plots import Curve, calibration_plot, roc_plot, site_sweep
from jax_interp.views.sectioned_page import ScoredText, Section, Table, sectioned_page

SHOWN = 60
"""The most rows of the table of all probes: those with the highest validation AUROC."""


def probe_page(title: str, facts: Mapping[str, str], report: ProbeReport, sections: Sequence[Section] = ()) -> str:
    """A report as one HTML document.

    Args:
      title: the title.
      facts: name -> value, at the top.
      report: the report.
      sections: further sections, before the table of all probes.
    """
    own = {
        "examples": _described(report.data),
        "split": f"{report.split.how}, {len(report.split.seeds)} times",
        **({"control": _described(report.control)} if report.control is not None else {}),
    }
    parts = [
        Section("Chosen on validation data", NOTES, _chosen(report)),
        Section("By site", figures={"AUROC by site": _sweep(report)}),
        _curves(report),
        *([_others(report)] if report.others else []),
        _controls(report),
        *sections,
        _every(report),
    ]
    return sectioned_page("probes", title, {**facts, **own}, report.warnings, parts)


NOTES = (
    "For each kind of probe: the site, token rule and strength with the highest AUROC on a validation part of the "
    "training examples. All figures are of held-out examples that nothing was fitted or chosen on.",
)


def _described(summary) -> str:
    classes = ", ".join(f"{count:,} {name}" for name, count in summary.classes.items())
    low, middle, high = summary.tokens
    return f"{summary.name}: {classes}; {summary.groups:,} groups; {low} to {high} tokens, median {middle:g}"


def _chosen(report: ProbeReport) -> Table:
    rates = [recall.fpr for recall in next(iter(report.chosen.values())).recalls]
    columns = ["probe", "where", "AUROC", "accuracy", *(f"recall at {fpr:.1%}" for fpr in rates), "over bag of words"]
    rows = []
    for kind, best in report.chosen.items():
        recalls = [f"{r.recall_with_threshold}{'' if r.resolved else ' (few controls)'}" for r in best.recalls]
        rows.append([kind, best.where, str(best.test.auroc), str(best.test.accuracy), *recalls, str(best.gap)])
    for name, score in report.text.items():
        rows.append([name, "the text alone", str(score.auroc), str(score.accuracy), *[""] * len(rates), ""])
    return Table(columns, rows)


def _sweep(report: ProbeReport):
    sites = list(dict.fromkeys(figures.site for figures in report.probes))
    curves: dict[str, Curve] = {}
    for kind, best in report.chosen.items():
        of = {f.site: f for f in report.probes if (f.kind, f.rule, f.strength) == (kind, best.rule, best.strength)}
        own = [of[site].test.auroc for site in sites]
        name = f"{kind}, {best.rule}"
        curves[name] = Curve([e.value for e in own], [e.low for e in own], [e.high for e in own])
        resets = [of[site].reset for site in sites]
        if any(reset is not None for reset in resets):
            values = [float("nan") if reset is None else reset.auroc.value for reset in resets]
            curves[f"{name}, reset network"] = Curve(values, reference=True)
    for name, score in report.text.items():
        curves[f"{name} alone"] = Curve([score.auroc.value] * len(sites), reference=True)
    return site_sweep(sites, curves, "AUROC", chance=0.5)


def _curves(report: ProbeReport) -> Section:
    rocs = {kind: (roc.false_positive.tolist(), roc.true_positive.tolist()) for kind, roc in report.roc.items()}
    figures = {"ROC curves": roc_plot(rocs)}
    reliable = {}
    for kind, best in report.chosen.items():
        if best.calibration is not None:
            reliable[f"{kind}, ECE {best.calibration.ece:.3f}"] = _reliability(best)
    if reliable:
        figures["calibration"] = calibration_plot(reliable)
    return Section("Errors at each threshold", figures=figures)


def _reliability(best: ProbeFigures) -> tuple[list[float], list[float]]:
    calibration = best.calibration
    assert calibration is not None
    some = calibration.count > 0
    return calibration.confidence[some].tolist(), calibration.frequency[some].tolist()


def _others(report: ProbeReport) -> Section:
    names = list(report.others)
    rows = [
        [kind, str(best.test.auroc), *(str(best.elsewhere[name].auroc) for name in names)]
        for kind, best in report.chosen.items()
    ]
    accuracy = [
        [f"{kind}, accuracy", str(best.test.accuracy), *(str(best.elsewhere[name].accuracy) for name in names)]
        for kind, best in report.chosen.items()
    ]
    notes = [f"{_described(other)}." for other in report.others.values()]
    heads = ["probe, AUROC", f"{report.data.name}, held out", *names]
    return Section("On other sets", notes, Table(heads, rows + accuracy))


def _controls(report: ProbeReport) -> Section:
    rows = []
    show = lambda value: "" if value is None else f"{value:.3f}"
    for kind, best in report.chosen.items():
        shuffled, within = best.shuffled, best.within_class
        rows.append([
            kind, str(best.test.auroc),
            "" if best.reset is None else str(best.reset.auroc),
            "" if shuffled is None else str(shuffled.auroc),
            show(best.selectivity),
            "" if within is None else str(within.score.auroc),
            "" if within is None else show(within.cosine),
            show(best.length.correlation), show(best.length.at_equal_length),
        ])  # fmt: skip
    heads = [
        "probe", "AUROC", "reset network", "shuffled labels", "selectivity", "shuffled within classes", "cosine",
        "correlation with length", "AUROC at equal length",
    ]  # fmt: skip
    notes = [
        "Reset network: the same fit on the same architecture with new weights. Shuffled labels: the fit on labels in "
        "random order, judged on the true ones. Selectivity: accuracy minus that of shuffled labels.",
        "Shuffled within classes: each coordinate was shuffled within each class before the fit, which removes what "
        "coordinates have in common. It depends on the basis; here it is the basis of the site.",
    ]
    return Section("Controls", notes, Table(heads, rows))


def _every(report: ProbeReport) -> Section:
    ranked = sorted(report.probes, key=lambda figures: -figures.validation)[:SHOWN]
    heads = ["probe", "where", "validation AUROC", "test AUROC", "test accuracy", "training accuracy"]
    rows = [
        [f.kind, f.where, f"{f.validation:.3f}", str(f.test.auroc), str(f.test.accuracy), f"{f.train:.3f}"]
        for f in ranked
    ]
    left = len(report.probes) - len(ranked)
    notes = (
        [f"The {len(ranked)} probes with the highest validation AUROC; {left} more are in report.json."] if left else []
    )
    return Section("All probes", notes, Table(heads, rows))


def heat_section(
    model: Decoder, tokenizer: Tokenizer, data: LabelledTokens, probe: Probe, site: str, rows: Sequence[int]
) -> Section:
    """Texts whose tokens are coloured by the score of a probe, less its threshold.

    Args:
      model: the model.
      tokenizer: its tokenizer.
      data: the examples.
      probe: a probe with a score for each token.
      site: the address that it reads.
      rows: the numbers of the examples to show.
    """
    shown = data.take(np.asarray(rows))
    sequences = gather_tokens(model, shown, site)
    scores = np.asarray(probe.token_scores(jnp.asarray(sequences.values[site]))) - float(probe.threshold)
    scores = np.where(sequences.read, scores, np.nan)
    texts = []
    for row in range(len(shown)):
        real = shown.mask[row]
        label = shown.classes[shown.labels[row]]
        tokens = tokenizer.strings(shown.tokens[row][real].tolist())
        texts.append(ScoredText(f"{shown.name}, {label}", tokens, scores[row][real].tolist()))
    notes = [
        f"The score of each token by itself at {site}, less the threshold: blue is above it ({data.classes[1]}), "
        "orange below. The probe was fitted on the tokens of its rule, and has not seen other tokens."
    ]
    return Section("Scores of tokens", notes, texts=texts)
