"""The recipe of `trace-graph`: the attribution graph of a prompt, as files, for viewers and as a page."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from jax_interp.analysis.readout import unembedding
from jax_interp.circuits.attribution_graphs import (
    AttributionGraph,
    Error,
    Feature,
    Limits,
    Pruned,
    Scores,
    Token,
    attribution_graph,
    prune,
    scores,
)
from jax_interp.circuits.attribution_graphs.saving import save_attribution_graph
from jax_interp.circuits.attribution_graphs.viewer import write_viewer_graph
from jax_interp.core import config_json
from jax_interp.core.atomic_write import atomic_write, is_taken, make_directory
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import write_json
from jax_interp.dashboards.decoder_directions import logit_lens
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.dictionaries.evaluation.downstream import address_tuple
from jax_interp.dictionaries.formats.norm_weight import read_normalized
from jax_interp.dictionaries.forms.cross_layer import CrossLayer, from_transcoders
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.loading import load_dictionary
from jax_interp.dictionaries.replacement import Replacement, replacement
from jax_interp.dictionaries.storage import Saved
from jax_interp.models import load
from jax_interp.models.decoder import Decoder
from jax_interp.recipes.evaluate_dictionary import check_widths, dictionary_source
from jax_interp.surgery.address import Address
from jax_interp.training.interrupt import stop_requests
from jax_interp.training.progress import progress
from jax_interp.views.attribution_graph import GraphNode, GraphPage, graph_page

PAGE, SUMMARY, SLUG = "graph.html", "summary.json", "graph"
PROMOTED = 8
"""The number of promoted tokens of each feature on the page."""


@dataclasses.dataclass(frozen=True)
class TraceConfig:
    """Which graph is traced, and how much of it is kept."""

    dictionaries: tuple[str, ...]
    """The transcoders of all MLPs, or one cross-layer transcoder: run directories, folders, hub addresses, or one
    release."""
    ids: tuple[str, ...] = ()
    """The ids of the dictionaries, if `dictionaries` is one release."""
    model: str | None = None
    """The model. None: the one that the dictionaries were trained on."""
    bos: bool = True
    """Put the document-start token first, where the tokenizer has one. Its position then has no features and errors."""
    node_threshold: float = 0.8
    """The share of influence that the kept nodes have."""
    edge_threshold: float = 0.98
    """The share of influence that the kept edges have."""
    scan: str | None = None
    """The name of the dictionaries' set of sources on Neuronpedia. None: the name of the first dictionary."""
    limits: Limits = dataclasses.field(default_factory=Limits)
    """How large the graph is."""

    def __post_init__(self) -> None:
        for name in ("node_threshold", "edge_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)} must be from 0 to 1")


@dataclasses.dataclass(frozen=True)
class Traced:
    """A traced graph and where it is."""

    pruned: Pruned
    scores: Scores
    directory: Path
    ended_early: bool


def trace_graph(prompt: str, config: TraceConfig, out: Path | str, *, quiet: bool = False) -> Traced:
    """Trace the attribution graph of a prompt and write it to a directory.

    It holds the whole graph (`attribution_graph.json` and `.safetensors`), the pruned one for Neuronpedia's viewer
    (`viewer/`), a page of the pruned one (`graph.html`) and `summary.json`. The first Ctrl-C ends the search for
    features: the graph then has those that were finished.

    Args:
      prompt: the text.
      config: what is traced.
      out: a directory that is empty or does not exist.
      quiet: show no progress.

    Raises:
      UserError: a dictionary is no transcoder, they do not cover the MLPs of the model, they belong to different
        models, the prompt has no token, or the directory has files.
    """
    directory = Path(out)
    if is_taken(directory):
        raise UserError(f"{directory} is not an empty directory: give another one")
    saved, name = opened_dictionaries(config)
    model, tokenizer = load(name)
    if tokenizer is None:
        raise UserError(f"{name} has no tokenizer, which the prompt needs")
    saved = [read_normalized(one, model) if one.normalized is not None else one for one in saved]
    for one in saved:
        check_widths(model, one, name)
    local = joined(model, saved)
    tokens = np.asarray(tokenizer.encode(prompt, bos=config.bos), np.int32)
    if not len(tokens):
        raise UserError("the prompt has no token")
    limits = config.limits
    if config.bos and tokens[0] == tokenizer.bos_id:
        limits = dataclasses.replace(limits, without_nodes=tuple(sorted({0, *limits.without_nodes})))
    graph, ended = _traced(local, tokens, limits, quiet)
    graph = graph.with_texts(tokenizer.texts(tokens.tolist()), tokenizer.texts(graph.logit_tokens.tolist()))
    pruned, quality = prune(graph, config.node_threshold, config.edge_threshold), scores(graph)
    make_directory(directory)
    save_attribution_graph(directory, graph)
    scan = config.scan or Path(config.dictionaries[0]).name
    write_viewer_graph(pruned, directory / "viewer", slug=SLUG, scan=scan, prompt=prompt)
    page = page_of(pruned, quality, local, tokenizer, prompt, name)
    atomic_write(directory / PAGE, graph_page(page))
    write_json(directory / SUMMARY, _summary(pruned, quality, prompt, name, config, ended))
    return Traced(pruned, quality, directory, ended)


