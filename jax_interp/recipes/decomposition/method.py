"""The parts of a run that differ between decomposition methods: training, saving, measuring and showing."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
from jaxtyping import Array, Key, PyTree

from jax_interp.core.errors import UserError
from jax_interp.core.registry import Registry
from jax_interp.decomposition.config import MethodConfig
from jax_interp.decomposition.top_components import Batches
from jax_interp.surgery import Model
from jax_interp.training import Log, Place, RunTarget
from jax_interp.training.planning.planned import PlannedStep

if TYPE_CHECKING:
    from jax_interp.recipes.decomposition.config import DecompositionRunConfig, PageOptions

Settings = TypeVar("Settings", bound=MethodConfig)
Decomposition = TypeVar("Decomposition", bound=PyTree)


@dataclass(frozen=True)
class HeldOut:
    """The data that is searched for the components on the page.

    Args:
      batches: pairs of inputs and a mask of the rows that count.
      strings: for a language model, maps token ids to strings; None for a toy.
    """

    batches: Batches
    strings: Callable[[Sequence[int]], list[str]] | None = None


@dataclass(frozen=True)
class Inputs:
    """The target and its data.

    Args:
      model: the target.
      held_out: `held_out(rows)` returns inputs and labels. Labels are None for a toy.
      for_page: `for_page(sequences)` returns the data for the page.
      fingerprint: the fingerprint of the loaded weights and text.
      sample: for a toy, `sample(key)` returns a batch to train on.
      batch_at: for a language model, `batch_at(step)` returns a batch to train on.
      text_tokens: for a language model, the number of tokens of the text that batches are taken from.
    """

    model: Model
    held_out: Callable[[int], tuple[Array, Array | None]]
    for_page: Callable[[int], HeldOut]
    fingerprint: Mapping[str, str]
    sample: Callable[[Key[Array, ""]], Array] | None = None
    batch_at: Callable[[int], Array | np.ndarray] | None = None
    text_tokens: int | None = None


class RunMethod(abc.ABC, Generic[Settings, Decomposition]):
    """How runs with one kind of config are trained, saved, measured and shown.

    Attributes:
      settings: the class of the method's config, `DecompositionRunConfig.decomposition`.
      figures: the entries of `evaluation.json` that the page needs.
    """

    settings: ClassVar[type[MethodConfig]]
    figures: ClassVar[tuple[str, ...]]

    def check_config(self, config: DecompositionRunConfig) -> None:
        """Raises UserError if other fields of the run's config do not fit this method."""
        return

    @abc.abstractmethod
    def check_inputs(self, settings: Settings, inputs: Inputs) -> None:
        """Raises UserError if the method cannot decompose this target. Only shapes are computed."""

    @abc.abstractmethod
    def train(
        self,
        settings: Settings,
        config: DecompositionRunConfig,
        inputs: Inputs,
        *,
        run: RunTarget,
        place: Place,
        log: Log,
    ) -> Decomposition:
        """Train in a run directory, from its last checkpoint if it has one. `settings` is `config.decomposition`."""

    @abc.abstractmethod
    def planned(
        self,
        settings: Settings,
        model: Model,
        example: PyTree,
        tokens: int,
        sample: Callable[[Key[Array, ""]], Array] | None = None,
    ) -> PlannedStep:
        """The training step by shapes, as `Trainer.planned` makes it."""

    @abc.abstractmethod
    def save(self, path: Path, trained: Decomposition, settings: Settings) -> None:
        """Write the trained decomposition to one file."""

    @abc.abstractmethod
    def load(self, path: Path, target: Model) -> Decomposition:
        """Load the decomposition that `save` wrote."""

    @abc.abstractmethod
    def measure(
        self, settings: Settings, config: DecompositionRunConfig, trained: Decomposition, inputs: Inputs
    ) -> dict[str, Any]:
        """All figures, as JSON values. `settings` is `config.decomposition`."""

    def component_page(
        self, config: DecompositionRunConfig, directory: Path, trained: Decomposition, held_out: HeldOut
    ) -> Path | None:
        """Write a page of the components of a language model, where the method has one."""
        return None

    @abc.abstractmethod
    def page(
        self,
        result: Mapping[str, Any],
        records: Sequence[Mapping[str, Any]],
        name: str,
        trained: Decomposition,
        held_out: HeldOut,
        options: PageOptions,
    ) -> str:
        """The page as HTML, from the figures and the metrics log."""


RUN_METHODS: Registry[RunMethod[Any, Any]] = Registry("decomposition method", RunMethod)


def method_for(settings: MethodConfig) -> RunMethod[Any, Any]:
    """The method that runs a config. Raises UserError if there is no registered method for it."""
    for method in RUN_METHODS:
        if isinstance(settings, method.settings):
            return method()
    known = ", ".join(method.settings.__name__ for method in RUN_METHODS)
    raise UserError(f"decompose cannot run a {type(settings).__name__}; it runs {known}")
