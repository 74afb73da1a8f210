"""The likelihood of completions under a model, with and without an intervention."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.objectives import cross_entropy
from jax_interp.core.pytrees import register_dataclass
from jax_interp.steering.trained.completions import Texts
from jax_interp.steering.trained.intervention import Intervened, Intervention
from jax_interp.surgery import Address, Model, at, edit, read
from jax_interp.surgery.value_tokens import wide


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Likelihood:
    """The likelihood of each completion.

    Args:
      log_p: the sum of the log probabilities of its tokens, in nats.
      count: the number of its tokens.
      length: the number of tokens of prompt and completion.
      penalty: what the interventions add to the loss; 0 if they add nothing.
    """

    log_p: Float[Array, " row"]
    count: Float[Array, " row"]
    length: Float[Array, " row"]
    penalty: Float[Array, ""]


def likelihood(model: Model, texts: Texts) -> Likelihood:
    """The likelihood of the completions under a model."""
    return _of_logits(model(texts.tokens, mask=texts.mask), texts, jnp.zeros((), jnp.float32))


@dataclasses.dataclass(frozen=True)
class Steered:
    """A model with the interventions of one member.

    Attributes:
      model: the model.
      addresses: where the interventions act.
      interventions: one for each address.
      layer: the layer, for addresses that leave it open; else None.
    """

    model: Model
    addresses: tuple[str, ...]
    interventions: tuple[Intervention, ...]
    layer: Int[Array, ""] | None

    def likelihood(
        self, texts: Texts, strength: Float[Array, " row"] | float, removed: Bool[Array, " row"] | None = None
    ) -> Likelihood:
        """The likelihood of the completions under the steered model.

        Args:
          texts: the texts.
          strength: the strength of each row.
          removed: the rows from which the concept is removed instead. None: no row.
        """
        strength = jnp.broadcast_to(jnp.asarray(strength, jnp.float32), texts.tokens.shape[:1])[:, None]
        removed = None if removed is None else removed[:, None]
        penalised = [i for i, intervention in enumerate(self.interventions) if intervention.penalised]
        names = [self._whole(self.addresses[i]) for i in penalised]
        edits = [
            at(a, Intervened(i, strength, removed, texts.changed), layer=self._layer_of(a), where=texts.changed)
            for a, i in zip(self.addresses, self.interventions, strict=True)
        ]
        before = read(self.model, *dict.fromkeys(names)) if names else self.model  # the innermost surgery acts first
        found: Any = edit(before, *edits)(texts.tokens, mask=texts.mask)
        logits, values = found if names else (found, {})
        penalty = jnp.zeros((), jnp.float32)
        for i, name in zip(penalised, names, strict=True):
            x = values[name] if self._layer_of(self.addresses[i]) is None else values[name][self.layer]
            penalty += self.interventions[i].penalty(wide(x), texts.changed).astype(jnp.float32)
        return _of_logits(logits, texts, penalty)

    def _layer_of(self, address: str) -> Int[Array, ""] | None:
        return self.layer if Address.parse(address).layers == "" else None

    def _whole(self, address: str) -> str:
        """The address of the value in all layers, if the address leaves the layer open."""
        parsed = Address.parse(address)
        return f"blocks.*.{parsed.name}" if parsed.layers == "" else address


def _of_logits(logits: Float[Array, "row pos vocab"], texts: Texts, penalty: Float[Array, ""]) -> Likelihood:
    losses = cross_entropy(logits[:, :-1], texts.tokens[:, 1:])
    targets = texts.targets[:, 1:]
    total = lambda mask: jnp.sum(mask, axis=1).astype(losses.dtype)
    log_p = -jnp.sum(jnp.where(targets, losses, jnp.zeros_like(losses)), axis=1)
    return Likelihood(log_p, total(targets), total(texts.mask), penalty)


def joined(*texts: Texts) -> Texts:
    """The rows of several batches, one after the other."""
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *texts)
