"""The compiled step of anything that is trained, without training it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from jax_interp.core.leaves import flatten
from jax_interp.training import loop
from jax_interp.training.collectives import Collective, collectives


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A compiled step, and the leaves of the state that it gets, by address."""

    compiled: jax.stages.Compiled
    state: dict[str, Any]


class _Found(Exception):
    def __init__(self, step: CompiledStep):
        self.step = step


def compiled_step(train: Callable[[Any], Any], place: Mesh | None) -> CompiledStep:
    """The step that `train(place)` would repeat, compiled for its own arrays."""

    class Loop:
        def __init__(self, state: Any, step: Any, frozen: Any, *rest: Any):
            self.state, self.step, self.frozen = state, step, frozen

        def prepare(self, start: int) -> None:
            pass

        def attempt(self, batch_at: Any, batches: Any, start: int, steps: int) -> Any:
            batch = batch_at(0) if batch_at else next(batches(0)) if batches else np.int32(0)
            compiled = self.step.lower(self.state, batch, *self.frozen).compile()
            raise _Found(CompiledStep(compiled, flatten(self.state)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_Loop", Loop)
        try:
            train(place)
        except _Found as found:
            return found.step
    raise AssertionError("nothing was trained")


def collectives_of(train: Callable[[Any], Any], mesh: Mesh) -> tuple[CompiledStep, list[Collective]]:
    step = compiled_step(train, mesh)
    return step, collectives(step.compiled, mesh)