def opened_dictionaries(config: TraceConfig) -> tuple[list[Saved], str]:
    """(the dictionaries, the name of their model)."""
    if not config.dictionaries:
        raise UserError("give the transcoders of all MLPs, or one cross-layer transcoder (--dictionaries ...)")
    if config.ids and len(config.dictionaries) > 1:
        raise UserError("--ids are for one release: give its name alone as --dictionaries")
    pairs = [(source, one) for source in config.dictionaries for one in config.ids or (None,)]
    saved = [load_dictionary(dictionary_source(source), id) for source, id in pairs]
    names = {config.model} if config.model else {one.model_name() for one in saved}
    if len(names) > 1:
        raise UserError(f"the dictionaries belong to different models, {' and '.join(sorted(map(str, names)))}")
    return saved, str(names.pop())


def joined(model: Decoder, saved: list[Saved]) -> Replacement:
    """The model with all dictionaries, in the order of the layers."""
    reads: list[tuple[str, ...]] = []
    writes: list[tuple[str, ...]] = []
    transcoders: list[Any] = []
    for one in saved:
        if one.writes is None or not isinstance(one.dictionary, (Dictionary, CrossLayer)):
            raise UserError(
                f"the dictionary that reads {one.address} is no transcoder: attribution graphs need dictionaries that "
                "read the input of an MLP and write its output"
            )
        if isinstance(one.dictionary, CrossLayer) and len(saved) > 1:
            raise UserError("a cross-layer transcoder covers all MLPs: give it alone")
        reads.append(address_tuple(one.reads()))
        writes.append(address_tuple(one.writes))
        transcoders.append(one.dictionary)
    if len(saved) == 1 and isinstance(transcoders[0], CrossLayer):
        return replacement(model, reads[0], writes[0], transcoders[0])
    order = sorted(range(len(saved)), key=lambda i: Address.parse(writes[i][0]).resolve(model.config.n_layers) or ())
    dictionary = from_transcoders([transcoders[i] for i in order])
    return replacement(model, [reads[i][0] for i in order], [writes[i][0] for i in order], dictionary)


def page_of(
    pruned: Pruned, quality: Scores, local: Replacement, tokenizer: Tokenizer, prompt: str, name: str
) -> GraphPage:
    """The content of the page of a pruned graph."""
    graph = pruned.graph
    texts = tokenizer.strings(graph.tokens.tolist())
    numbers = np.flatnonzero(pruned.nodes).tolist()
    place = {number: i for i, number in enumerate(numbers)}
    promoted = _promoted([graph.node(i) for i in numbers if i < graph.n_features], local, tokenizer)
    nodes = [_page_node(pruned, number, texts, tokenizer, promoted) for number in numbers]
    rows, columns = np.nonzero(pruned.edges)
    target_numbers = np.r_[0 : graph.n_features, graph.logit_nodes.start : graph.n_nodes][rows]
    facts = {
        "replacement score": f"{quality.replacement:.3f}",
        "completeness score": f"{quality.completeness:.3f}",
        "nodes kept": f"{len(numbers):,} of {graph.n_nodes:,}",
        "edges kept": f"{len(rows):,} of {np.count_nonzero(graph.weights):,}",
        "active features that are nodes": f"{graph.n_features:,} of {len(graph.active):,}",
    }
    return GraphPage(
        title=prompt,
        tokens=texts,
        rows=["tokens", *(f"layer {i}" for i in range(graph.n_layers)), "logits"],
        nodes=nodes,
        source=np.asarray([place[i] for i in columns.tolist()], np.int64),
        target=np.asarray([place[i] for i in target_numbers.tolist()], np.int64),
        weight=graph.weights[rows, columns],
        facts=facts,
        description=f"{name}: direct effects of features, reconstruction errors and tokens on features and logits. "
        "Attention patterns and norm scales are those of this prompt.",
    )


