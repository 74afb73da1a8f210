"""The recipe of `evaluate-probes`: the probes of a finished run on sets that they were not fitted on.

    evaluate_run("runs/sentiment", [LabelledSet(table="reviews.csv")], control=LabelledSet(table="news.csv"))

Nothing is fitted again. Each probe keeps the threshold of its training set. The directory then holds

    evaluation.json           the figures
    evaluation.html           the page
    summary.txt               the figures as text
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jax_interp.core import config_json
from jax_interp.core.atomic_write import atomic_write, make_directory
from jax_interp.core.errors import UserError
from jax_interp.core.estimates import Estimate
from jax_interp.core.json_files import read_json, write_json
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.models import Decoder, load
from jax_interp.probes import FittedProbes, LabelledTokens, gather, gather_tokens, load_probes
from jax_interp.probes.evaluate import without_texts_of
from jax_interp.probes.length_confound import LengthConfound, length_confound
from jax_interp.probes.measures import RecallAtFpr, Roc, auroc_interval, clopper_pearson, recall_at_fpr, roc_curve
from jax_interp.probes.splits import leaking_groups
from jax_interp.recipes.probes.labelled_set import LabelledSet, read_set
from jax_interp.recipes.probes.probe_page import heat_section
from jax_interp.recipes.probes.train_probes import REPORT, TrainProbesConfig
from jax_interp.views.probe_plots import roc_plot
from jax_interp.views.sectioned_page import Section, Table, sectioned_page

PAGE, FIGURES, SUMMARY = "evaluation.html", "evaluation.json", "summary.txt"


@dataclasses.dataclass(frozen=True, eq=False)
class OnSet:
    """A probe on one set.

    Args:
      kind: the name of the kind of probe.
      where: the site, the token rule and the strength.
      data: the name of the set.
      auroc: the area under the ROC curve, with an interval over groups.
      accuracy: the share of right answers at the threshold of the training set.
      false_alarms: the share of the negative class above this threshold.
      recalls: recall at rates of false alarms on the control set. Empty: there is no control set.
      length: how much of the score is the length of the text.
      roc: the ROC curve.
    """

    kind: str
    where: str
    data: str
    auroc: Estimate
    accuracy: Estimate
    false_alarms: Estimate
    recalls: tuple[RecallAtFpr, ...]
    length: LengthConfound
    roc: Roc

    def to_json(self) -> dict[str, Any]:
        names = ("auroc", "accuracy", "false_alarms", "length", "roc")
        return {
            **{name: getattr(self, name) for name in ("kind", "where", "data")},
            **{name: getattr(self, name).to_json() for name in names},
            "recalls": [recall.to_json() for recall in self.recalls],
        }

    def __str__(self) -> str:
        recalls = "".join(f", {recall}" for recall in self.recalls)
        return (
            f"{self.kind} ({self.where}) on {self.data}: AUROC {self.auroc}, accuracy {self.accuracy}, false alarms "
            f"{self.false_alarms}{recalls}"
        )


@dataclasses.dataclass(frozen=True)
class _Chosen:
    kind: str
    site: str
    rule: str
    strength: float | None
    fitted: FittedProbes

    @property
    def where(self) -> str:
        return f"{self.site}, {self.rule}" + ("" if self.strength is None else f", strength {self.strength:g}")


def evaluate_run(
    run: Path | str,
    sets: Sequence[LabelledSet],
    directory: Path | str,
    *,
    control: LabelledSet | None = None,
    fprs: Sequence[float] = (0.01,),
    shown: int = 4,
    progress: Callable[[str], None] = lambda line: None,
    mesh: Mesh | None = None,
) -> list[OnSet]:
    """Judge the probes that `train-probes` chose, on other sets.

    Args:
      run: the run directory of `train-probes`.
      sets: labelled sets with the same two classes.
      directory: where the results go.
      control: a benign set, from which thresholds at rates of false alarms are taken.
      fprs: these rates.
      shown: the number of texts of each set whose tokens are coloured.
      progress: called with a line for each set.
      mesh: the mesh for the model. Its batches are split over `data` and `fsdp`. None: one device.

    Examples with a text of the run's own labelled set are left out and counted, so this set is read again.

    Raises:
      UserError: there is no such run, a set cannot be read or has other classes, all its texts are in the run's own
        set, or the control set is too small.
    """
    if not sets:
        raise UserError("evaluate-probes needs at least one labelled set")
    run = Path(run)
    config = config_json.load(TrainProbesConfig, run)
    chosen = _chosen(run)
    model, tokenizer = load(config.model, mesh=mesh)
    if tokenizer is None:
        raise UserError(f"{config.model} has no tokenizer, which is needed to turn texts into tokens")
    fitted_on = read_set(config.data, tokenizer)
    controls = None
    if control is not None:
        controls = without_texts_of(fitted_on, read_set(control, tokenizer, labelled=False))[0]
    found, sections = [], []
    for source in sets:
        data, removed = without_texts_of(fitted_on, read_set(source, tokenizer))
        data = _with_classes(data, chosen[0].fitted.classes)
        progress(data.describe() + (f"; {removed} texts of the training run left out" if removed else ""))
        for one in chosen:
            found.append(_judged(config, model, data, controls, one, fprs))
        sections += _heat(config, model, tokenizer, data, chosen, shown)
    directory = make_directory(Path(directory))
    lines = [str(one) for one in found]
    write_json(directory / FIGURES, {"probes": [one.to_json() for one in found]}, nonfinite=True)
    atomic_write(directory / SUMMARY, "\n".join(lines) + "\n")
    atomic_write(directory / PAGE, _page(run, config, found, sections))
    return found


def _chosen(run: Path) -> list[_Chosen]:
    """The probes that the report of a run names, one for each kind."""
    path = run / REPORT
    if not path.is_file():
        raise UserError(f"{run} has no {REPORT}: give the directory of a finished run of train-probes")
    report = read_json(path, nonfinite=True)
    out = []
    try:
        for kind, number in report["chosen"].items():
            figures = report["probes"][number]
            cell = {name: figures[name] for name in ("site", "rule", "strength")}
            if Path(kind).name != kind:
                raise UserError(f"{path}: {kind!r} is not the name of a kind of probe")
            fitted = load_probes(run / f"{kind}.safetensors")
            first = {name: fitted.axes[name][0] for name in ("split", "seed", "labels")}
            out.append(_Chosen(kind, **cell, fitted=fitted.sel(**cell, **first)))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a report of train-probes: {type(error).__name__} {error}") from error
    if not out:
        raise UserError(f"{path} names no probe")
    return out


def _with_classes(data: LabelledTokens, classes: tuple[str, ...]) -> LabelledTokens:
    if sorted(data.classes) != sorted(classes):
        raise UserError(f"{data.name} has the classes {', '.join(data.classes)}; the probes tell {', '.join(classes)}")
    return data.ordered(classes)


def _scores(config: TrainProbesConfig, model: Decoder, data: LabelledTokens, one: _Chosen) -> np.ndarray:
    rule = next(rule for rule in config.rules if str(rule) == one.rule)
    read = gather_tokens if one.fitted.kind.takes == "sequences" else gather
    return np.asarray(one.fitted.scores(read(model, data, one.site, rule)).values).reshape(len(data))


def _judged(
    config: TrainProbesConfig, model: Decoder, data: LabelledTokens, control: LabelledTokens | None, one: _Chosen,
    fprs: Sequence[float],
) -> OnSet:  # fmt: skip
    scores, positive = _scores(config, model, data, one), np.asarray(data.labels) == 1
    threshold = float(one.fitted.probe().threshold)
    right = (scores > threshold) == positive
    benign = scores[~positive]
    recalls: tuple[RecallAtFpr, ...] = ()
    if control is not None:
        reference = _scores(config, model, control, one)
        recalls = tuple(recall_at_fpr(scores[positive], reference, fpr) for fpr in fprs)
    return OnSet(
        one.kind, one.where, data.name,
        auroc_interval(scores, positive, leaking_groups(data)),
        clopper_pearson(int(right.sum()), right.size),
        clopper_pearson(int((benign > threshold).sum()), benign.size),
        recalls,
        length_confound(scores, positive, data.readable.sum(axis=1)),
        roc_curve(scores, positive),
    )  # fmt: skip


def _heat(
    config: TrainProbesConfig, model: Decoder, tokenizer: Tokenizer, data: LabelledTokens, chosen: Sequence[_Chosen],
    shown: int,
) -> list[Section]:  # fmt: skip
    rows = [np.flatnonzero(data.labels == label)[: (shown + 1) // 2] for label in (1, 0)]
    for one in chosen:
        probe = one.fitted.probe()
        if shown and probe.reads == "vectors":
            return [heat_section(model, tokenizer, data, probe, one.site, np.concatenate(rows).tolist())]
    return []


def _page(run: Path, config: TrainProbesConfig, found: Sequence[OnSet], sections: Sequence[Section]) -> str:
    rates = [recall.fpr for recall in found[0].recalls]
    heads = ["set", "probe", "where", "AUROC", "accuracy", "false alarms", *(f"recall at {fpr:.1%}" for fpr in rates),
             "AUROC at equal length"]  # fmt: skip
    show = lambda value: "" if value is None else f"{value:.3f}"
    rows = [
        [
            one.data, one.kind, one.where, str(one.auroc), str(one.accuracy), str(one.false_alarms),
            *(f"{r.recall_with_threshold}{'' if r.resolved else ' (few controls)'}" for r in one.recalls),
            show(one.length.at_equal_length),
        ]
        for one in found
    ]  # fmt: skip
    curves = {
        f"{one.kind} on {one.data}": (one.roc.false_positive.tolist(), one.roc.true_positive.tolist()) for one in found
    }
    notes = ["Nothing was fitted on these sets. Accuracy and false alarms are at the threshold of the training set."]
    first = Section("On other sets", notes, Table(heads, rows), {"ROC curves": roc_plot(curves)})
    facts = {"model": config.model, "probes": str(run)}
    return sectioned_page("probes", f"The probes of {run.absolute().name} on other sets", facts, (), [first, *sections])
