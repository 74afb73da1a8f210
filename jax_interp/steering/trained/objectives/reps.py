"""RePS: reference-free preference steering, in both directions (Wu et al. 2025, arXiv:2505.20809).

    Δ⁺ = β⁺ log p(y_c | x; steered)/|y_c| - log p(y | x; steered)/|y|      β⁺ = max(log p(y|x) - log p(y_c|x), 1)
    Δ⁻ = β⁻ log p(y | x; removed)/|y| - log p(y_c | x; removed)/|y_c|      β⁻ = max(log p(y_c|x) - log p(y|x), 1)
    loss = - log σ(Δ⁺) - log σ(Δ⁻), averaged over both terms and the pairs

y_c has the concept and y has not. p without an intervention is the model itself; β has no gradient. "Removed" is the
model from which the positive component along the vector is removed, or the model steered with negative strengths.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.steering.trained.likelihood import Steered, joined
from jax_interp.steering.trained.objectives.objective import OBJECTIVES, Batch, Objective, check_factors, sampled


@OBJECTIVES.register
@dataclasses.dataclass(frozen=True)
class RePS(Objective):
    """RePS on pairs of completions. Both completions of a pair get the same strength; the published code draws two."""

    factors: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    """The strengths in training. Each pair gets one of them at random. They define what strength 1 is."""
    suppress: Literal["remove", "negative"] = "remove"
    """How the concept is suppressed in Δ⁻. "remove" needs a method with a vector. "negative": strength -f."""
    normalise: Literal["completion", "text"] = "completion"
    """What |y| counts: the tokens of the completion, as in the paper, or prompt and completion, as in the published
    code."""

    pairs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_factors(self.factors)

    def loss(
        self, steered: Steered, batch: Batch, progress: Float[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Any]]:
        if batch.other is None or batch.reference is None:
            raise UserError("RePS needs pairs of completions: give Questions")
        rows = len(batch.draws)
        texts = joined(batch.wanted, batch.other, batch.wanted, batch.other)
        factor = sampled(self.factors, batch.draws)
        removes = self.suppress == "remove"
        strength = jnp.concatenate([factor, factor, *([jnp.zeros_like(factor)] * 2 if removes else [-factor] * 2)])
        removed = jnp.arange(4 * rows) >= 2 * rows if removes else None
        found = steered.likelihood(texts, strength, removed)
        lengths = found.count if self.normalise == "completion" else found.length
        with_concept, without, suppressed_with, suppressed_without = (
            (found.log_p[i * rows : (i + 1) * rows], lengths[i * rows : (i + 1) * rows]) for i in range(4)
        )
        log_odds = batch.reference[:, 0] - batch.reference[:, 1]  # log p(y_c|x) - log p(y|x)
        promote = preference(with_concept, without, -log_odds)
        suppress = preference(suppressed_without, suppressed_with, log_odds)
        loss = -0.5 * jnp.mean(jax.nn.log_sigmoid(promote) + jax.nn.log_sigmoid(suppress))
        return loss, {"promoted": jnp.mean(promote > 0), "suppressed": jnp.mean(suppress > 0)}


Side = tuple[Float[Array, " row"], Float[Array, " row"]]
"""log p of each completion, and the number of tokens that it is divided by."""


def preference(winning: Side, losing: Side, surprise: Float[Array, " row"]) -> Float[Array, " row"]:
    """Δ: the difference of the mean log probabilities, the winning one times max(surprise, 1).

    Args:
      winning: the completion that should become likely.
      losing: the other completion.
      surprise: log p(losing) - log p(winning) of the model without steering.
    """
    weight = jax.lax.stop_gradient(jnp.maximum(surprise, 1.0))
    return weight * winning[0] / winning[1] - losing[0] / losing[1]
