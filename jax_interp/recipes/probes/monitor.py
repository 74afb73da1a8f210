"""The recipe of `monitor`: labelled conversations in, monitors compared at equal rates of false alarms, a page out.

    found = monitor(MonitorConfig(data=LabelledSet(table="conversations.jsonl")), "runs/monitor")

The labelled set is divided by groups into a training part (for probes and the bag of words), a validation part (for
combinations and cascades) and a test part. Thresholds come from a benign control set.

The run directory then holds

    config.json, report.json, monitor.html, summary.txt
    probe.safetensors         the probe
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from jax_interp.core.atomic_write import atomic_write
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import write_json
from jax_interp.models import load
from jax_interp.probes import (
    Kind,
    LabelledTokens,
    Logistic,
    TokenRule,
    fit_probes,
    gather,
    gather_tokens,
    group_split,
    save_probes,
)
from jax_interp.probes.monitors import (
    Monitor,
    MonitorOptions,
    MonitorReport,
    ProbeMonitor,
    Surprise,
    answer_monitor,
    bag_of_words,
    evaluate_monitors,
    probe_cost,
)
from jax_interp.probes.monitors.monitor import forward_cost
from jax_interp.probes.token_rules import ALL
from jax_interp.recipes.probes.labelled_set import LabelledSet, read_set
from jax_interp.training.runs import open_run
from jax_interp.views.labelled_maps import labelled_map
from jax_interp.views.probe_plots import cost_recall_plot, roc_plot
from jax_interp.views.sectioned_page import Section, Table, sectioned_page

PAGE, REPORT, SUMMARY = "monitor.html", "report.json", "summary.txt"


@dataclasses.dataclass(frozen=True)
class MonitorConfig:
    """Which monitors are compared, and on what."""

    model: str = "stdlib-small"
    """The model that is watched: a model of the package, a Hugging Face directory, or a name on the hub."""
    data: LabelledSet = dataclasses.field(default_factory=lambda: LabelledSet(examples=800))
    """The labelled set. The second of its two classes is the suspicious one (`columns.positive` names it)."""
    control: LabelledSet | None = None
    """Benign examples like the traffic; their labels are not used. None: a part of the benign examples of `data`."""
    others: tuple[LabelledSet, ...] = ()
    """Further benign sets, on which the shift of thresholds is measured."""
    site: str = "blocks.2.resid_post"
    """The value that the probe reads."""
    rule: TokenRule = ALL
    """The tokens that count, such as {"Span": {"name": "assistant"}}."""
    kind: Kind = dataclasses.field(default_factory=Logistic)
    """The kind of probe. The first of its strengths is used."""
    judge: str | None = None
    """A model that answers the question about each text. None: there is no such monitor."""
    question: str = "\nIs this harmful? Answer:"
    """The text after each example, up to the answer."""
    answers: tuple[str, str] = (" yes", " no")
    """The suspicious answer and the other one: one token each."""
    parts: tuple[float, float] = (0.25, 0.35)
    """The shares of the validation part and of the test part of `data`."""
    control_part: float = 0.25
    """Without a control set: the share of `data` whose benign examples are the control set."""
    options: MonitorOptions = dataclasses.field(default_factory=lambda: MonitorOptions(fprs=(0.05,)))
    """What is compared."""
    seed: int = 0
    """The seed of the parts and of the probe."""

    def __post_init__(self) -> None:
        used = sum(self.parts) + (self.control_part if self.control is None else 0)
        if min(self.parts) <= 0 or used >= 1:
            raise UserError(f"parts={self.parts} and control_part={self.control_part} leave nothing to train on")


def monitor(
    config: MonitorConfig,
    directory: Path | str,
    progress: Callable[[str], None] = lambda line: None,
    *,
    mesh: Mesh | None = None,
) -> MonitorReport:
    """Make the monitors, compare them, and write the run directory.

    Args:
      config: model, sets, probe, black-box monitors.
      directory: the run directory. A run with the same config is written again.
      progress: called with a line at each stage.
      mesh: the mesh for the models. Their batches are split over `data` and `fsdp`. None: one device.

    Raises:
      UserError: the model, a set or the site cannot be used, or a part is too small.
    """
    model, tokenizer = load(config.model, mesh=mesh)
    if tokenizer is None:
        raise UserError(f"{config.model} has no tokenizer, which is needed to turn texts into tokens")
    data = read_set(config.data, tokenizer)
    progress(data.describe())
    parts = _parts(config, data)
    if config.control is not None:
        parts["control"] = read_set(config.control, tokenizer, labelled=False)
    others = {one.name: one for one in (read_set(other, tokenizer, labelled=False) for other in config.others)}
    train = parts.pop("training")
    reads_tokens = config.kind.takes == "sequences"
    on = (gather_tokens if reads_tokens else gather)(model, train, config.site, config.rule)
    with open_run(directory, config) as run:
        fitted = fit_probes(config.kind, on, seeds=(config.seed,))
        fitted = fitted.sel(strength=fitted.axes["strength"][0])
        save_probes(run.directory / "probe.safetensors", fitted)
        probe = fitted.probe()
        monitors: list[Monitor] = [
            ProbeMonitor(model, probe, config.site, config.rule, cost=probe_cost(probe)),
            bag_of_words(train, rule=config.rule),
            Surprise(model, rule=config.rule, cost=forward_cost(model)),
        ]
        if config.judge is not None:
            judge, own = load(config.judge, mesh=mesh)
            if own is None or own.digest != tokenizer.digest:
                raise UserError(f"the judge {config.judge} has another tokenizer than {config.model}: give one with it")
            yes, no = config.answers
            monitors.append(answer_monitor(judge, own, config.question, yes=yes, no=no))
        report = evaluate_monitors(monitors, **parts, others=others, options=config.options)
        write_json(run.directory / REPORT, report.to_json(), nonfinite=True)
        atomic_write(run.directory / SUMMARY, "\n".join(report.lines()) + "\n")
        atomic_write(run.directory / PAGE, monitor_page(config, data, report))
    return report


def _parts(config: MonitorConfig, data: LabelledTokens) -> dict[str, LabelledTokens]:
    """training, validation, test, and (if the config has none) control: parts that share no group."""
    left, found, used = np.ones(len(data), bool), {}, 0.0
    shares = {"validation": config.parts[0], "test": config.parts[1]}
    shares |= {"control": config.control_part} if config.control is None else {}
    for name, share in shares.items():
        split = group_split(data, test=share / (1 - used), seeds=(config.seed,), among=left)
        rows, left, used = split.test[0], split.train[0], used + share
        found[name] = data.take(rows & (data.labels == 0) if name == "control" else rows)
    return found | {"training": data.take(left)}


def monitor_page(config: MonitorConfig, data: LabelledTokens, report: MonitorReport) -> str:
    """The report as one HTML document."""
    every = (*report.monitors, *report.combinations)
    fpr = report.fprs[0]
    heads = ["monitor", "access", f"cost, {report.unit}", "AUROC", *(f"recall at {rate:.2%}" for rate in report.fprs)]
    alarms = list(every[0].false_alarms)
    heads += [f"false alarms on {name}" for name in alarms]
    rows = [
        [
            of.name, of.access, f"{of.cost:.4g}", str(of.auroc),
            *(f"{r.recall_with_threshold}{'' if r.resolved else ' (few controls)'}" for r in of.recall),
            *(str(of.false_alarms[name][0]) for name in alarms),
        ]
        for of in every
    ]  # fmt: skip
    figures = {"ROC curves": roc_plot({
        of.name: (of.roc.false_positive.tolist(), of.roc.true_positive.tolist()) for of in every
    })}  # fmt: skip
    sections = [
        Section(
            f"At {fpr:.2%} false alarms",
            ["The threshold of each monitor comes from the control set. All figures are of the test set."],
            Table(heads, rows),
            figures,
        ),
        Section(
            "What recall costs",
            [
                "A cascade sends to the expensive monitor what the cheap one cannot decide. Its thresholds were chosen "
                "on validation data, for each budget."
            ],
            _cascades(report),
            {"cost against recall": cost_recall_plot(report.cost_curves(), report.unit, fpr)},
        ),
    ]
    if report.uplifts:
        rows = [[f"{of.monitor} over {of.baseline}", str(of.auroc), str(of.recall)] for of in report.uplifts]
        note = "What a monitor adds to one that sees only text, on the same examples."
        sections.append(Section("Uplift", [note], Table(["uplift", "AUROC", f"recall at {fpr:.2%}"], rows)))
    note = "Within a class, on validation data. The likelihood ratio takes monitors as independent."
    sections.append(Section("Do monitors see the same?", [note], figures={
        "rank correlation": labelled_map(report.correlation, "rank correlation within a class", 1.0)
    }))  # fmt: skip
    sizes = {name: f"{bad:,} suspicious, {good:,} benign" for name, (bad, good) in report.sizes.items()}
    facts: Mapping[str, str] = {
        "model": config.model,
        **sizes,
        "probe": f"{type(config.kind).__name__} at {config.site}, {config.rule}",
    }
    return sectioned_page("monitors", f"{data.name} in {config.model}", facts, report.cautions, sections)


def _cascades(report: MonitorReport) -> Table | None:
    if not report.cascades:
        return None
    heads = ["cascade", f"budget, {report.unit}", "cost", "escalated", "recall", "false alarms"]
    return Table(heads, [
        [
            curve.name, f"{of.budget:.4g}", f"{of.cost:.4g}", f"{of.escalated:.1%}", str(of.recall),
            str(of.false_positives),
        ]
        for curve in report.cascades
        for of in curve.figures
    ])  # fmt: skip
