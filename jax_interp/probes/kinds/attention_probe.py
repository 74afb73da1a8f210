"""`AttentionProbe`: heads that learn which tokens to look at.

    qₕₜ = xₜ·Qₕ + ωₕ t             t = 0, 1, ...: the number of the token among those that count
    pₕ  = softmax over t of qₕ
    o   = Σₕ (Σₜ pₕₜ xₜ)·Vₕ + c
    score = o, or relu(o)·u + b with a hidden layer

The form is that of EleutherAI's attention probes (blog.eleuther.ai/attention-probes): several heads, a query that
begins at 0 (so that training begins at the mean), and a learned weight ω of the position, as in ALiBi. They are trained
by Adam here. A softmax does not change if a constant is added, so counting tokens from the last one would give the same
scores.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.probes.aggregators import masked_softmax
from jax_interp.probes.dense import Dense, initial, squared_weights
from jax_interp.probes.descent import ADAM, Adam
from jax_interp.probes.kind import KINDS
from jax_interp.probes.probe import PROBES, Probe
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


@PROBES.register
@register_dataclass
@dataclasses.dataclass(frozen=True)
class MultiHeadProbe(Probe):
    """The probe of this file's equation.

    Args:
      query: Q. Its bias has no influence.
      position: ω.
      value: V and c: the rows of head h are Vₕ.
      out: u and b; None without a hidden layer.
      threshold: the score between the classes.
      log_odds: whether the score is meant as the log-odds of the positive class.
    """

    query: Dense
    position: Float[Array, " head"]
    value: Dense
    out: Dense | None
    threshold: Float[Array, ""]
    log_odds: bool = dataclasses.field(default=True, metadata={"static": True})

    reads: ClassVar[Literal["vectors", "sequences"]] = "sequences"

    def score(self, x: Float[Array, "... pos d"], read: Bool[Array, "... pos"] | None = None) -> Float[Array, "..."]:
        read = jnp.ones(x.shape[:-1], bool) if read is None else read
        kept = jnp.where(read[..., None], x, jnp.zeros_like(x))  # a token that does not count may be anything, NaN too
        return jnp.where(read.any(axis=-1), self.pooled(kept, read), jnp.nan)

    def pooled(self, x: Float[Array, "... pos d"], read: Bool[Array, "... pos"]) -> Float[Array, "..."]:
        """The score, for activations that are finite everywhere."""
        means = jnp.einsum(
            "...hp,...pd->...hd",
            self.attention(x, read),
            x.astype(self.position.dtype),
            precision=jax.lax.Precision.HIGHEST,
        )
        o = self.value(means.reshape(*means.shape[:-2], -1))
        return (o if self.out is None else self.out(jax.nn.relu(o)))[..., 0]

    def attention(
        self, x: Float[Array, "... pos d"], read: Bool[Array, "... pos"] | None = None
    ) -> Float[Array, "... head pos"]:
        """pₕₜ: how much each head looks at each token. It sums to 1 over the tokens that count."""
        read = jnp.ones(x.shape[:-1], bool) if read is None else read
        number = jnp.cumsum(read, axis=-1).astype(self.position.dtype)
        logits = jnp.moveaxis(self.query(x), -1, -2) + number[..., None, :] * jnp.broadcast_to(
            self.position[:, None], (*number.shape[:-1], len(self.position), 1)
        )
        return masked_softmax(logits, jnp.broadcast_to(read[..., None, :], logits.shape))

    def token_scores(self, x: Float[Array, "... d"]) -> Float[Array, "..."]:
        """The score of each token by itself: that of a text that consists of it."""
        return self.score(x[..., None, :])


@KINDS.register
@dataclasses.dataclass(frozen=True)
class AttentionProbe(SequenceKind):
    """Heads that learn which tokens to look at. The loss is that of `token_training`; Adam minimises it.

    The problem is not convex: fit several seeds. With `position=True` a head can learn to look at the end of a text. A
    text that is longer than those of the training moves its weights further than the training has seen.

    Memory: one copy of the activations of a site, and for each probe that is trained beside others (strengths, seeds,
    splits, labels) `head · (pos + d)` numbers for each text. `at_once` bounds the number of texts.

    Args:
      heads: the number of heads.
      hidden: the width of the hidden layer after the heads. 0: none.
      position: whether the weight of the position is learned. False: it is 0, and the order of tokens has no effect.
      C: the inverse strengths of the L2 penalty on Q, V and u; one probe for each.
      class_weight: "balanced" gives both classes the same weight in the loss. None: every text weighs the same.
      adam: how it is trained.
      at_once: the number of texts that are read at a time. None: all.
    """

    heads: int = 1
    hidden: int = 0
    position: bool = True
    C: tuple[float, ...] = (1.0,)
    class_weight: Literal["balanced"] | None = None
    adam: Adam = ADAM
    at_once: int | None = None

    def __post_init__(self):
        check_strengths(self.C, at_once=self.at_once, heads=self.heads)
        if self.hidden < 0:
            raise UserError(f"hidden={self.hidden} must be at least 0")

    @property
    def strengths(self) -> tuple[float, ...]:
        return self.C

    def fit_tokens(self, data: CentredTokens, strength: Float[Array, ""] | None, key: Key[Array, ""]) -> Probe:
        positive, weight = data.y == 1, data.weight
        half_l2 = l2_factor(strength, weight)
        v = mean_one(weight if self.class_weight is None else balanced(weight, positive))
        mean, scale = data.moments()

        def probe_of(params: MultiHeadProbe, shift: Array, scale: Array) -> MultiHeadProbe:
            heads = lambda a: jnp.tile(a, self.heads)
            query, value = params.query.of_raw(shift, scale), params.value.of_raw(heads(shift), heads(scale))
            return dataclasses.replace(params, query=query, value=value)

        def per_token(params: MultiHeadProbe) -> MultiHeadProbe:  # positions are trained in units of the longest text
            position = params.position / data.x.shape[1] if self.position else jnp.zeros_like(params.position)
            return dataclasses.replace(params, position=position)

        def loss(params: MultiHeadProbe, rows: Any) -> Float[Array, ""]:
            x, read, positive, v = rows
            z = over_examples(probe_of(per_token(params), mean, scale).pooled, x, read, self.at_once)
            layers = [layer for layer in (params.query, params.value, params.out) if layer is not None]
            return log_loss(z, positive, v) + half_l2 * squared_weights(layers)

        start = self._start(data.x.shape[-1], key)
        params = per_token(self.adam.minimise(loss, start, (data.x, data.read, positive, v), key))
        return probe_of(probe_of(params, mean, scale), data.centre, jnp.ones_like(scale))

    def _start(self, d: int, key: Key[Array, ""]) -> MultiHeadProbe:
        (query,) = initial(key, (d, self.heads), last_is_zero=True)
        value, *out = initial(key, (self.heads * d, *([self.hidden] if self.hidden else []), 1), last_is_zero=False)
        zero = jnp.zeros((), jnp.float32)
        return MultiHeadProbe(query, jnp.zeros(self.heads, jnp.float32), value, out[0] if out else None, zero)
