"""`CCS`: contrast-consistent search (Burns et al. 2022, Discovering Latent Knowledge, arXiv:2212.03827).

A pair is a statement and its negation, or a question with both answers. The probe's probabilities p₁ and p₂ of the two
should be consistent and confident: mean (p₁ - (1 - p₂))² + mean min(p₁, p₂)². Labels only choose the sign.

The loss does not select knowledge: every feature that differs between the two sides of each pair, such as p₁ = h,
p₂ = 1 - h for any h in {0, 1}, has loss 0 (Farquhar et al. 2023, arXiv:2312.10029). p = ½ everywhere has loss ¼.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jax_interp.core import optimizers
from jax_interp.core.errors import UserError
from jax_interp.probes.class_moments import HIGH
from jax_interp.probes.kind import KINDS, Kind, PairRows
from jax_interp.probes.pair_probe import PairProbe
from jax_interp.probes.pair_sides import PairSides


def ccs_loss(
    first: Float[Array, " pair"], second: Float[Array, " pair"], weight: Float[Array, " pair"] | None = None
) -> Float[Array, ""]:
    """mean (p₁ - (1 - p₂))² + mean min(p₁, p₂)²: consistency and confidence.

    Args:
      first: p₁, the probability that the first example of a pair is of the positive class.
      second: p₂, the same for the second example.
      weight: the share of each pair, with sum 1. None: equal shares.
    """
    each = (first - (1 - second)) ** 2 + jnp.minimum(first, second) ** 2
    return jnp.mean(each) if weight is None else jnp.sum(weight * each)


@KINDS.register
@dataclasses.dataclass(frozen=True)
class CCS(Kind):
    """p = sigmoid(w · x̃ + b) with the smallest `ccs_loss`, by AdamW on all pairs, from several random starts.

    Each side is centred by itself, so the first examples of the pairs need to be of both classes: order pairs by their
    form (statement, negation), not by their truth. The steps have a fixed size, so the result depends on the unit of
    the values; `scale=True` removes this.

    Args:
      scale: divide each column of each side by its standard deviation.
      tries: the number of random starts. The one with the lowest loss is kept.
      steps: the number of steps.
      learning_rate: the learning rate of AdamW.
      weight_decay: the weight decay of AdamW.
    """

    takes: ClassVar[Literal["rows", "pairs", "sequences"]] = "pairs"
    centres_sides: ClassVar[bool] = True

    scale: bool = False
    tries: int = 10
    steps: int = 1000
    learning_rate: float = 1e-3
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if self.tries < 1 or self.steps < 1:
            raise UserError(f"tries={self.tries} and steps={self.steps} must be at least 1")

    def fit(self, data: PairRows, strength: Float[Array, ""] | None, key: Key[Array, ""]) -> PairProbe:
        sides = PairSides.of(data, scaled=self.scale)
        found, losses = jax.vmap(partial(self._search, sides))(jax.random.split(key, self.tries))
        best = jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses))
        w, b = jax.tree.map(lambda a: a[best], found)
        return sides.probe(w, b, data)

    def _search(self, sides: PairSides, key: Key[Array, ""]) -> tuple[tuple[Array, Array], Array]:
        """(w and b, their loss) from one start: uniform in ±1/√d, as a linear layer of PyTorch."""
        of_w, of_b = jax.random.split(key)
        d, dtype = sides.values.shape[-1], sides.values.dtype
        start = tuple(
            jax.random.uniform(of, shape, dtype, -(d**-0.5), d**-0.5) for of, shape in ((of_w, (d,)), (of_b, ()))
        )
        optimizer = optax.adamw(self.learning_rate, weight_decay=self.weight_decay)

        def loss(params: tuple[Array, Array]) -> Array:
            w, b = params
            p = jax.nn.sigmoid(jnp.einsum("spd,d->sp", sides.values, w, precision=HIGH) + b)
            return ccs_loss(p[0], p[1], sides.weight)

        def step(state, _):
            params, optimizer_state = state
            return optimizers.update(optimizer, jax.grad(loss)(params), optimizer_state, params), None

        (end, _), _ = jax.lax.scan(step, (start, optimizers.init(optimizer, start)), length=self.steps)
        return end, loss(end)