def _page_node(
    pruned: Pruned, number: int, texts: list[str], tokenizer: Tokenizer, promoted: dict[Feature, list]
) -> GraphNode:
    graph, node = pruned.graph, pruned.graph.node(number)
    facts = {"influence": f"within the first {100 * pruned.cumulative[number]:.1f} %"}
    if isinstance(node, Feature):
        facts = {"token": texts[node.pos], "activation": f"{float(graph.activation[number]):.4g}", **facts}
        label = f"layer {node.layer}, feature {node.feature} at {texts[node.pos]} ({node.pos})"
        return GraphNode("feature", node.pos, node.layer + 1, label, facts, promoted[node])
    if isinstance(node, Error):
        label = f"layer {node.layer}, error at {texts[node.pos]} ({node.pos})"
        return GraphNode("error", node.pos, node.layer + 1, label, facts)
    if isinstance(node, Token):
        return GraphNode("token", node.pos, 0, f"token {texts[node.pos]} ({node.pos})", facts)
    i = number - graph.logit_nodes.start
    text, p = tokenizer.strings([node.token])[0], float(graph.logit_probabilities[i])
    facts = {"probability": f"{p:.4f}", "logit minus mean": f"{float(graph.values[graph.n_features + i]):.4g}"}
    return GraphNode("logit", len(graph.tokens) - 1, graph.n_layers + 1, f"logit {text} (p = {p:.3f})", facts)


def _promoted(features: list[Any], local: Replacement, tokenizer: Tokenizer) -> dict[Feature, list]:
    """The tokens that each feature raises most if all that it writes goes straight to the unembedding."""
    if not features:
        return {}
    sources = local.dictionary.sources
    directions = np.stack([np.asarray(sources[f.layer].W_dec[f.feature].sum(axis=0), np.float32) for f in features])
    high, _, _ = logit_lens(directions, None, unembedding(local.model), PROMOTED, 2)  # type: ignore[arg-type]
    strings = [tokenizer.strings(row) for row in np.asarray(high.tokens).tolist()]
    return {f: list(zip(row, map(float, amounts))) for f, row, amounts in zip(features, strings, high.effects)}


def _traced(local: Replacement, tokens: np.ndarray, limits: Limits, quiet: bool) -> tuple[AttributionGraph, bool]:
    """(the graph, whether Ctrl-C ended it)."""
    view = None
    with stop_requests() as stop:

        def show(done: int, total: int) -> bool:
            nonlocal view
            view = view or progress("trace", 0, total, (), quiet=quiet)
            view.step(done)
            return stop.signum is not None

        try:
            graph = attribution_graph(local, tokens, limits, progress=show)
        finally:
            if view is not None:
                view.close()
    return graph, stop.signum is not None


def _summary(
    pruned: Pruned, quality: Scores, prompt: str, name: str, config: TraceConfig, ended: bool
) -> dict[str, Any]:
    graph = pruned.graph
    logits = [
        {"token": text, "id": int(i), "probability": float(p)}
        for text, i, p in zip(graph.logit_texts or (), graph.logit_tokens, graph.logit_probabilities)
    ]
    kept = pruned.nodes[: graph.n_features]
    return {
        "prompt": prompt,
        "model": name,
        "replacement_score": quality.replacement if np.isfinite(quality.replacement) else None,
        "completeness_score": quality.completeness if np.isfinite(quality.completeness) else None,
        "logits": logits,
        "active_features": len(graph.active),
        "features": graph.n_features,
        "ended_early": ended,
        "kept": {
            "features": int(kept.sum()),
            "errors": int(pruned.nodes[graph.error_nodes].sum()),
            "nodes": int(pruned.nodes.sum()),
            "edges": int(pruned.edges.sum()),
        },
        "config": config_json.to_json(config),
    }
