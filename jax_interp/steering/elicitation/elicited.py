"""`Elicited`: the vectors that a search found, their scores, and the scores of random vectors beside them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.steering.vector import SteeringVector
from jax_interp.surgery.taps import static

Rows = jax.Array | np.ndarray


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Elicited:
    """Vectors found without labels, as additions to one value of a model.

    Args:
      vectors: the vectors. Their norm is the radius of the search.
      scores: the effect of each vector, as the search measures it.
      null: the scores of random vectors of the same norm, by the same measure.
      source: the address that the vectors are added to.
    """

    vectors: Float[Rows, "vector d"]
    scores: Float[Rows, " vector"]
    null: Float[Rows, " draw"]
    source: str = static()

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, number: int) -> SteeringVector:
        """One vector, as a steering. Strength 1 adds it at the norm of the search."""
        if not -len(self) <= number < len(self):
            raise IndexError(f"there is no vector {number}: there are {len(self)}")
        return SteeringVector({self.source: jnp.asarray(self.vectors[number])})

    def ranked(self) -> Elicited:
        """The vectors with the largest score first. NaN comes last."""
        return self.take(np.argsort(-np.nan_to_num(np.asarray(self.scores), nan=-np.inf), kind="stable"))

    def take(self, rows: np.ndarray | list[int]) -> Elicited:
        """Some of the vectors, in this order. The random vectors stay."""
        index = np.arange(len(self))[np.asarray(rows)]
        return dataclasses.replace(self, vectors=self.vectors[index], scores=self.scores[index])

    def distinct(self, cosine: float = 0.9) -> Elicited:
        """The ranked vectors, without a vector that has a better one at a cosine above `cosine`.

        Several starts may end at the same vector.
        """
        if not 0 < cosine <= 1:
            raise UserError(f"cosine={cosine}: give a number above 0 and up to 1")
        ranked, kept = self.ranked(), []
        v = np.asarray(ranked.vectors, np.float64)
        v = v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), np.finfo(np.float64).tiny)
        for number in range(len(v)):
            if all(v[number] @ v[other] <= cosine for other in kept):
                kept.append(number)
        return ranked.take(kept)

    def p_values(self) -> Float[np.ndarray, " vector"]:
        """(1 + the number of random vectors with at least this score) / (1 + the number of random vectors).

        It says that a vector has more effect than a random one. A search always finds such a vector, if there is one.
        It does not say that the effect means something.
        """
        scores, null = np.asarray(self.scores), np.asarray(self.null)
        return (1 + (null[None, :] >= scores[:, None]).sum(axis=1)) / (1 + len(null))

    def lines(self, most: int = 10) -> list[str]:
        """A table: the scores of the best vectors, beside the mean and the largest score of random vectors."""
        ranked, null = self.ranked(), np.asarray(self.null)
        head = [f"{len(self)} vectors of norm {float(jnp.linalg.norm(self.vectors[0])):.4g} at {self.source}"]
        if len(null):
            head.append(f"{len(null)} random vectors: mean score {null.mean():.4g}, largest {null.max():.4g}")
        rows = zip(np.asarray(ranked.scores)[:most], ranked.p_values()[:most])
        return [*head, *(f"{score:12.4g}  p = {p:.3g}" for score, p in rows)]

    def __str__(self) -> str:
        return "\n".join(self.lines())
