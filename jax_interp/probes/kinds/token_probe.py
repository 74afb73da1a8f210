"""`TokenProbe`: a probe on tokens, and an aggregator that makes one score of a text.

fit_probes(TokenProbe(Max()), sequences)                       through the aggregator, from the labels of texts
fit_probes(TokenProbe(Mean(), train_on="tokens"), sequences)     from the labels of tokens

Training through the aggregator: McKenzie et al. 2025 (arXiv:2506.10805). Training on tokens: Heimersheim 2025, "Try
training token-level probes", reports that it does better than training on means, on whole statements too, in
distribution.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.probes.aggregated import AggregatedProbe
from jax_interp.probes.aggregators import MEAN, Aggregator
from jax_interp.probes.dense import Dense, initial, squared_weights
from jax_interp.probes.descent import ADAM, LBFGS, Adam, Loss
from jax_interp.probes.kind import KINDS
from jax_interp.probes.probe import Probe
from jax_interp.probes.thresholds import best_threshold
from jax_interp.probes.token_training import (
    CentredTokens,
    SequenceKind,
    balanced,
    check_strengths,
    l2_factor,
    log_loss,
    mean_one,
    over_examples,
)


@KINDS.register
@dataclasses.dataclass(frozen=True)
class TokenProbe(SequenceKind):
    """Readings of tokens and an aggregator. The loss is that of `token_training`.

    The rows of the loss are texts, scored through the aggregator, or tokens, if `train_on` is "tokens". A convex
    problem (linear readings, trained on tokens or through the mean or the last token) is solved by L-BFGS: its optimum
    does not depend on the seed. The others are trained by Adam. Readings begin equal for all tokens, unless the
    aggregator's are interchangeable. So the seed matters only there, for hidden layers, and for batches.

    The threshold is 0, where the log-odds change sign. With train_on="tokens" the score of a text is not its log-odds:
    there it is the threshold with the highest balanced accuracy on the training texts.

    Memory: one copy of the activations of a site, and for each probe that is trained beside others (strengths, seeds,
    splits, labels) the readings of all tokens, and the values of hidden layers; `at_once` bounds the number of texts.

    Args:
      aggregator: how the readings of the tokens become one score.
      train_on: whose labels are learned: those of the examples, or those of the tokens (`token_labels` of the data).
      C: the inverse strengths of the L2 penalty; one probe for each.
      class_weight: "balanced" gives both classes the same weight in the loss. None: every row weighs the same.
      hidden: the widths of hidden layers between the activation and the readings. (): linear readings.
      adam: how problems that are not convex are trained.
      at_once: the number of texts that are read at a time. None: all.
    """

    aggregator: Aggregator = MEAN
    train_on: Literal["examples", "tokens"] = "examples"
    C: tuple[float, ...] = (1.0,)
    class_weight: Literal["balanced"] | None = None
    hidden: tuple[int, ...] = ()
    adam: Adam = ADAM
    at_once: int | None = None

    def __post_init__(self):
        widths = {f"hidden[{number}]": width for number, width in enumerate(self.hidden)}
        check_strengths(self.C, at_once=self.at_once, **widths)
        if self.train_on == "tokens" and self.aggregator.readings > 1:
            raise UserError(
                f"{type(self.aggregator).__name__} takes {self.aggregator.readings} readings of a token, and a label "
                "is for one: train on examples, or choose another aggregator"
            )

    @property
    def strengths(self) -> tuple[float, ...]:
        return self.C

    def check(self, on: Any, splits: Bool[np.ndarray, "split example"], own_labels: bool) -> None:
        if self.train_on == "examples":
            return
        labels = on.data.token_labels
        if labels is None:
            raise UserError(f"{on.data.name} has no labels of tokens: give token_labels, or train on examples")
        if not own_labels:
            raise UserError(
                "this probe learns from the labels of tokens, and the labels that were given are those of examples: "
                "change token_labels instead (for shuffled labels, shuffle them)"
            )
        for number, split in enumerate(splits):
            found = set(np.unique(labels[split][on.read[split]])) - {-1}
            if found != {0, 1}:
                raise UserError(
                    f"the tokens that are read in the training part of split {number} have the labels "
                    f"{sorted(map(int, found))}: there must be 0 and 1 (and -1 for tokens without a label)"
                )

    def fit_tokens(self, data: CentredTokens, strength: Float[Array, ""] | None, key: Key[Array, ""]) -> Probe:
        on_tokens = self.train_on == "tokens"
        positive, weight = self._rows(data)
        half_l2 = l2_factor(strength, weight)
        v = mean_one(weight if self.class_weight is None else balanced(weight, positive))
        mean, scale = data.moments()
        zero = jnp.zeros((), jnp.float32)

        def probe_of(params: _Params) -> AggregatedProbe:
            first, *others = params[0]
            layers = (first.of_raw(mean, scale), *others)
            return AggregatedProbe(layers, params[1], zero, self.aggregator, log_odds=not on_tokens)

        def loss(params: _Params, rows: Any) -> Float[Array, ""]:
            x, read, positive, v = rows
            probe = probe_of(params)
            z = over_examples(probe.readings if on_tokens else probe.pooled, x, read, self.at_once)
            return log_loss(z[..., 0] if on_tokens else z, positive, v) + half_l2 * squared_weights(params[0])

        params = self._minimum(loss, (data.x, data.read, positive, v), key)
        probe = probe_of(params)
        first, *others = probe.layers
        raw = (first.of_raw(data.centre, jnp.ones_like(scale)), *others)
        threshold = zero
        if on_tokens:
            scores = over_examples(probe.pooled, data.x, data.read, self.at_once)
            threshold = best_threshold(scores, data.y == 1, data.weight)
        return dataclasses.replace(probe, layers=raw, threshold=threshold)

    def _rows(self, data: CentredTokens) -> tuple[Bool[Array, "*row"], Float[Array, "*row"]]:
        """Whether each row of the loss is of the positive class, and its weight."""
        if self.train_on == "examples":
            return data.y == 1, data.weight
        assert data.token_y is not None
        return data.token_y == 1, jnp.where(data.token_y >= 0, data.token_weight, 0)

    def _minimum(self, loss: Loss, rows: Any, key: Key[Array, ""]) -> _Params:
        aggregator, zero = self.aggregator, jnp.zeros((), jnp.float32)
        widths = (rows[0].shape[-1], *self.hidden, aggregator.readings)
        *first, last = initial(key, widths, last_is_zero=not aggregator.interchangeable)
        if self.train_on == "examples":
            last = dataclasses.replace(last, bias=jnp.full_like(last.bias, aggregator.first_reading))
        layers = (*first, last)
        if not self.hidden and (self.train_on == "tokens" or aggregator.linear):
            if self.train_on == "examples":  # linear in the tokens too: one vector for each text is enough
                x, read, *others = rows
                pool = jax.vmap(lambda column: aggregator(column[:, None, :], read), in_axes=-1, out_axes=-1)
                rows = (pool(x)[:, None, :], jnp.ones((len(x), 1), bool), *others)
            return LBFGS().minimise(lambda params: loss((params, zero), rows), layers), zero
        if self.train_on == "tokens" or not aggregator.needs_bias:  # the bias of the readings is the offset
            held = lambda params, rows: loss((params, zero), rows)
            return self.adam.minimise(held, layers, rows, key), zero
        return self.adam.minimise(loss, (layers, zero), rows, key)


_Params = tuple[tuple[Dense, ...], Array]
