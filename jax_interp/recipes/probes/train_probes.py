"""The recipe of `train-probes`: a labelled set in, probes and a page out.

    found = train_probes(TrainProbesConfig(data=LabelledSet(table="sentiment.csv")), "runs/sentiment")

The run directory then holds

    config.json               the config
    <kind>.safetensors        the probes of each kind, at all sites, rules, strengths, splits and seeds
    report.json               all figures, beside their baselines and controls
    probes.html               the page
    summary.txt               the figures as text
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from jax_interp.core.atomic_write import atomic_write
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import write_json
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.models import Decoder, load
from jax_interp.probes import Kind, LabelledTokens, Logistic, MassMean, TokenRule, group_split, save_probes
from jax_interp.probes.evaluate import EvaluationOptions, evaluate_probes
from jax_interp.probes.report import ProbeReport
from jax_interp.probes.token_rules import LAST
from jax_interp.recipes.probes.causes import AnswerTokens, causes_section
from jax_interp.recipes.probes.labelled_set import LabelledSet, read_set
from jax_interp.recipes.probes.probe_page import heat_section, probe_page
from jax_interp.training.runs import open_run
from jax_interp.views.sectioned_page import Section

PAGE, REPORT, SUMMARY = "probes.html", "report.json", "summary.txt"


@dataclasses.dataclass(frozen=True)
class TrainProbesConfig:
    """Which probes are fitted on what, and how they are judged."""

    model: str = "stdlib-small"
    """A model of the package, a Hugging Face directory, or a name on the Hugging Face hub."""
    data: LabelledSet = dataclasses.field(default_factory=LabelledSet)
    """The labelled set."""
    others: tuple[LabelledSet, ...] = ()
    """Other labelled sets of the same classes, on which the probes are judged only."""
    control: LabelledSet | None = None
    """A benign set, from which thresholds at a rate of false alarms are taken. Its labels are not used."""
    sites: tuple[str, ...] = ("blocks.*.resid_post",)
    """The addresses of the values that are read."""
    kinds: tuple[Kind, ...] = (Logistic(C=(0.01, 1.0)), MassMean())
    """The kinds of probes."""
    test: float = 0.25
    """The share of examples that is held out."""
    splits: int = 1
    """The number of random splits."""
    rules: tuple[TokenRule, ...] = (LAST,)
    """The tokens that are read. Activations are moved at those of the first rule."""
    validation: float = 0.25
    """The share of the training part that chooses site, rule and strength."""
    fprs: tuple[float, ...] = (0.01, 0.001)
    """The rates of false alarms on the control set. Rates that it is too small for are left out, with a warning."""
    shuffles: int = 3
    """How often labels are shuffled, for the control. 0: no such control."""
    resets: int = 1
    """The number of networks with new weights, for the control. 0: no such control."""
    within_class: bool = True
    """Whether coordinates are shuffled within classes, for the control."""
    batch: int = 32
    """The number of examples in one forward pass."""
    answers: AnswerTokens = dataclasses.field(default_factory=AnswerTokens)
    """Next tokens by which the model tells the classes apart. If they are given, activations are moved along the
    directions of the chosen probes, and the page says whether the answers change."""
    shown: int = 6
    """The number of held-out texts whose tokens are coloured by the best linear probe."""
    seed: int = 0
    """The seed of the splits."""

    def __post_init__(self) -> None:
        if not self.sites or not self.rules or not self.kinds:
            raise UserError("train-probes needs at least one site, one token rule and one kind of probe")
        if len({type(kind).__name__ for kind in self.kinds}) < len(self.kinds):
            raise UserError("each kind of probe can be given once: several strengths are fitted side by side")
        if self.splits < 1:
            raise UserError(f"splits={self.splits} must be at least 1")


def train_probes(
    config: TrainProbesConfig,
    directory: Path | str,
    progress: Callable[[str], None] = lambda line: None,
    *,
    mesh: Mesh | None = None,
) -> ProbeReport:
    """Fit probes, judge them, and write the run directory.

    Args:
      config: model, labelled sets, sites, kinds.
      directory: the run directory. A run with the same config is written again.
      progress: called with a line at each stage.
      mesh: the mesh for the model. Its batches are split over `data` and `fsdp`. None: one device.

    Raises:
      UserError: the model, a set or a site cannot be used, or the examples cannot be split.
    """
    model, tokenizer = load(config.model, mesh=mesh)
    if tokenizer is None:
        raise UserError(f"{config.model} has no tokenizer, which is needed to turn texts into tokens")
    data = read_set(config.data, tokenizer)
    progress(data.describe())
    others = _named([read_set(other, tokenizer) for other in config.others])
    control = None if config.control is None else read_set(config.control, tokenizer, labelled=False)
    seeds = tuple(range(config.seed, config.seed + config.splits))
    split = group_split(data, test=config.test, seeds=seeds)
    with open_run(directory, config) as run:
        report = evaluate_probes(
            model, config.kinds, data, config.sites,
            split=split, others=others, control=control, options=_options(config, tokenizer),
        )  # fmt: skip
        for kind, fitted in report.fitted.items():
            save_probes(run.directory / f"{kind}.safetensors", fitted)
        write_json(run.directory / REPORT, report.to_json(), nonfinite=True)
        atomic_write(run.directory / SUMMARY, "\n".join(report.lines()) + "\n")
        sections = _heat(config, model, tokenizer, data, report, split.test[0])
        if report.causes:
            sections.insert(0, causes_section(report.causes))
        title = f"{data.name} in {config.model}"
        facts = {
            "model": config.model,
            "sites": ", ".join(config.sites),
            "token rules": ", ".join(map(str, config.rules)),
        }
        atomic_write(run.directory / PAGE, probe_page(title, facts, report, sections))
    return report


def _options(config: TrainProbesConfig, tokenizer: Tokenizer) -> EvaluationOptions:
    return EvaluationOptions(
        rules=config.rules, validation=config.validation, fprs=config.fprs, shuffles=config.shuffles,
        resets=config.resets, within_class=config.within_class, batch=config.batch,
        answers=config.answers.answers(tokenizer, config.rules[0]),
    )  # fmt: skip


def _named(sets: list[LabelledTokens]) -> dict[str, LabelledTokens]:
    names = [data.name for data in sets]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"two other sets are called {repeated[0]!r}: give each a name")
    return dict(zip(names, sets))


def _heat(
    config: TrainProbesConfig, model: Decoder, tokenizer: Tokenizer, data: LabelledTokens, report: ProbeReport,
    test: np.ndarray,
) -> list[Section]:  # fmt: skip
    """Held-out texts of both classes, coloured by the best probe that has a score for single tokens."""
    if not config.shown or len(data.classes) != 2:
        return []
    ranked = sorted(report.chosen.values(), key=lambda figures: -figures.validation)
    rows = [np.flatnonzero(test & (data.labels == label))[: (config.shown + 1) // 2] for label in (1, 0)]
    for best in ranked:
        probe = report.probe(best.kind)
        if probe.reads == "vectors":
            return [heat_section(model, tokenizer, data, probe, best.site, np.concatenate(rows).tolist())]
    return []
