"""Figures as other libraries define them, to be set beside their numbers and beside nothing else.

Each is computed from the totals of reconstruction.py. The name says what it really is:

    ev_second_moment      1 - E‖x - x̂‖² / (E‖x‖² - (mean_d E[x_d²])²): the squared mean of the wrong moment. Can be
                          above 1 and below what it should be. SAELens up to 6.18 (evals.py), SAEBench 0.6.0
    fve_centred_residual  1 - Σ Var(x - x̂) / Σ Var(x): blind to a constant error. dictionary_learning
    ev_per_token          mean of 1 - ‖x - x̂‖² / ‖x - x̄‖², x̄ of the token's batch: a mean of ratios, ruled by the tokens
                          nearest the mean. SAELens' explained_variance_legacy
    nmse_per_token        mean of ‖x - x̂‖² / ‖x‖². The README of openai/sparse_autoencoder
    l2_loss               mean of ‖x - x̂‖, not squared. dictionary_learning
    gamma_v1              sqrt(E‖x̂‖² / (E‖x‖² - E‖x - x̂‖²)): Rajamanoharan et al. 2024 before its correction (1/√3 for
                          x̂ = x/2; the right γ is 1/2)
    gamma_regression      E[x·x̂ / ‖x‖²]: what v1 said in words, the factor from x to x̂ (S. Marks)
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class Published:
    ev_second_moment: float
    fve_centred_residual: float
    ev_per_token: float
    nmse_per_token: float
    l2_loss: float
    gamma_v1: float
    gamma_regression: float


def published_of(total: dict[str, Any]) -> Published:
    n, d = int(total["tokens"]), len(total["square"])
    second = total["square"].sum() / n
    sse, hat = total["sse"].sum() / n, total["hat_square"] / n
    wrong_variance = second - (second / d) ** 2
    variance = total["centred_square"].sum() / n - ((total["centred"] / n) ** 2).sum()
    residual = sse - ((total["error"] / n) ** 2).sum()
    reduced = second - sse
    return Published(
        ev_second_moment=float(1 - sse / wrong_variance) if wrong_variance else math.nan,
        fve_centred_residual=float(1 - residual / variance) if variance else math.nan,
        ev_per_token=float(1 - total["sse_of_variance"] / n),
        nmse_per_token=float(total["sse_of_square"] / n),
        l2_loss=float(total["error_norm"] / n),
        gamma_v1=math.sqrt(hat / reduced) if reduced > 0 else math.nan,
        gamma_regression=float(total["cross_of_square"] / n),
    )
