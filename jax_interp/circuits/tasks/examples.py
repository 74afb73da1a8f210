"""`Examples`: prompts of one task, with positions by name, and how a measured value spreads over them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from jax_interp.circuits.contrast import Contrast
from jax_interp.core.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Prompts of one task.

    Args:
      contrast: the tokens of the clean and corrupted prompts, and the metric.
      clean: the texts of the clean prompts.
      corrupted: the texts of the corrupted prompts.
      positions: positions by name, such as "IO" and "end". They count from the first column, padding included.
      factors: what varies between prompts, such as the template: one label for each prompt.
      answers: the ids of the right next token, one for each clean prompt.
    """

    contrast: Contrast
    clean: tuple[str, ...]
    corrupted: tuple[str, ...]
    positions: Mapping[str, Int[np.ndarray, " prompt"]]
    factors: Mapping[str, tuple[str, ...]]
    answers: Int[np.ndarray, " prompt"]

    def __len__(self) -> int:
        return len(self.clean)

    def position(self, name: str) -> Int[np.ndarray, " prompt"]:
        """The position of this name in each prompt. Raises `UserError` if there is none."""
        if name not in self.positions:
            raise UserError(f"there is no position {name!r}; there are {', '.join(self.positions)}")
        return self.positions[name]

    def spread(self, values: Float[np.ndarray, " prompt"] | Sequence[float]) -> Spread:
        """The mean of a value over the prompts, its spread, and what of the spread each factor explains.

        Args:
          values: one number for each prompt.

        Raises:
          UserError: there is not one finite number for each prompt.
        """
        return spread(values, self.factors)


@dataclasses.dataclass(frozen=True)
class Spread:
    """A mean with its spread over prompts.

    Args:
      mean: the mean.
      std: the standard deviation over prompts (n - 1). NaN for one prompt.
      n: the number of prompts.
      least: the lowest value.
      most: the highest value.
      explained: for each factor η², the variance between the means of its groups as a part of the whole variance, from
        0 to 1. With few prompts in each group it is high by chance; `by_chance` is its mean for random groups.
      by_chance: (groups - 1) / (n - 1) for each factor: the expectation of η² if the factor has no effect.
    """

    mean: float
    std: float
    n: int
    least: float
    most: float
    explained: Mapping[str, float]
    by_chance: Mapping[str, float]

    @property
    def standard_error(self) -> float:
        """std / sqrt(n), the standard error of the mean for independent prompts."""
        return self.std / self.n**0.5

    def __str__(self) -> str:
        parts = ", ".join(
            f"{name} {share:.0%} (by chance {self.by_chance[name]:.0%})" for name, share in self.explained.items()
        )
        text = f"{self.mean:.3f} ± {self.standard_error:.3f} (n = {self.n}, std {self.std:.3f}, {self.least:.3f} to "
        return text + f"{self.most:.3f}{'; explained by ' + parts if parts else ''})"


def spread(
    values: Float[np.ndarray, " prompt"] | Sequence[float], factors: Mapping[str, Sequence[str]] | None = None
) -> Spread:
    """The mean of values, their spread, and the part of the variance that each factor explains (η²).

    Args:
      values: one number for each prompt.
      factors: labels by factor, one label for each prompt. A factor with one label is left out.

    Raises:
      UserError: a value is not finite, there is none, or a factor does not have one label for each.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise UserError(f"values of shape {array.shape}: give one finite number for each prompt")
    n, total = len(array), float(((array - array.mean()) ** 2).sum())
    explained, chance = {}, {}
    for name, labels in (factors or {}).items():
        if len(labels) != n:
            raise UserError(f"the factor {name!r} has {len(labels)} labels for {n} prompts")
        kinds, group = np.unique(np.asarray(labels), return_inverse=True)
        if len(kinds) < 2:
            continue
        means = np.bincount(group, array) / np.bincount(group)
        between = float(((means[group] - array.mean()) ** 2).sum())
        explained[name] = between / total if total > 0 else 0.0
        chance[name] = (len(kinds) - 1) / (n - 1)
    std = float(array.std(ddof=1)) if n > 1 else float("nan")
    return Spread(float(array.mean()), std, n, float(array.min()), float(array.max()), explained, chance)
