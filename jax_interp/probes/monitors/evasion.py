"""The objective of a red team: do the behaviour, and keep the monitor's score below its threshold."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.objectives import cross_entropy
from jax_interp.core.pytrees import register_dataclass
from jax_interp.probes.monitors.monitor import ModelMonitor, masked, shifted
from jax_interp.surgery import Model


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Evasion:
    """loss = -log p(answer | what is before it) + weight · softplus((score - threshold) / spread).

    The behaviour is the answer that the examples contain. softplus is -log(1 - σ(·)), the loss of a detector that the
    attacker wants to say "benign".

    Args:
      model: the model that is to do the behaviour.
      monitor: the monitor.
      mask: True at real tokens. None: there is no padding.
      read: the tokens that the monitor counts.
      answer: the tokens of the behaviour. The loss is their mean.
      threshold: the monitor's threshold.
      spread: the unit of scores.
      weight: the weight of the monitor. 0: the behaviour only.
    """

    model: Model
    monitor: ModelMonitor
    mask: Bool[Array, "example pos"] | None
    read: Bool[Array, "example pos"]
    answer: Bool[Array, "example pos"]
    threshold: Float[Array, ""]
    spread: Float[Array, ""]
    weight: Float[Array, ""]

    def __call__(
        self, tokens: Int[Array, "example pos"], shift: Float[Array, "example pos d"] | None = None
    ) -> Float[Array, " example"]:
        """The loss of each example, for an attack to make small."""
        behaviour, _ = gives_answer(self.model, tokens, self.mask, self.answer, shift)
        score = self.monitor.score(tokens, self.mask, self.read, shift).astype(behaviour.dtype)
        return behaviour + self.weight * jax.nn.softplus((score - self.threshold) / self.spread)

    def outcome(
        self, tokens: Int[Array, "example pos"], shift: Float[Array, "example pos d"] | None = None
    ) -> tuple[Bool[Array, " example"], Float[Array, " example"]]:
        """(whether the behaviour is done, the monitor's score)."""
        _, done = gives_answer(self.model, tokens, self.mask, self.answer, shift)
        return done, self.monitor.score(tokens, self.mask, self.read, shift)


def gives_answer(
    model: Model,
    tokens: Int[Array, "example pos"],
    mask: Bool[Array, "example pos"] | None,
    answer: Bool[Array, "example pos"],
    shift: Float[Array, "example pos d"] | None = None,
) -> tuple[Float[Array, " example"], Bool[Array, " example"]]:
    """How well the model gives the answer that the tokens contain.

    Args:
      model: a language model.
      tokens: requests with their answers.
      mask: True at real tokens. None: there is no padding.
      answer: the tokens of the answer. None of them is the first token.
      shift: what is added to the embeddings.

    Returns:
      The mean of -log p over the answer's tokens, in nats; and whether greedy decoding gives the answer, which is so if
      each token of it is the most likely one.
    """
    logits = shifted(model, shift)(tokens, **masked(mask))[:, :-1]
    right, counted = tokens[:, 1:], answer[:, 1:]
    loss = jnp.where(counted, cross_entropy(logits, right), 0.0)
    loss = jnp.sum(loss, axis=1) / jnp.sum(counted, axis=1).astype(loss.dtype)
    done = jnp.all(~counted | (jnp.argmax(logits, axis=-1) == right), axis=1)
    return loss, done
