"""The recipe of `find-circuit`: score the edges of a model for one behaviour, judge the circuits, write a page.

    found = find_circuit(FindCircuitConfig(model="stdlib-small", task="induction"), "runs/induction")

The run directory then holds

    config.json      the config
    circuit.json     the scores of all edges and the circuit, in the format of MIB and EAP-IG
    report.json      faithfulness at each size, CPR and CMD, with intervals and beside random circuits
    circuit.html     the graph and the figures
    summary.txt      the figures as text
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jax_interp.circuits.contrast import Contrast
from jax_interp.circuits.discovery.methods import Method, MethodOptions, find_edges
from jax_interp.circuits.discovery.mib_file import read_mib, write_mib
from jax_interp.circuits.discovery.selection import MIB_FRACTIONS, Order, first, ranked, sizes_of
from jax_interp.circuits.discovery.units import Ablation, EdgeUnits
from jax_interp.circuits.evaluation.ranking import node_scores, roc
from jax_interp.circuits.evaluation.report import CircuitReport, evaluate
from jax_interp.circuits.graph import residual_graph
from jax_interp.circuits.tasks import find_task
from jax_interp.core.atomic_write import atomic_write
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import write_json
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.models import Decoder, load
from jax_interp.recipes.prompt_pairs import encode_rows, read_pairs
from jax_interp.training import on_mesh
from jax_interp.training.runs import open_run
from jax_interp.views.circuit_page import MOST_EDGES, CircuitEdge, ScoredCircuit, circuit_page, faithfulness_plot


@dataclasses.dataclass(frozen=True)
class FindCircuitConfig:
    """Which circuit is sought, how, and how it is judged."""

    model: str = "stdlib-small"
    """A model of the package, a Hugging Face directory, or a name on the Hugging Face hub."""
    task: str = "induction"
    """The task whose prompts are used."""
    table: Path | None = None
    """A table of prompt pairs in place of a task (CSV, JSON lines, Parquet), with the columns clean, corrupted, answer
    and other. An answer is one token, with its leading space if it has one."""
    method: Method = "eap-ig"
    """How edges are scored."""
    options: MethodOptions = dataclasses.field(default_factory=MethodOptions)
    """The settings of the methods."""
    circuit: Path | None = None
    """Judge the scores of this file (in the format of MIB) in place of a method."""
    order: Order = "absolute"
    """How scores become circuits. MIB takes absolute for CMD and signed for CPR."""
    ablation: Ablation = "corrupted"
    """What edges outside a circuit carry when a circuit is run."""
    prompts: int = 32
    """The number of pairs for the scores."""
    held_out: int = 32
    """The number of other pairs, on which circuits are judged. Of a table, the last ones."""
    fractions: tuple[float, ...] = MIB_FRACTIONS
    """The sizes of the circuits, as fractions of all edges. The default is that of MIB."""
    size: float = 0.02
    """The size of the circuit that circuit.json marks and the page shows first."""
    random_circuits: int = 5
    """Random circuits beside each circuit."""
    seed: int = 0
    """The seed of the prompts, of trained masks and of random circuits."""

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.held_out < 2:
            raise UserError("find-circuit needs one pair of prompts at least, and two held-out ones for an interval")
        if not 0 < self.size <= 1:
            raise UserError(f"size={self.size} is the share of edges in the circuit: above 0, at most 1")
        if list(self.fractions) != sorted(self.fractions):
            raise UserError("fractions must be in ascending order")


@dataclasses.dataclass(frozen=True, eq=False)
class FoundCircuit:
    """What a run found.

    Args:
      units: the edges.
      scores: the score of each edge.
      report: the circuits on held-out prompts.
      figures: the content of report.json.
      lines: the content of summary.txt.
    """

    units: EdgeUnits
    scores: np.ndarray
    report: CircuitReport
    figures: dict[str, Any]
    lines: tuple[str, ...]


def find_circuit(config: FindCircuitConfig, directory: Path | str, *, mesh: Mesh | None = None) -> FoundCircuit:
    """Find a circuit, judge it on held-out prompts and write the run directory.

    Args:
      config: model, prompts, method, sizes.
      directory: the run directory. A run with the same config is written again.
      mesh: the mesh for the model. Prompts are split over its row axes. None: one device.

    Raises:
      UserError: the model, the task, the table or the file cannot be used, or the metric does not tell clean prompts
        from corrupted ones.
    """
    model, tokenizer = load(config.model, mesh=mesh)
    if tokenizer is None:
        raise UserError(f"{config.model} has no tokenizer.json, which is needed to turn the prompts into tokens")
    finding, judging = pairs(config, tokenizer)
    units = EdgeUnits(residual_graph(model), config.ablation)
    with open_run(directory, config) as run, on_mesh(mesh):
        finding, judging = finding.split(), judging.split()
        if config.circuit is not None:
            scores = read_mib(config.circuit, units.graph).scores
            if scores is None:
                raise UserError(f"{config.circuit} has no scores: it marks one circuit, which has no other sizes")
        else:
            scores = find_edges(config.method, model, finding, units, config.options, seed=config.seed)
        report = evaluate(model, judging, units, scores, order=config.order, fractions=config.fractions,
                          seeds=config.random_circuits)  # fmt: skip
        figures = _figures(config, units, scores, report)
        lines = tuple(summary(config, figures))
        ranks = ranked(units, scores, config.order)
        kept = units.pruned(first(ranks, sizes_of(units, [config.size])))[0]
        write_mib(run.directory / "circuit.json", units, scores, kept, d_model=model.config.d_model)
        write_json(run.directory / "report.json", figures)
        atomic_write(run.directory / "circuit.html", _page(config, model, units, scores, ranks, report, figures))
        atomic_write(run.directory / "summary.txt", "\n".join(lines) + "\n")
    return FoundCircuit(units, scores, report, figures, lines)


def pairs(config: FindCircuitConfig, tokenizer: Tokenizer) -> tuple[Contrast, Contrast]:
    """(the pairs for the scores, the held-out pairs): two samples of a task, or the first and last rows of a table."""
    if config.table is None:
        task = find_task(config.task)
        found = [task.sample(tokenizer, n, seed=seed).contrast for n, seed in
                 ((config.prompts, config.seed), (config.held_out, config.seed + 1))]  # fmt: skip
        return found[0], found[1]
    contrast = encode_rows(tokenizer, read_pairs(config.table)).contrast
    rows = contrast.clean.shape[0]
    if rows < config.prompts + config.held_out:
        raise UserError(
            f"{config.table} has {rows} pairs; prompts={config.prompts} and held_out={config.held_out} need "
            f"{config.prompts + config.held_out}"
        )
    return contrast.rows(slice(0, config.prompts)), contrast.rows(slice(rows - config.held_out, rows))


def summary(config: FindCircuitConfig, figures: dict[str, Any]) -> list[str]:
    """The figures of report.json as lines of text."""
    by = f"the scores of {config.circuit}" if config.circuit else config.method
    lines = [
        f"{config.model}, {config.table or config.task}: {by}, order {config.order}, ablation {config.ablation}",
        "metric of {} prompts {mean:.3f} (std {std:.3f})".format("clean", **figures["clean"])
        + ", of {} prompts {mean:.3f} (std {std:.3f})".format("corrupted", **figures["corrupted"])
        + f", {figures['prompts']} pairs",
        "share of edges   edges   faithfulness [95 % interval]   random circuits of equal size",
    ]
    chance = figures["random"]
    for share, size, one, other in zip(
        figures["fractions"], figures["sizes"], figures["faithfulness"], chance["faithfulness"]
    ):
        lines.append(f"{share:>14.3%} {size:>7} {_interval(one):>30} {_interval(other):>30}")
    lines.append(f"CPR {_interval(figures['cpr'])}, random {_interval(chance['cpr'])}   (area under the curve)")
    lines.append(
        f"CMD {_interval(figures['cmd'])}, random {_interval(chance['cmd'])}   (distance from 1; lower is better)"
    )
    if "published" in figures:
        known = figures["published"]
        lines.append(
            f"AUC of nodes against the circuit of {known['source']}: {known['auc']:.3f}, "
            f"chance {_interval(known['chance'])}"
        )
    return lines


def _figures(config: FindCircuitConfig, units: EdgeUnits, scores: np.ndarray, report: CircuitReport) -> dict[str, Any]:
    figures = report.to_json()
    published = None if config.table is not None else find_task(config.task).published
    names = units.graph.source_names
    if published is not None and published.model == config.model and published.nodes() <= set(names):
        known = np.array([name in published.nodes() for name in names])
        found = roc(node_scores(units, scores)[1:], known[1:])  # without the input, which is no part of the question
        figures["published"] = {"source": published.source, "auc": found.auc, "chance": found.chance.to_json()}
    return figures


def _page(
    config: FindCircuitConfig, model: Decoder, units: EdgeUnits, scores: np.ndarray, ranks: np.ndarray,
    report: CircuitReport, figures: dict[str, Any],
) -> str:  # fmt: skip
    rows: list[list[str]] = []
    for part in units.graph.sources:
        rows.append(list(part.names))
    chosen = units.pruned(first(ranks, sizes_of(units, [config.size])))[0]
    order = [i for i in np.argsort(ranks).tolist() if chosen[i]]
    order += [i for i in np.argsort(ranks)[:MOST_EDGES].tolist() if not chosen[i]]
    edges = [_edge(units.names[i], float(scores[i])) for i in order]
    facts = {
        "model": f"{config.model}, {model.config.n_layers} layers",
        "prompts": f"{config.table or config.task}, {config.prompts} for the scores, {config.held_out} held out",
        "method": str(config.circuit) if config.circuit else config.method,
        "edges": f"{len(units):,}",
        "CPR": f"{_interval(figures['cpr'])}; random circuits {_interval(figures['random']['cpr'])}",
        "CMD": f"{_interval(figures['cmd'])}; random circuits {_interval(figures['random']['cmd'])}",
    }
    curve = ScoredCircuit(report.sizes, report.faithfulness().values, report.random_faithfulness().values)
    plot = faithfulness_plot({str(config.circuit or config.method): curve})
    return circuit_page(
        f"{config.table.stem if config.table else config.task} in {config.model}", [*rows, ["logits"]], edges,
        shown=int(chosen.sum()) or 1, facts=facts,
        figures={"Faithfulness on held-out prompts, with 95 % intervals": plot},
    )  # fmt: skip


def _edge(name: str, score: float) -> CircuitEdge:
    source, _, target = name.partition("->")
    node, _, kind = target.partition("<")
    return CircuitEdge(source, node, kind.rstrip(">"), score)


def _interval(one: dict[str, float]) -> str:
    """A figure with its interval. Zero has no sign."""
    value, low, high = (round(one[name], 3) + 0.0 for name in ("value", "low", "high"))
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
