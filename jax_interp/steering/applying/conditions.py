"""Conditional steering: whether to steer is measured on the prompt, and then kept for the whole text.

    condition = Similarity("blocks.7.resid_post", c, threshold=0.03)        CAST (Lee et al. 2024, arXiv:2409.05907)
    condition = ProbeCondition("blocks.7.resid_post", probe)                any probe, with its threshold
    gates = condition.measure(model, tokens, mask)                          [batch], by the model without steering
    generate(edit(model, conditional(vector, gates).edits(4.0)), tokens, 50, mask=mask)

A gate is data: a batch mixes rows that are steered and rows that are not, and other gates do not compile again. Rows
whose gate is False keep their bits. `conditional_in_one_pass` makes the gate and uses it in the same call.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.pytrees import register_dataclass
from jax_interp.probes import Probe
from jax_interp.steering.placement import Placement, ScopedPlacement, placed
from jax_interp.steering.vector import Steering, Strength
from jax_interp.surgery import Edit, ScopedEdit, Site, ValueTokens, at, is_known, values_at
from jax_interp.surgery.contract import Model
from jax_interp.surgery.taps import static

Reading = Literal["mean", "last", "max"]
"""How the tokens of a prompt give one score: the mean, the last token, or the greatest."""


class Condition(abc.ABC):
    """What is measured on a prompt: a score of one value of the model, above or below a threshold."""

    address: str
    threshold: Float[ArrayLike, ""] | None
    above: bool

    @abc.abstractmethod
    def token_scores(self, x: Float[Array, "batch pos d"]) -> Float[Array, "batch pos"]:
        """The score of each token."""

    @abc.abstractmethod
    def prompt_scores(self, x: Float[Array, "batch pos d"], real: Bool[Array, "batch pos"]) -> Float[Array, "batch"]:
        """The score of each prompt, from its real tokens."""

    def holds(self, scores: Float[Array, "..."]) -> Bool[Array, "..."]:
        """Whether the condition holds for these scores."""
        threshold = jnp.asarray(self.threshold_used(), scores.dtype)
        return scores > threshold if self.above else scores < threshold

    def threshold_used(self) -> Float[ArrayLike, ""]:
        """The threshold. Raises `UserError` if there is none yet."""
        if self.threshold is None:
            raise UserError("this condition has no threshold yet: see choose_threshold and published_threshold")
        return self.threshold

    def scores(
        self, model: Model, tokens: Any, mask: Bool[ArrayLike, "batch pos"] | None = None
    ) -> Float[Array, "batch"]:
        """The score of each prompt. The blocks after the value are not run.

        Args:
          model: the model, without the steering.
          tokens: the prompts, `[batch, pos]`, padded on either side.
          mask: True for real tokens.

        Raises:
          UserError: a score is NaN.
        """
        found = _scores(self, model, tokens, mask)
        if is_known(found) and (wrong := np.isnan(np.asarray(found))).any():
            raise UserError(
                f"the score of row {int(np.argmax(wrong))} is NaN: the row has no real token, or the model has NaN at "
                f"{self.address!r}"
            )
        return found

    def measure(
        self, model: Model, tokens: Any, mask: Bool[ArrayLike, "batch pos"] | None = None
    ) -> Bool[Array, "batch"]:
        """Whether the condition holds, for each prompt. Arguments and errors are those of `scores`."""
        return self.holds(self.scores(model, tokens, mask))


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Similarity(Condition):
    """The condition of CAST: cos(h, tanh(P h)) with P = c cᵀ / cᵀc, the projection on a condition vector c.

    h is the mean of the value over the prompt, or its last token. The published code takes the stream before a block:
    `resid_pre`. Its setting `condition_comparator_threshold_is` says where the threshold is, not the similarity:
    "smaller" steers if the similarity is larger than the threshold, which is `above=True`.

    Args:
      address: the value, such as "blocks.7.resid_pre".
      vector: c, `[d]`. Its norm counts, because of tanh.
      threshold: the condition holds if the similarity is above it.
      above: False: the condition holds if the similarity is below the threshold.
      read: "mean" or "last".
    """

    address: str = dataclasses.field(metadata={"static": True})
    vector: Float[Array, " d"]
    threshold: Float[ArrayLike, ""] | None = None
    above: bool = static(default=True)
    read: Literal["mean", "last", "max"] = static(default="mean")

    def __post_init__(self) -> None:
        if self.read not in ("mean", "last"):
            raise UserError(
                f"read={self.read!r}: CAST reads the mean of the prompt or its last token, 'mean' or 'last'"
            )

    def token_scores(self, x: Float[Array, "batch pos d"]) -> Float[Array, "batch pos"]:
        h = upcast(x)
        c = jnp.broadcast_to(jnp.asarray(self.vector, h.dtype), h.shape)
        size = jnp.sum(c * c, axis=-1)
        along = jnp.sum(h * c, axis=-1) / jnp.where(size == 0, 1.0, size)
        seen = jnp.tanh(along[..., None] * c)
        norms = jnp.sqrt(jnp.sum(h * h, axis=-1) * jnp.sum(seen * seen, axis=-1))
        return jnp.sum(h * seen, axis=-1) / jnp.where(norms == 0, 1.0, norms)

    def prompt_scores(self, x: Float[Array, "batch pos d"], real: Bool[Array, "batch pos"]) -> Float[Array, "batch"]:
        return self.token_scores(_read(upcast(x), real, self.read)[:, None])[:, 0]


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ProbeCondition(Condition):
    """The condition that a probe says yes.

    Args:
      address: the value that the probe reads.
      probe: any probe. One that reads sequences reads the whole prompt; of another, the scores of the tokens are read.
      threshold: None: the threshold of the probe.
      above: False: the condition holds if the score is below the threshold.
      read: how the scores of the tokens give one score.
    """

    address: str = dataclasses.field(metadata={"static": True})
    probe: Probe
    threshold: Float[ArrayLike, ""] | None = None
    above: bool = static(default=True)
    read: Literal["mean", "last", "max"] = static(default="mean")

    def threshold_used(self) -> Float[ArrayLike, ""]:
        return self.probe.threshold if self.threshold is None else self.threshold

    def token_scores(self, x: Float[Array, "batch pos d"]) -> Float[Array, "batch pos"]:
        return self.probe.token_scores(upcast(x))

    def prompt_scores(self, x: Float[Array, "batch pos d"], real: Bool[Array, "batch pos"]) -> Float[Array, "batch"]:
        if self.probe.reads == "sequences":
            return self.probe.score(upcast(x), real)
        return _read(self.token_scores(x)[..., None], real, self.read)[:, 0]


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class RowGate(Placement):
    """The rows of a batch that are steered.

    Args:
      gate: `[batch]`; booleans, or factors of the strength.
    """

    gate: Bool[Array, "batch"] | Float[Array, "batch"]

    def factor(self, x: Array, tokens: ValueTokens) -> Float[Array, "#batch #pos"]:
        return jnp.asarray(self.gate).astype(jnp.float32)[:, None]


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Conditional:
    """A steering that acts in some rows of a batch. `conditional` makes it."""

    steering: Steering
    gate: RowGate

    def edits(self, strength: Strength = 1.0) -> tuple[Edit, ...]:
        """The edits of this strength: a number, or one for each row, `[batch, 1]`."""
        return placed(self.steering.edits(strength), self.gate)


def conditional(steering: Steering, gate: Bool[ArrayLike, "batch"] | Float[ArrayLike, "batch"]) -> Conditional:
    """The steering in the rows whose gate is True; with numbers, with this factor of the strength.

    Args:
      steering: whatever has `edits(strength)`.
      gate: `[batch]`, from `condition.measure`, or of your own.

    Raises:
      UserError: the gate has another shape, or is not finite.
    """
    array = jnp.asarray(gate)
    if array.ndim != 1 or (is_known(array) and not np.isfinite(np.asarray(array, np.float64)).all()):
        raise UserError(f"a gate has one boolean or finite number for each row, [batch]; got shape {array.shape}")
    return Conditional(steering, RowGate(array))


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class MakeGate(ScopedEdit):
    """Measure a condition at a value, and carry the gate to later edits. The value does not change."""

    condition: Condition
    per: Literal["token", "prompt"] = static(default="token")

    def __call__(self, x: Array, site: Site) -> Array:
        if self.per == "token":
            gate = self.condition.holds(self.condition.token_scores(x))
        elif site.tokens.positions.first_slot is not None:
            raise UserError(
                "with a cache, a call has a part of the text, so that a gate for a whole prompt cannot be made in one "
                "pass: use gates = condition.measure(model, tokens, mask) and conditional(steering, gates)"
            )
        else:
            real = site.tokens.positions.real
            real = jnp.ones(x.shape[:2], bool) if real is None else real
            gate = self.condition.holds(self.condition.prompt_scores(x, real))[:, None]
        site.carry(_name(self.condition), gate.astype(jnp.float32))
        return x


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class CarriedGate(ScopedPlacement):
    """The gate that `MakeGate` has made at an earlier value of the same run."""

    name: str = static()

    def factor_in(self, site: Site) -> Float[Array, "#batch #pos"]:
        return site.carried(self.name)


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ConditionalInOnePass:
    """A steering with the edit that measures its condition. `conditional_in_one_pass` makes it."""

    steering: Steering
    condition: Condition
    per: Literal["token", "prompt"] = static(default="token")

    def edits(self, strength: Strength = 1.0) -> tuple[Edit, ...]:
        """The edits of this strength. The first one makes the gate."""
        make = at(self.condition.address, MakeGate(self.condition, self.per))
        return make, *placed(self.steering.edits(strength), CarriedGate(_name(self.condition)))  # type: ignore[return-value]


def conditional_in_one_pass(
    steering: Steering, condition: Condition, per: Literal["token", "prompt"] = "token"
) -> ConditionalInOnePass:
    """The steering where a condition holds at an earlier value of the same forward pass.

    Args:
      steering: whatever has `edits(strength)`. Its edits act at the value of the condition, or later.
      condition: what is measured. It sees the text as it is steered so far.
      per: "token": each token has its own gate, also in generation. "prompt": one gate for each whole text, in a call
        without a cache.

    Returns:
      A steering. Its model raises `CarryError` if an edit acts before the value of the condition.
    """
    if per not in ("token", "prompt"):
        raise UserError(f"per={per!r} is 'token' or 'prompt'")
    return ConditionalInOnePass(steering, condition, per)


def _name(condition: Condition) -> str:
    return f"gate at {condition.address}"


@jax.jit
def _scores(condition: Condition, model: Model, tokens: Array, mask: Array | None) -> Float[Array, "batch"]:
    x = values_at(model, condition.address)(tokens, mask=mask)[condition.address]
    real = jnp.ones(x.shape[:2], bool) if mask is None else jnp.asarray(mask).astype(bool)
    scores = condition.prompt_scores(x, real)
    return jnp.where(jnp.any(real, axis=1), scores, jnp.asarray(jnp.nan, scores.dtype))


def _read(x: Float[Array, "batch pos n"], real: Bool[Array, "batch pos"], read: Reading) -> Float[Array, "batch n"]:
    """One vector for each row, from its real tokens."""
    if read == "max":
        return jnp.max(jnp.where(real[..., None], x, jnp.asarray(-jnp.inf, x.dtype)), axis=1)
    if read == "last":
        chosen = real & (jnp.cumsum(real, axis=1) == jnp.sum(real, axis=1, keepdims=True))
    else:
        chosen = real
    total = jnp.sum(jnp.where(chosen[..., None], x, jnp.zeros_like(x)), axis=1)
    return total / jnp.maximum(jnp.sum(chosen, axis=1, keepdims=True), 1).astype(x.dtype)
