"""What would make a run fit into the memory of its devices: changes that are tried one at a time, by planning each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jax_interp.core.errors import UserError
from jax_interp.recipes.decomposition import DecompositionRunConfig
from jax_interp.recipes.dictionary import DictionaryRunConfig
from jax_interp.recipes.plan import Request, plan_run, planned_run
from jax_interp.recipes.train_lm import LanguageModelConfig
from jax_interp.training.planning.plan import Plan

FACTORS = (2, 4, 8, 16, 32)


@dataclasses.dataclass(frozen=True)
class Remedy:
    """A change after which the run fits.

    Attributes:
      change: the option that makes it, such as "--mesh fsdp=8".
      plan: the plan after the change.
    """

    change: str
    plan: Plan


Change = Callable[[Request, int], tuple[Request, str]]
"""A function from a request and a factor to the changed request, and the option that makes this change."""


def remedies(request: Request) -> list[Remedy]:
    """For each thing that can be changed alone, the smallest change after which the run fits.

    The things are the mesh axes, the batch, gradient accumulation and the buffer. A change that is refused (an axis
    that does not divide a weight) or that does not suffice is left out.

    Args:
      request: a request whose plan does not fit.
    """
    before = _argument_bytes(request)
    found = (_smallest(request, changed, before) for changed in (*_axes(), *_fields(request)))
    return [remedy for remedy in found if remedy is not None]


def _smallest(request: Request, changed: Change, before: int) -> Remedy | None:
    """The smallest of the changes of one kind after which the run fits. `before`: the arguments' bytes without it."""
    available = request.device.memory or math.inf
    for factor in FACTORS:
        try:
            wanted, change = changed(request, factor)
            arguments = _argument_bytes(wanted)
            if arguments < available and (plan := plan_run(wanted)).fits:
                return Remedy(change, plan)
        except UserError:
            continue
        if min(arguments, before) >= available and arguments > 0.99 * before:
            return None  # no factor makes the arguments smaller
    return None


def _axes() -> Iterator[Change]:
    for axis in ("fsdp", "tensor", "data"):

        def more(request: Request, factor: int, axis: str = axis) -> tuple[Request, str]:
            mesh = dict(request.mesh or {})
            mesh[axis] = mesh.get(axis, 1) * factor
            return dataclasses.replace(request, mesh=mesh), f"--mesh {mesh_text(mesh)}"

        yield more


def _fields(request: Request) -> Iterator[Change]:
    config = request.config
    if not isinstance(config, DecompositionRunConfig):

        def less_batch(request: Request, factor: int) -> tuple[Request, str]:
            config = request.config
            assert not isinstance(config, DecompositionRunConfig)
            batch = _part(config.batch, factor)
            return dataclasses.replace(request, config=dataclasses.replace(config, batch=batch)), f"--batch {batch}"

        yield less_batch
    else:

        def less_rows(request: Request, factor: int) -> tuple[Request, str]:
            config = request.config
            assert isinstance(config, DecompositionRunConfig)
            batch = _part(config.decomposition.batch, factor)
            given: Any = config.decomposition
            settings = dataclasses.replace(given, batch=batch)
            changed = dataclasses.replace(request, config=dataclasses.replace(config, decomposition=settings))
            return changed, f"--decomposition.batch {batch}"

        yield less_rows
    if isinstance(config, LanguageModelConfig):

        def in_parts(request: Request, factor: int) -> tuple[Request, str]:
            config = request.config
            assert isinstance(config, LanguageModelConfig)
            parts = config.accumulate * factor
            changed = dataclasses.replace(request, config=dataclasses.replace(config, accumulate=parts))
            return changed, f"--accumulate {parts}"

        yield in_parts
    if isinstance(config, DictionaryRunConfig) and request.what == "training":

        def less_buffer(request: Request, factor: int) -> tuple[Request, str]:
            config = request.config
            assert isinstance(config, DictionaryRunConfig)
            buffer = _part(config.dictionary.buffer, factor)
            settings = dataclasses.replace(config.dictionary, buffer=buffer)
            changed = dataclasses.replace(request, config=dataclasses.replace(config, dictionary=settings))
            return changed, f"--dictionary.buffer {buffer}"

        yield less_buffer


def _part(size: int, factor: int) -> int:
    if size % factor:
        raise UserError(f"{factor} does not divide {size}")
    return size // factor


def _argument_bytes(request: Request) -> int:
    """The bytes of the arguments of a step. This is quick, because nothing is traced but the initial state."""
    return sum(planned_run(request).bytes_by_kind(request.abstract_mesh()).values())


def mesh_text(mesh: Mapping[str, int]) -> str:
    """The sizes of a mesh as `--mesh` takes them."""
    return ",".join(f"{axis}={size}" for axis, size in mesh.items() if size > 1) or "data=1"
