"""Figures by the definitions of other libraries. Use them only to compare with the numbers of these libraries."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Self

import numpy as np

from jax_interp.dictionaries.evaluation.reconstruction import variances


@dataclasses.dataclass(frozen=True)
class Published:
    """Figures that published code calls "explained variance", "L2 loss" or "relative reconstruction bias".

    x is the value that the dictionary should write, and x̂ the value that it writes. E is the mean over tokens. A ratio
    that has no denominator (x = 0, or x = x̄) is left out of its mean.
    """

    ev_second_moment: float
    """1 - E‖x - x̂‖² / (E‖x‖² - (mean over columns of E[x_d²])²). It squares the second moment instead of the mean. It
    can be above 1, and below the explained variance. SAELens up to 6.18 (evals.py), SAEBench 0.6.0."""
    fve_centred_residual: float
    """1 - Σ Var(x - x̂) / Σ Var(x). A constant error does not count. dictionary_learning."""
    ev_per_token: float
    """Mean of 1 - ‖x - x̂‖² / ‖x - x̄‖², where x̄ is the mean of the batch. Tokens near the mean count most, because
    this is a mean of ratios. SAELens' explained_variance_legacy."""
    nmse_per_token: float
    """Mean of ‖x - x̂‖² / ‖x‖². The README of openai/sparse_autoencoder."""
    l2_loss: float
    """Mean of ‖x - x̂‖, not squared. dictionary_learning."""
    gamma_v1: float
    """sqrt(E‖x̂‖² / (E‖x‖² - E‖x - x̂‖²)): γ in the first version of Rajamanoharan et al. 2024, which was later
    corrected. For x̂ = x/2 it is 1/√3; the correct γ is 1/2."""
    gamma_regression: float
    """E[x·x̂ / ‖x‖²]: the factor from x to x̂. The first version of that paper describes γ like this (S. Marks)."""

    @classmethod
    def from_sums(cls, total: Mapping[str, np.ndarray]) -> Self:
        """Compute the figures from the sums over batches of reconstruction.py."""
        n, d = int(total["tokens"]), len(total["square"])
        second = total["square"].sum() / n
        sse, hat = total["sse"].sum() / n, total["hat_square"] / n
        wrong_variance = second - (second / d) ** 2
        variance = variances(total).sum() / n
        residual = sse - ((total["error"] / n) ** 2).sum()
        reduced = second - sse
        return cls(
            ev_second_moment=float(1 - sse / wrong_variance) if wrong_variance else math.nan,
            fve_centred_residual=float(1 - residual / variance) if variance else math.nan,
            ev_per_token=1 - _mean(total["sse_of_variance"], total["with_spread"]),
            nmse_per_token=_mean(total["sse_of_square"], total["with_direction"]),
            l2_loss=float(total["error_norm"] / n),
            gamma_v1=math.sqrt(hat / reduced) if reduced > 0 else math.nan,
            gamma_regression=_mean(total["cross_of_square"], total["with_direction"]),
        )


def _mean(total: np.ndarray, count: np.ndarray) -> float:
    return float(total / count) if count else math.nan
