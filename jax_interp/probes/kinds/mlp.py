"""`MLP`: a small network on one vector for each example.

score = relu(... relu(x W₁ + b₁) ...) W + b, with hidden layers of 64 and 32 by default: the sizes of
the harmfulness probe of Zou et al. 2024 (arXiv:2406.04313). For tokens, use `TokenProbe(aggregator, hidden=(64, 32))`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.probes.dense import Dense, forward, initial, squared_weights
from jax_interp.probes.descent import ADAM, Adam
from jax_interp.probes.kind import KINDS, Kind, Rows
from jax_interp.probes.probe import PROBES, Probe
from jax_interp.probes.token_training import (
    CentredTokens,
    balanced,
    centred_rows,
    check_strengths,
    fit_flat_grid,
    l2_factor,
    log_loss,
    mean_one,
)


@PROBES.register
@register_dataclass
@dataclasses.dataclass(frozen=True)
class MLPProbe(Probe):
    """score(x) = layers(x), with a ReLU between them.

    Args:
      layers: the layers. The last one has one output.
      threshold: the score between the classes.
      log_odds: whether the score is meant as the log-odds of the positive class.
    """

    layers: tuple[Dense, ...]
    threshold: Float[Array, ""]
    log_odds: bool = dataclasses.field(default=True, metadata={"static": True})

    def score(self, x: Float[Array, "... d"], read: Bool[Array, "... pos"] | None = None) -> Float[Array, "..."]:
        if read is not None:
            raise UserError("this probe reads one vector at a time: it takes no mask of tokens")
        return forward(self.layers, x)[..., 0]


@KINDS.register
@dataclasses.dataclass(frozen=True)
class MLP(Kind):
    """A small network, trained by Adam on the loss of `token_training`. The problem is not convex: fit several seeds.

    Args:
      hidden: the widths of the hidden layers.
      C: the inverse strengths of the L2 penalty on the weights of all layers; one probe for each.
      class_weight: "balanced" gives both classes the same weight in the loss. None: every example weighs the same.
      adam: how it is trained.
    """

    hidden: tuple[int, ...] = (64, 32)
    C: tuple[float, ...] = (1.0,)
    class_weight: Literal["balanced"] | None = None
    adam: Adam = ADAM

    def __post_init__(self):
        check_strengths(self.C, **{f"hidden[{number}]": width for number, width in enumerate(self.hidden)})

    @property
    def strengths(self) -> tuple[float, ...]:
        return self.C

    def fit(self, data: Rows | CentredTokens, strength: Float[Array, ""] | None, key: Key[Array, ""]) -> MLPProbe:
        if isinstance(data, Rows):
            data = centred_rows(data, data.weight > 0)
        positive, weight = data.y == 1, data.weight
        half_l2 = l2_factor(strength, weight)
        v = mean_one(weight if self.class_weight is None else balanced(weight, positive))
        mean, scale = data.moments()

        def of_raw(layers: tuple[Dense, ...], shift: Array, scale: Array) -> tuple[Dense, ...]:
            return (layers[0].of_raw(shift, scale), *layers[1:])

        def loss(layers: tuple[Dense, ...], rows: Any) -> Float[Array, ""]:
            x, positive, v = rows
            z = forward(of_raw(layers, mean, scale), x[:, 0])[:, 0]
            return log_loss(z, positive, v) + half_l2 * squared_weights(layers)

        start = initial(key, (data.x.shape[-1], *self.hidden, 1), last_is_zero=False)
        layers = of_raw(self.adam.minimise(loss, start, (data.x, positive, v), key), mean, scale)
        layers = of_raw(layers, data.centre, jnp.ones_like(scale))
        return MLPProbe(layers, jnp.zeros((), jnp.float32))

    def fit_grid(self, data: Any, y: Array, weight: Array, strengths: Array | None, keys: Key[Array, " seed"]) -> Probe:
        shared = centred_rows(data, (weight > 0).any(axis=0))
        return fit_flat_grid(self, shared, y, weight, strengths, keys)
