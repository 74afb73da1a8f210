"""`Effects`: what a sweep of interventions does to a metric, for every cell and prompt."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from jax_interp.circuits.contrast import Direction, normalised
from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled


@dataclasses.dataclass(frozen=True)
class Effects:
    """The metric under every intervention of a sweep, and its baselines.

    Args:
      values: the metric. The last axis is "prompt", and the other axes are those of the sweep.
      clean: the metric of each clean prompt without an intervention.
      corrupted: the same for the corrupted prompts.
      direction: denoise: the interventions act in the corrupted run. noise: they act in the clean run.

    Example:
        effects = patch(model, contrast, "resid_pre")
        effects.normalised()                  # [layer, pos]: 0 is the corrupted run, 1 the clean run
        effects.standard_error()              # of these numbers, over prompts
        effects.change().mean("prompt")       # metric minus the metric of the run without the intervention
    """

    values: Labelled
    clean: Float[np.ndarray, " prompt"]
    corrupted: Float[np.ndarray, " prompt"]
    direction: Direction

    def __post_init__(self):
        prompts = self.values.shape[-1:]
        if list(self.values.axes)[-1:] != ["prompt"] or not prompts == self.clean.shape == self.corrupted.shape:
            raise UserError(f"{self.values.name}: the last axis is not the prompts of the baselines")

    @property
    def prompts(self) -> int:
        """The number of prompts."""
        return len(self.clean)

    def mean(self) -> Labelled:
        """The metric, averaged over prompts."""
        return self.values.mean("prompt")

    def std(self) -> Labelled:
        """The standard deviation of the metric over prompts (with n - 1); NaN for one prompt."""
        if self.prompts < 2:
            return _like(self.mean(), np.full(self.values.shape[:-1], np.nan))
        return self.values.std("prompt")

    def change(self) -> Labelled:
        """The metric of each prompt minus its metric without the intervention."""
        base = self.corrupted if self.direction == "denoise" else self.clean
        return _like(self.values, self.values.values - base, f"change of {self.values.name}")

    def normalised(self) -> Labelled:
        """(m - m_corrupted) / (m_clean - m_corrupted) of the means over prompts (`contrast.normalised`).

        0 is the corrupted run and 1 the clean run, in both directions. NaN if the two runs do not differ.
        """
        means = np.asarray(self.mean().values, np.float64)
        clean, corrupted = (np.mean(each, dtype=np.float64) for each in (self.clean, self.corrupted))
        return _like(self.mean(), _normalised(means, clean, corrupted), f"normalised {self.values.name}")

    def standard_error(self) -> Labelled:
        """The standard error of `normalised` over prompts, by the jackknife; NaN for one prompt.

        Each prompt is left out once, from the effects and from both baselines.
        """
        n, values = self.prompts, np.asarray(self.values.values, np.float64)
        if n < 2:
            return _like(self.mean(), np.full(values.shape[:-1], np.nan))
        without = lambda x: (np.sum(x, axis=-1, keepdims=True, dtype=np.float64) - x) / (n - 1)
        left_out = _normalised(without(values), without(self.clean), without(self.corrupted))
        variance = (n - 1) / n * np.sum((left_out - left_out.mean(-1, keepdims=True)) ** 2, axis=-1)
        return _like(self.mean(), np.sqrt(variance), f"standard error of {self.values.name}")


def _normalised(value: np.ndarray, clean: Any, corrupted: Any) -> np.ndarray:
    # NumPy's float64 until the differences are taken: a small span must not lose its digits.
    terms: list[Any] = [value, np.broadcast_to(clean, value.shape), np.broadcast_to(corrupted, value.shape)]
    return np.asarray(normalised(*terms))


def _like(old: Labelled, values: np.ndarray, name: str | None = None) -> Labelled:
    return Labelled(values, old.axes, old.name if name is None else name)
