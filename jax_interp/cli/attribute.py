"""`jax-interp attribute`: estimate which units of a model carry a behaviour, and check the estimates by patching."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.cli.mesh_option import MeshOption
from jax_interp.core.terminal import print_text


@dataclass(frozen=True)
class Attribute(MeshOption):
    """Estimate the effect of patching every head, neuron, latent or position from gradients, and check the estimates.

    Prints the check and the largest units. With --out, it also writes a page, heat maps and arrays.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[MODEL]")] = "stdlib-small"
    """A model of the package, a Hugging Face directory, or a name on the Hugging Face hub."""
    task: str = "induction"
    """The task whose prompts are used: induction, docstring, ioi, greater-than, ..."""
    table: Path | None = None
    """A table of prompt pairs in place of a task (CSV, JSON lines or Parquet), with the columns clean, corrupted,
    answer and other. An answer is one token, with its leading space if it has one."""
    units: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ADDRESS ...")] = ("blocks.*.attn.z",)
    """The addresses of the values that are cut into units."""
    per: Annotated[tuple[str, ...], tyro.conf.arg(metavar="AXIS ...")] = ("head", "pos")
    """The axes along which they are cut: head, pos, feature, or another axis of the value."""
    method: Literal["gradient", "ig-inputs", "ig-activations", "atp*"] = "gradient"
    """How effects are estimated."""
    steps: int | None = None
    """The number of gradients of integrated gradients."""
    direction: Literal["noise", "denoise"] = "noise"
    """noise: corrupted values in the clean run. denoise: clean values in the corrupted run."""
    other: Literal["corrupted", "zero"] = "corrupted"
    """What units are patched with."""
    prompts: int = 16
    """The number of pairs of prompts."""
    check: int = 20
    """How many of the largest units, and as many random ones, are patched for real. 0: none."""
    rows: int = 64
    """How many prompts run at once. It bounds the memory."""
    seed: int = 0
    """The seed of the prompts."""
    out: Path | None = None
    """A directory for the page, the heat maps and the arrays."""


def run(argv: Sequence[str]) -> int:
    """Run `jax-interp attribute` with these arguments. Returns the exit code."""
    options = parse(Attribute, argv, command="attribute")
    from jax_interp.circuits.attribution_check import AttributionWarning
    from jax_interp.recipes.attribute import PAGE, AttributeConfig, attribute_units

    config = AttributeConfig(
        options.model, options.task, options.table, options.units, options.per, options.method, options.steps,
        options.direction, options.other, options.prompts, options.check, options.rows, options.seed,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttributionWarning)  # the printed result begins with it
        found = attribute_units(config, options.out, mesh=options.devices())
    print_text(str(found))
    if options.out is not None:
        print_text(f"written to {options.out}; open {options.out / PAGE}")
    return 0
