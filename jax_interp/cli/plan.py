"""`jax-interp plan CONFIG --mesh ...`: what a run costs, from shapes alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.cli.config_source import take_source
from jax_interp.core.errors import UserError
from jax_interp.core.terminal import print_text
from jax_interp.recipes.decomposition import DecompositionRunConfig
from jax_interp.recipes.dictionary import DictionaryRunConfig
from jax_interp.recipes.train_lm import LanguageModelConfig

if TYPE_CHECKING:
    from jax_interp.recipes.plan import Request


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """The options of all plans."""

    mesh: Annotated[str | None, tyro.conf.arg(metavar="AXIS=SIZE[,...]")] = None
    """The mesh, such as data=8,fsdp=4. It may be larger than this machine. Default: one device."""
    device: str = "h100"
    """a100-40gb, a100, h100, h200, b200, v4, v5e, v5p, v6e; cpu is this machine, whose rates are measured."""
    of: Literal["training", "features", "harvest"] = "training"
    """What is planned: a training step; the pass for the page of features; or the values that a dictionary reads."""
    efficiency: float = 0.5
    """The share of every peak rate that is reached, for the estimate of the time."""
    compile: bool = False
    """Also compile the program for as many simulated devices of this CPU, and show what XLA needs. It takes minutes."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True, kw_only=True)
class PlanDictionary(PlanOptions):
    """Plan a run of train-dictionary: memory, work and time, from shapes. Nothing is loaded, computed or trained.

    The model can be any that the command takes, or a published size: gpt2, pythia-1b, llama-3.1-8b, ... The exit code
    is 0 if the run fits into the memory of the devices, and 1 if it does not.
    """

    config: Annotated[DictionaryRunConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class PlanDecomposition(PlanOptions):
    """Plan a run of decompose: memory, work and time, from shapes. No weights and no text are read; a toy is trained.

    The target can be any that the command takes, or a published size: gpt2, pythia-1b, llama-3.1-8b, ... The exit code
    is 0 if the run fits into the memory of the devices, and 1 if it does not.
    """

    config: Annotated[DecompositionRunConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class PlanLanguageModel(PlanOptions):
    """Plan a run of train-lm: memory, work and time, from shapes. Nothing is loaded, computed or trained.

    The exit code is 0 if the run fits into the memory of the devices, and 1 if it does not.
    """

    config: Annotated[LanguageModelConfig, tyro.conf.arg(name="")]


OPTIONS = {
    DictionaryRunConfig: PlanDictionary,
    DecompositionRunConfig: PlanDecomposition,
    LanguageModelConfig: PlanLanguageModel,
}


def run(argv: Sequence[str]) -> int:
    """Run `jax-interp plan` with these arguments. Returns the exit code: 0 the run fits, 1 it does not."""
    from jax_interp.recipes.plan import find_run, plan_run

    source, rest = take_source(argv)
    if source is None and not any(argument in ("-h", "--help") for argument in rest):
        raise UserError("plan needs a config: a name of a config, a .py file, a config.json or a run directory")
    found = find_run(source or "stdlib_small_topk")
    kind = OPTIONS[type(found.config)]
    options = parse(kind, rest, command="plan", usage="CONFIG", default=kind(config=found.config))
    request = _request(options)
    plan = plan_run(request)
    mended = [] if plan.fits else _remedies(request)
    measured = _compiled(request) if options.compile else None
    if options.json:
        extra = {"remedies": {change: other.to_json() for change, other in mended}}
        print_text(json.dumps(plan.to_json() | extra | ({"compiled": measured} if measured else {}), indent=2))
        return 0 if plan.fits else 1
    from jax_interp.cli.plan_tables import print_compiled, print_plan, print_remedies

    on = "one device" if not options.mesh else options.mesh
    print_plan(plan, title=f"{found.name}, {options.of} on {on} ({plan.device.title})")
    if measured is not None:
        print_compiled(measured, plan)
    if plan.fits:
        return 0
    if mended:
        print_remedies(mended)
    print_text("it does not fit into the memory of a device" + ("" if mended else ", also not with 32 times any axis"))
    return 1


def _request(options: PlanDictionary | PlanDecomposition | PlanLanguageModel) -> Request:
    from jax_interp.recipes.plan import Request
    from jax_interp.training.meshes import mesh_sizes
    from jax_interp.training.planning.accelerators import accelerator

    mesh = None if options.mesh is None else mesh_sizes(options.mesh)
    if mesh is not None and min(mesh.values()) < 1:
        raise UserError(f"mesh {options.mesh}: a plan needs the size of every axis, a positive number")
    if not 0 < options.efficiency <= 1:
        raise UserError(f"efficiency={options.efficiency} is a share of the peak: above 0, at most 1")
    return Request(options.config, mesh, accelerator(options.device), options.of, options.efficiency)


def _remedies(request: Request) -> list:
    from jax_interp.recipes.plan_remedies import remedies

    return [(one.change, one.plan) for one in remedies(request)]


def _compiled(request: Request) -> dict[str, Any]:
    from jax_interp.recipes.plan_compiled import compile_elsewhere

    return compile_elsewhere(request)
