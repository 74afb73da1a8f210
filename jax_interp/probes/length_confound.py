"""How much of a score is the length of the text.

Long texts have higher maxima, and the classes of a set often differ in length. A probe that reads length looks good on
such a set and is worth nothing on another one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.probes.measures import auroc


@dataclasses.dataclass(frozen=True)
class LengthConfound:
    """What length has to do with a score.

    Args:
      correlation: Spearman's correlation of score and length. None: the score or the length is the same everywhere.
      within_class: the same within each class, averaged with the number of examples. None: as above, in all classes.
      length_auroc: the AUROC of length itself, on the same examples. Below .5: positive texts are shorter.
      bins: the shortest and the longest length of each bin.
      examples: the number of examples in each bin.
      auroc: the AUROC of the score within each bin. None: the bin has one class only.
    """

    correlation: float | None
    within_class: float | None
    length_auroc: float
    bins: tuple[tuple[int, int], ...]
    examples: tuple[int, ...]
    auroc: tuple[float | None, ...]

    @property
    def at_equal_length(self) -> float | None:
        """The AUROC within bins, averaged with the number of examples. None: no bin has both classes."""
        return _mean(self.auroc, self.examples)

    def __str__(self) -> str:
        show = lambda value: "undefined" if value is None else f"{value:.3f}"
        return (
            f"length: correlation with the score {show(self.correlation)}, within classes {show(self.within_class)}; "
            f"AUROC of length {self.length_auroc:.3f}, of the score at equal length {show(self.at_equal_length)}"
        )

    def to_json(self) -> dict[str, Any]:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "at_equal_length": self.at_equal_length}


def length_confound(
    scores: Float[np.ndarray | Array, " example"],
    positive: Bool[np.ndarray, " example"],
    length: Int[np.ndarray, " example"],
    bins: int = 4,
) -> LengthConfound:
    """Compare a score with the number of tokens.

    Args:
      scores: the score of each example.
      positive: whether each example is positive.
      length: the number of tokens of each example.
      bins: the number of bins of about equal size. Equal lengths are never in different bins.

    Raises:
      UserError: a score is NaN, there is one class only, or shapes differ.
    """
    values, truth, length = np.asarray(scores, np.float64), np.asarray(positive, bool), np.asarray(length)
    if length.shape != truth.shape:
        raise UserError(f"{length.size} lengths for {truth.size} examples: give one for each")
    if bins < 1:
        raise UserError(f"bins={bins} must be at least 1")
    of_length = float(auroc(length, truth))
    auroc(values, truth)  # refuses NaN and shapes
    edges = np.unique(np.quantile(length, np.linspace(0, 1, bins + 1)[1:], method="inverted_cdf"))
    of = np.searchsorted(edges, length)
    sides = [of == number for number in range(edges.size) if (of == number).any()]
    both = lambda side: truth[side].any() and not truth[side].all()
    return LengthConfound(
        _spearman(values, length),
        _mean([_spearman(values[side], length[side]) for side in (truth, ~truth)], [truth.sum(), (~truth).sum()]),
        of_length,
        tuple((int(length[side].min()), int(length[side].max())) for side in sides),
        tuple(int(side.sum()) for side in sides),
        tuple(float(auroc(values[side], truth[side])) if both(side) else None for side in sides),
    )


def _spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    from scipy.stats import rankdata  # JAX requires scipy, so it is installed

    ranks = np.stack([rankdata(a), rankdata(b)])
    return float(np.corrcoef(ranks)[0, 1]) if (ranks.std(axis=1) > 0).all() else None


def _mean(values: Sequence[float | None], examples: Sequence[int]) -> float | None:
    """The mean of the values that exist, weighted with the number of examples."""
    known = [(value, n) for value, n in zip(values, examples) if value is not None]
    return sum(value * int(n) for value, n in known) / sum(int(n) for _, n in known) if known else None
