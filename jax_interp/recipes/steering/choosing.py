"""Which vector is used: every method, token rule and site, measured on validation questions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from jax_interp.core.errors import UserError
from jax_interp.core.estimates import Estimate
from jax_interp.steering.measuring import Batching, Spread, propensities, side_effects, steerability
from jax_interp.steering.questions import Questions
from jax_interp.steering.vector import Steering
from jax_interp.surgery import Model


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One vector and its figures on validation questions.

    Args:
      method: how it was found.
      rule: the token rule.
      site: its address.
      slope: the slopes of the questions, in nats for each unit of strength.
      anti_steerable: the share of questions with a slope below 0.
      kl: KL(unsteered ‖ steered) on neutral text at the largest strength, in nats per token.
      relative_norm: ‖v‖/‖h‖ at the site. NaN for a vector from a file.
    """

    method: str
    rule: str
    site: str
    slope: Spread
    anti_steerable: Estimate
    kl: Spread
    relative_norm: float

    @property
    def name(self) -> str:
        return ", ".join(part for part in (self.method, self.rule, self.site) if part)


@dataclasses.dataclass(frozen=True)
class Judged:
    """On what candidates are judged.

    Args:
      questions: the validation questions.
      neutral: the token ids of neutral texts.
      strengths: the strengths of the slopes.
      placement: the tokens at which a vector acts on questions.
      batching: how rows are put into batches.
    """

    questions: Questions
    neutral: Sequence[Sequence[int]]
    strengths: Sequence[float]
    placement: str
    batching: Batching


def judged(
    model: Model,
    vectors: Sequence[tuple[str, str, str, float, Steering]],
    on: Judged,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Candidate]:
    """The figures of every candidate.

    Args:
      model: the model.
      vectors: (method, rule, site, ‖v‖/‖h‖, steering) of each candidate.
      on: what they are judged on.
      progress: called with a line for each candidate.
    """
    found, largest = [], max(on.strengths)
    for method, rule, site, norm, steering in vectors:
        of = propensities(
            model, on.questions, steering, on.strengths, placement=on.placement, batching=on.batching
        )  # fmt: skip
        own = steerability(of)
        effects = side_effects(model, on.neutral, steering, (largest,), batching=on.batching)
        found.append(Candidate(method, rule, site, own.slope, own.anti_steerable, effects.kl[0], norm))
        progress(f"{found[-1].name}: slope {own.slope.mean}, KL {effects.kl[0].mean} at strength {largest:g}")
    return found


def best(candidates: Sequence[Candidate], largest_kl: float) -> int:
    """The number of the candidate with the largest mean slope, among those that change neutral text little enough.

    Raises:
      UserError: there is none.
    """
    allowed = [i for i, of in enumerate(candidates) if of.kl.mean.value <= largest_kl]
    if not allowed:
        least = min((of.kl.mean.value for of in candidates), default=math.nan)
        raise UserError(
            f"every vector changes neutral text by more than largest_kl={largest_kl:g} nats per token at the largest "
            f"strength; the least change is {least:.3g}. Allow more, or give smaller strengths"
        )
    return max(allowed, key=lambda i: candidates[i].slope.mean.value)
