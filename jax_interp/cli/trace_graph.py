"""`jax-interp trace-graph PROMPT`: the attribution graph of a prompt over transcoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.core.terminal import print_text


@dataclass(frozen=True)
class TraceGraph:
    """Trace which features, reconstruction errors and tokens a prediction comes from, and write the graph.

    The directory gets the whole graph, the pruned graph as Neuronpedia's viewer reads it, and a page of it, graph.html,
    which fetches nothing. Ctrl-C ends the search for features; the graph then has those that were finished.
    """

    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT")]
    """The text whose next token is explained."""
    dictionaries: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SOURCE ...")]
    """The transcoders of all MLPs of the model, or one cross-layer transcoder: run directories of train-dictionary,
    folders or files in any format, hf: addresses, or the name of one release."""
    out: Path
    """An empty or missing directory."""
    ids: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ID ...")] = ()
    """The ids of the dictionaries, if --dictionaries is one release."""
    model: str | None = None
    """The model. Default: the model that the dictionaries were trained on."""
    max_features: int | None = 7500
    """The largest number of features in the graph, chosen by influence. "None": all that are active."""
    max_logits: int = 10
    """The largest number of logits."""
    probability: float = 0.95
    """Logits are added until they have this probability together."""
    node_threshold: float = 0.8
    """The share of influence that the nodes of the pruned graph keep."""
    edge_threshold: float = 0.98
    """The share of influence that its edges keep."""
    batch: int = 64
    """The number of targets of one backward pass. Memory grows with it."""
    bos: bool = True
    """Put the document-start token first, where the tokenizer has one. Its features and errors are then left out."""
    scan: str | None = None
    """The name of the set of sources on Neuronpedia. Default: the name of the first dictionary."""
    quiet: bool = False
    """Do not show progress."""


def run(argv: Sequence[str]) -> int:
    """Run `jax-interp trace-graph` with these arguments. Returns the exit code."""
    options = parse(TraceGraph, argv, command="trace-graph")
    from jax_interp.circuits.attribution_graphs import Limits
    from jax_interp.recipes.trace_graph import PAGE, TraceConfig, trace_graph

    limits = Limits(options.max_logits, options.probability, options.max_features, options.batch)
    config = TraceConfig(
        options.dictionaries, options.ids, options.model, options.bos, options.node_threshold, options.edge_threshold,
        options.scan, limits,
    )  # fmt: skip
    found = trace_graph(options.prompt, config, options.out, quiet=options.quiet)
    pruned, graph = found.pruned, found.pruned.graph
    for text, p in zip(graph.logit_texts or (), graph.logit_probabilities):
        print_text(f"logit {text!r}: probability {p:.3f}")
    print_text(f"replacement score {found.scores.replacement:.3f}, completeness score {found.scores.completeness:.3f}")
    print_text(
        f"{graph.n_features:,} of {len(graph.active):,} active features; pruned: {int(pruned.nodes.sum()):,} nodes, "
        f"{int(pruned.edges.sum()):,} edges" + ("; ended early" if found.ended_early else "")
    )
    print_text(f"written to {found.directory}; open {found.directory / PAGE}")
    return 0
