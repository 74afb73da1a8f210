"""The recipe of `bench-dictionary`: what the latents of a dictionary are good for, beside baselines, with intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jax_interp.core.atomic_write import check_place
from jax_interp.core.errors import UserError
from jax_interp.core.processes import on_host
from jax_interp.data.harvest import harvest, later_positions
from jax_interp.data.labelled import LabelledTexts
from jax_interp.data.text import text_for
from jax_interp.dictionaries.evaluation.benchmarks import concept_ablation, description_length
from jax_interp.dictionaries.evaluation.benchmarks.absorption import absorption
from jax_interp.dictionaries.evaluation.benchmarks.baselines import Compared, compare, fixed_directions
from jax_interp.dictionaries.evaluation.benchmarks.first_letters import vocabulary_words, word_activations
from jax_interp.dictionaries.evaluation.benchmarks.measure import Measure, mean_over_reseeds
from jax_interp.dictionaries.evaluation.benchmarks.pooled import Place, Pool
from jax_interp.dictionaries.evaluation.benchmarks.probing import ProbingConfig, k_sparse_probing
from jax_interp.dictionaries.evaluation.benchmarks.unlearning import (
    Unlearning,
    UnlearningConfig,
    token_accuracy,
    unlearning,
)
from jax_interp.dictionaries.evaluation.evaluate import without_nan
from jax_interp.dictionaries.forms.cross_layer import CrossLayer
from jax_interp.dictionaries.forms.temporal import Temporal
from jax_interp.dictionaries.storage import Saved
from jax_interp.recipes.bench_tables import LabelledTables, tables_for
from jax_interp.recipes.evaluate_dictionary import Asked, OpenedDictionary, open_dictionary, write_figures

Task = Literal["probing", "absorption", "description-length", "tpp", "scr", "unlearning"]
TASKS: tuple[Task, ...] = ("probing", "absorption", "description-length", "tpp", "scr", "unlearning")
ROWS = 1024
"""Rows in a batch of activations, at most."""
Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What is measured, and with how much data."""

    tasks: tuple[Task, ...] = ()
    """The benchmarks. Empty: all for which there is data."""
    probes: str | None = None
    """Labelled texts for probing, tpp and scr: a table, a directory of tables, or "sae-probes" for the tables of that
    distribution. Tables of two classes are for probing, those of three to ten for tpp."""
    label: str | None = None
    """The column of labels. None: "label" or "target"."""
    spurious: str | None = None
    """A second column of labels, for scr. Both must have two classes."""
    forget: str | None = None
    """For unlearning: a text whose prediction is to be forgotten (a file or a directory)."""
    retain: str | None = None
    """For unlearning: a text whose prediction is to be kept."""
    reseeds: int = 3
    """Random divisions into training and test examples. Each has another random dictionary."""
    data_sets: int = 12
    """Tables of two classes that are used, at most, evenly spaced in the order of their names; tpp uses a third as
    many."""
    texts: int = 150
    """Texts of each class, at most."""
    words: int = 1000
    """Words of the vocabulary for absorption, at most."""
    ks: tuple[int, ...] = (1, 2, 5, 16)
    """Numbers of latents for probing."""
    pool: Pool = "mean"
    """Latents of a text for probing: the mean over its tokens, or those of its last token."""
    text_context: int = 128
    """Tokens of a labelled text that are read, at most. Never more than the model's context."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("reseeds", "data_sets", "texts", "words"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        for task in self.tasks:
            if task not in TASKS:
                raise UserError(f"there is no task {task!r}: the tasks are {', '.join(TASKS)}")
        if (self.forget is None) != (self.retain is None):
            raise UserError("unlearning needs two texts: give both --forget and --retain")
        if self.spurious is not None and self.probes is None:
            raise UserError("--spurious names a column of the tables of --probes: give them too")


@dataclasses.dataclass(frozen=True)
class Benchmarked:
    """The result of `bench_dictionary`."""

    saved: Saved
    model: str
    figures: dict[str, Any]
    """JSON values: "measures" with all figures, "left_out" with the reason for each task that was not measured, "l0" by
    coder, and what was measured with what settings."""
    written_to: Path | None


def bench_dictionary(
    source: Path | str,
    id: str | None = None,
    *,
    asked: Asked | None = None,
    format: str | None = None,
    config: BenchConfig = BenchConfig(),
    write_to: Path | None = None,
    progress: Progress = lambda line: None,
    mesh: Mesh | None = None,
) -> Benchmarked:
    """Run the benchmarks of a dictionary.

    Args:
      source: a run directory of `train-dictionary`, or what `load_dictionary` takes.
      id: the dictionary in a release.
      asked: other inputs than those of the run or the files; None: none.
      format: the format of the files; None: it is detected.
      config: the benchmarks and their sizes.
      write_to: a new file for the figures. The default for a run or a dictionary of this package is the next free name
        of `benchmark.json`, `benchmark-2.json`, ... in its directory.
      progress: called with a line after each part.
      mesh: the mesh to compute on. None: one device.

    Raises:
      UserError: the dictionary or its model cannot be loaded, a task that was asked for has no data or does not suit
        the dictionary, nothing could be measured, or the file cannot be written.
    """
    if write_to is not None:
        check_place(write_to)
    tables, skipped = tables_for(config.probes, label=config.label, spurious=config.spurious, most=config.data_sets)
    if config.forget is None:
        skipped["unlearning"] = "no texts: give --forget and --retain"
    opened = open_dictionary(source, id, asked=asked or Asked(), format=format, mesh=mesh)
    saved = opened.saved
    if isinstance(saved.dictionary, (CrossLayer, Temporal)):
        raise UserError(
            "bench-dictionary measures dictionaries that encode single tokens of one layer; this is a "
            f"{type(saved.dictionary).__name__}"
        )
    reasons = {**skipped, **_unsuited(saved)}
    tasks: list[Task] = [task for task in config.tasks or TASKS if task not in reasons]
    if missing := [task for task in config.tasks if task in reasons]:
        raise UserError(f"the task {missing[0]} cannot be measured: {reasons[missing[0]]}")
    rows = _rows(opened)
    progress(f"baselines: measured on {sum(map(len, rows)):,} tokens of {opened.config.text}")
    compared = compare(jax.random.key(config.seed), saved.dictionary, rows, config.reseeds)
    context = min(config.text_context, opened.inputs.model.config.n_ctx)
    place = Place(opened.inputs.model, saved.reads(), opened.inputs.tokenizer, context)
    bench = _Bench(opened, config, compared, place, rows, tables, progress)
    measures = []
    for task in tasks:
        try:
            measures += bench.measured(task)
        except UserError as error:  # it shows only now that the model or the tables do not allow it
            reasons[task] = str(error)
    if not measures:
        raise UserError("nothing could be measured: " + "; ".join(f"{task}: {reasons[task]}" for task in tasks))
    figures = _figures(opened, config, compared, measures, reasons, tables)
    written = write_figures(opened, source, figures, "benchmark", write_to)
    return Benchmarked(saved, opened.config.model, figures, written)


@dataclasses.dataclass(frozen=True)
class _Bench:
    opened: OpenedDictionary
    config: BenchConfig
    compared: Compared
    place: Place
    rows: Sequence[jax.Array]
    tables: LabelledTables
    progress: Progress

    def measured(self, task: Task) -> list[Measure]:
        """The measures of one task."""
        tasks = {
            "probing": self.probing,
            "absorption": self.absorption,
            "description-length": lambda: description_length.measures(self.compared, self.rows),
            "tpp": self.tpp,
            "scr": self.scr,
            "unlearning": self.unlearning,
        }
        self.progress(f"{task}: begins")
        return list(tasks[task]())

    def probing(self) -> Iterator[Measure]:
        c = self.config
        settings = ProbingConfig(ks=c.ks, splits=c.reseeds, per_class=c.texts, pool=c.pool, seed=c.seed)
        return k_sparse_probing(self.place, self.compared, self.tables.two, settings, self.progress).measures()

    def absorption(self) -> Iterator[Measure]:
        words = vocabulary_words(self.place.tokenizer, most=self.config.words, seed=self.config.seed)
        self.progress(f"absorption: {len(words)} words under {len(words.letters())} letters")
        place = dataclasses.replace(self.place, context=self.opened.inputs.model.config.n_ctx)
        x = word_activations(place, words, seed=self.config.seed)
        letters = words.letters()
        splits = self.config.reseeds
        return absorption(self.compared, x, words.labels(), letters, splits=splits, seed=self.config.seed).measures()

    def tpp(self) -> Iterator[Measure]:
        found: _OfTables = {}
        names = [name for name, _ in self.compared.columns()]
        for table in self.tables.several:
            texts, labels = _sample(table, table.labels, self.config)
            self.progress(f"tpp: {table.name}, {len(texts)} texts of {len(table.classes)} classes")
            pooled = concept_ablation.pooled_texts(self.place, self.compared, texts)
            scores = concept_ablation.tpp(pooled, names, labels, reseeds=self.config.reseeds, seed=self.config.seed)
            _append(found, scores)
        meaning = "ablating a class's latents hurts its probe more than those of other classes"
        return concept_ablation.measures("TPP", _means(found), concept_ablation.TPP_WARNING, meaning)

    def scr(self) -> Iterator[Measure]:
        found: _OfTables = {}
        names = [name for name, _ in self.compared.columns()]
        for table, spurious in self.tables.pairs:
            target = dict(zip(table.texts, table.labels.tolist(), strict=True))
            other = dict(zip(spurious.texts, spurious.labels.tolist(), strict=True))
            both = [text for text in target if text in other]
            cells = np.asarray([2 * target[text] + other[text] for text in both])
            texts, cells = _sample(dataclasses.replace(table, texts=tuple(both), labels=cells), cells, self.config)
            self.progress(f"scr: {table.name}, {len(texts)} texts")
            pooled = concept_ablation.pooled_texts(self.place, self.compared, texts)
            reseeds, seed = self.config.reseeds, self.config.seed
            scores = concept_ablation.scr(pooled, names, cells >= 2, cells % 2 == 1, reseeds=reseeds, seed=seed)
            _append(found, scores)
        meaning = "accuracy that a biased probe regains when the latents of the spurious attribute are ablated"
        return concept_ablation.measures("SCR", _means(found), concept_ablation.SCR_WARNING, meaning)

    def unlearning(self) -> Iterator[Measure]:
        run, inputs = self.opened.config, self.opened.inputs
        batches = {}
        for name, source in (("forget", self.config.forget), ("retain", self.config.retain)):
            text = text_for(str(source), inputs.tokenizer, rows=run.rows, column=run.text_column)
            seen = text.training_batches(run.batch, run.context, self.config.seed)
            chosen = [seen(i) for i in range(8)]
            batches[name] = chosen, text.validation_batches(run.batch, run.context, run.evaluate_sequences)
        ability, other = (token_accuracy(batches[name][1]) for name in ("forget", "retain"))
        texts = batches["forget"][0], batches["retain"][0]
        address = str(self.opened.saved.reads())  # `_unsuited` has refused several
        settings = UnlearningConfig(first=int(inputs.tokenizer.bos_id is not None))
        estimates = {}
        for name, coders in self.compared.columns():
            scores = []
            for coder in coders:
                line = lambda text, name=name: self.progress(f"{name}, {text}")
                run_one = unlearning(inputs.model, address, coder, texts, ability, {"retain": other}, settings, line)
                scores.append(_taken(run_one))
            estimates[name] = mean_over_reseeds(scores, "random dictionaries" if len(scores) > 1 else "reseed")
        meaning = "share of the accuracy on the text to forget that clamped latents take away; 99 % is kept elsewhere"
        yield Measure("unlearning", meaning, "higher", estimates)


def _taken(found: Unlearning) -> float:
    """The ability that was taken away, as a share of that of the unchanged model."""
    return (found.score - (1 - found.unchanged)) / found.unchanged if found.unchanged else float("nan")


_OfTables = dict[str, dict[int, list[list[float]]]]
"""coder -> n -> the reseeds of each table."""


def _append(found: _OfTables, scores: concept_ablation.Scores) -> None:
    for coder, by_n in scores.items():
        for n, values in by_n.items():
            found.setdefault(coder, {}).setdefault(n, []).append(values)


def _means(found: _OfTables) -> concept_ablation.Scores:
    """The mean over tables of each reseed."""
    return {c: {n: np.mean(tables, axis=0).tolist() for n, tables in by_n.items()} for c, by_n in found.items()}


def _sample(table: LabelledTexts, labels: np.ndarray, config: BenchConfig) -> tuple[list[str], np.ndarray]:
    """At most `config.texts` texts of each label."""
    rng = np.random.default_rng(config.seed)
    of_label = [rng.permutation(np.flatnonzero(labels == label))[: config.texts] for label in np.unique(labels)]
    chosen = np.sort(np.concatenate(of_label))
    return [table.texts[i] for i in chosen], labels[chosen]


def _unsuited(saved: Saved) -> dict[Task, str]:
    """The reason for each task that does not suit the dictionary."""
    reads = saved.reads()
    if not isinstance(reads, str) or saved.writes not in (None, reads):
        return dict.fromkeys(TASKS[1:], "it needs a dictionary that reconstructs the one value that it reads")
    try:
        fixed_directions(saved.dictionary, "it")
    except UserError as error:
        return dict.fromkeys(TASKS[1:], str(error))
    return {}


def _rows(opened: OpenedDictionary) -> list[jax.Array]:
    """Batches of activations at kept positions of held-out text, all of one size."""
    config, inputs = opened.config, opened.inputs
    address = opened.saved.reads()
    read = jax.jit(lambda model, tokens: harvest(model, address, tokens))
    kept = []
    for tokens, keep in inputs.text.validation_batches(config.batch, config.context, config.evaluate_sequences):
        later = np.asarray(later_positions(keep, config.dictionary.skip_first)).reshape(-1)
        kept.append(on_host(read(inputs.model, jnp.asarray(tokens)))[later])
    x = np.concatenate(kept)
    size = min(ROWS, len(x) // (2 * description_length.PARTS))
    if not size:
        raise UserError(
            f"{len(x)} kept tokens of held-out text are too few to measure baselines: give more --sequences"
        )
    return [jnp.asarray(x[i : i + size]) for i in range(0, len(x) - size + 1, size)]


def _figures(
    opened: OpenedDictionary,
    config: BenchConfig,
    compared: Compared,
    measures: Sequence[Measure],
    reasons: dict[str, str],
    tables: LabelledTables,
) -> dict[str, Any]:
    saved = opened.saved
    settings = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
    names = lambda of: [
        {"name": t.name, "texts": t.counts(), "left_out": t.left_out, "repeated": t.repeated} for t in of
    ]
    return without_nan(
        {
            "model": opened.config.model,
            "text": opened.config.text,
            "address": saved.reads() if isinstance(saved.reads(), str) else list(saved.reads()),
            "settings": settings,
            "l0": compared.l0,
            "measures": [measure.to_json() for measure in measures],
            "left_out": {task: reasons[task] for task in TASKS if task in reasons},
            "tables": {"probing": names(tables.two), "tpp": names(tables.several), "unused": tables.unused},
        }
    )
