"""`Factors`: what deep causal transcoding found: input directions, what they write, and their weights."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.steering.elicitation.elicited import Elicited, Rows
from jax_interp.surgery.taps import static


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Factors:
    """Factors of the map from a bias at one value to the change of a later value.

    Args:
      inputs: the input directions v, of norm 1.
      outputs: the output directions u, of norm 1.
      weights: the weights: singular values (linear), λ (quadratic) or α (exponential).
      scores: what the factors are ranked by: the weights, or α² for exponential ones.
      changes: Δ(R v), the mean change of the target for each factor.
      null: the scores of random directions. Their output direction is that of their own effect.
      null_changes: Δ(R v) of the random directions.
      radius: R, the norm at which the vectors are used.
      source: the address of the bias.
      target: the address of the change.
    """

    inputs: Float[Rows, "factor d"]
    outputs: Float[Rows, "factor d_target"]
    weights: Float[Rows, " factor"]
    scores: Float[Rows, " factor"]
    changes: Float[Rows, "factor d_target"]
    null: Float[Rows, " draw"]
    null_changes: Float[Rows, "draw d_target"]
    radius: float
    source: str = static()
    target: str = static()

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def elicited(self) -> Elicited:
        """The vectors R v with their scores, as steering vectors."""
        return Elicited(self.inputs * np.float32(self.radius), self.scores, self.null, self.source)

    def towards(self, direction: Float[Rows, " d_target"]) -> Elicited:
        """The vectors R v, scored by how far they move the target along a direction: direction · Δ(R v).

        Args:
          direction: a direction of the target, such as the difference of two means. Its norm counts.
        """
        direction = np.asarray(direction, np.float32)
        if direction.shape != (width := self.changes.shape[-1],):
            raise UserError(f"the direction has shape {direction.shape}, and {self.target} has {width} entries")
        scores = lambda changes: np.asarray(changes) @ direction
        return dataclasses.replace(self.elicited, scores=scores(self.changes), null=scores(self.null_changes)).ranked()

    def ranked(self) -> Factors:
        """The factors with the largest score first."""
        order = np.argsort(-np.nan_to_num(np.asarray(self.scores), nan=-np.inf), kind="stable")
        names = ("inputs", "outputs", "weights", "scores", "changes")
        return dataclasses.replace(self, **{name: getattr(self, name)[order] for name in names})
