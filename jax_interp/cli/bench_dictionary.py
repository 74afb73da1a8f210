"""`jax-interp bench-dictionary SOURCE [ID]`: what the latents of a dictionary are good for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.cli.mesh_option import MeshOption
from jax_interp.core.processes import is_first_process
from jax_interp.core.terminal import print_text


@dataclass(frozen=True)
class BenchDictionary(MeshOption):
    """Benchmark a dictionary: what its latents are good for.

    Every figure stands beside a random dictionary of the same size and L0, principal components and raw values, with an
    interval of 95 %. Probing is the most reliable benchmark, and needs labelled texts: give --probes. Unreliable ones
    are marked with (!).
    """

    dictionary: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A run directory of train-dictionary, a folder or file of a dictionary in any format, the name of a published
    release, or hf:owner/repository/path."""
    id: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[ID]")] = None
    """The id of a dictionary in the release."""
    tasks: tuple[Literal["probing", "absorption", "description-length", "tpp", "scr", "unlearning"], ...] = ()
    """The benchmarks. Default: all for which there is data."""
    probes: str | None = None
    """Labelled texts: a table (.csv, .csv.zst, .jsonl, .parquet), a directory of tables, or "sae-probes" for the 113
    tables of that package (pip install --no-deps sae-probes)."""
    label: str | None = None
    """The column of labels. Default: label or target."""
    spurious: str | None = None
    """A second column of labels, for scr."""
    forget: str | None = None
    """For unlearning: a text to forget, a file or a directory. Its held-out part is measured."""
    retain: str | None = None
    """For unlearning: a text that must still be predicted as well."""
    reseeds: int = 3
    """Random divisions into training and test examples. Each has another random dictionary."""
    data_sets: int = 12
    """Tables for probing, at most. They are evenly spaced in the order of their names."""
    texts: int = 150
    """Texts of each class, at most."""
    words: int = 1000
    """Words of the vocabulary for absorption, at most."""
    ks: tuple[int, ...] = (1, 2, 5, 16)
    """Numbers of latents for probing."""
    pool: Literal["mean", "last"] = "mean"
    """Latents of a text for probing: the mean over its tokens, or those of its last token."""
    text_context: int = 128
    """Tokens of a labelled text that are read, at most."""
    seed: int = 0
    format: str | None = None
    """The format of the files. Default: it is detected."""
    address: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ADDRESS ...")] = ()
    """The address that the dictionary reads. Needed if the files do not say it."""
    writes: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ADDRESS ...")] = ()
    """The address that it writes, if it is another one and the files do not say it."""
    sequences: int | None = None
    """Held-out sequences that L0, the baselines and the description length are measured on."""
    context: int | None = None
    """The number of tokens in these sequences."""
    model: str | None = None
    """A model to use instead of the model that the dictionary was trained on. Needed if the files do not say it."""
    text: str | None = None
    """Another text for these sequences: "stdlib", a UTF-8 file, or a directory of such files."""
    json: Path | None = None
    """A new file for the figures. Default for a run or a dictionary of this package: the next free one of
    benchmark.json, benchmark-2.json, ... in its directory."""
    quiet: bool = False
    """Do not show progress."""


def run(argv: Sequence[str]) -> int:
    """Run `jax-interp bench-dictionary` with these arguments. Returns the exit code."""
    options = parse(BenchDictionary, argv, command="bench-dictionary")
    from jax_interp.recipes.bench_dictionary import BenchConfig, bench_dictionary
    from jax_interp.recipes.evaluate_dictionary import Asked
    from jax_interp.views import tables
    from jax_interp.views.benchmark_table import print_benchmark

    config = BenchConfig(**{field.name: getattr(options, field.name) for field in fields(BenchConfig)})
    asked = Asked(options.model, options.text, options.sequences, options.context, options.address, options.writes)
    quiet = options.quiet or not is_first_process()
    found = bench_dictionary(
        options.dictionary,
        options.id,
        asked=asked,
        format=options.format,
        config=config,
        write_to=options.json,
        progress=(lambda line: None) if quiet else (lambda line: print_text(line, file=sys.stderr)),
        mesh=options.devices(),
    )
    named = tables.reads_and_writes(found.saved.reads(), found.saved.writes)
    print_benchmark(found.figures, title=f"{named} of {found.model}")
    if found.written_to is not None:
        print_text(f"written to {found.written_to}")
    return 0
