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
    """A compiled step, and the arrays that it gets."""

    compiled: jax.stages.Compiled
    arrays: dict[str, Any]

    def bytes_of(self, *parts: str) -> int:
        """The bytes of all arrays of some parts of the state or the frozen trees, such as "learner.dictionary"."""
        kept = [a for name, a in self.arrays.items() if any(f".{part}." in f".{name}." for part in parts)]
        return sum(int(np.prod(a.shape)) * a.dtype.itemsize for a in kept if hasattr(a.dtype, "itemsize"))


class _Found(Exception):
    def __init__(self, step: CompiledStep):
        self.step = step


def compiled_step(train: Callable[[Any], Any], place: Mesh | None) -> CompiledStep:
    """The step that `train(place)` would repeat, compiled for its own arrays."""

    class Loop:
        def __init__(self, state: Any, step: Any, frozen: Any, *rest: Any):
            self.state, self.step, self.frozen = state, step, frozen

        def run(self, next_batch: Any, start: int, steps: int) -> Any:
            compiled = self.step.lower(self.state, next_batch(start + 1), *self.frozen).compile()
            raise _Found(CompiledStep(compiled, flatten((self.state, self.frozen))))

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
