"""What a run gives: the interventions of all members, and each one as a steering.

run = train_steering(model, {"french": completions}, config)
steering = run.member(concept="french")
steered = edit(model, *steering.edits(2.0))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.steering.applying.windows import at_positions
from jax_interp.steering.placement import placed
from jax_interp.steering.trained.config import Member, TrainedSteeringConfig, with_layer
from jax_interp.steering.trained.intervention import Intervened, Intervention
from jax_interp.steering.vector import SteeringVector, Strength
from jax_interp.surgery import Edit, Model, at, call, read
from jax_interp.surgery.region import index
from jax_interp.surgery.value_tokens import wide
from jax_interp.surgery.verbs import flat_edits


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class TrainedSteering:
    """One trained intervention, or several that were trained together. It is a `Steering`.

    Args:
      interventions: the interventions by address. Each address names one value.
      pos: the positions of the changed tokens, as `surgery.region.index` makes them. None: all tokens. Negative
        positions count from the end of the prompt in generation, and from the end of the text in a plain call.
      prompts: the number of tokens of the prompt in each row. `for_prompts` sets it.
    """

    interventions: Mapping[str, Intervention]
    pos: Any = None
    prompts: Int[Array, " batch"] | None = None

    def edits(self, strength: Strength = 1.0) -> tuple[Edit, ...]:
        """The edits of this strength: a number, or one for each row, `[batch, 1]`. Strength 0 changes nothing."""
        listed = self.prompts is not None and getattr(self.pos, "ndim", 0) == 1
        edits = flat_edits(
            at(address, Intervened(intervention, strength), pos=None if listed else self.pos)
            for address, intervention in self.interventions.items()
        )
        return placed(edits, at_positions(self.pos, self.prompts)) if listed else tuple(edits)

    def for_prompts(self, lengths: Int[ArrayLike, " batch"]) -> TrainedSteering:
        """The same steering for whole texts that have prompts and completions.

        Steering that acts at the last tokens of the prompt needs it to score completions. In generation the prompt is
        known.

        Args:
          lengths: the number of tokens of the prompt in each row, reserved tokens included.
        """
        return dataclasses.replace(self, prompts=jnp.asarray(lengths, jnp.int32))

    def vector(self) -> SteeringVector:
        """The vectors that strength 1 adds, for methods that add the same vector to every value.

        Raises:
          UserError: what the method adds depends on the value.
        """
        found = {address: intervention.direction() for address, intervention in self.interventions.items()}
        if without := [address for address, vector in found.items() if vector is None]:
            kind = type(self.interventions[without[0]]).__name__
            raise UserError(f"{kind} at {without[0]!r} adds no constant vector: what it adds depends on the value")
        return SteeringVector(found)  # type: ignore[arg-type]

    def token_scores(
        self, model: Model, tokens: Int[Array, "batch pos"], mask: Bool[Array, "batch pos"] | None = None
    ) -> Float[Array, "batch pos"]:
        """How much of the concept each token has, by the detector of ReFT-r1. Padding has score 0.

        Args:
          model: the model, without this steering.
          tokens: the texts.
          mask: True for real tokens.

        Raises:
          UserError: the method is no detector, or it acts at several addresses.
        """
        if len(self.interventions) != 1:
            raise UserError(f"there are detectors at {', '.join(self.interventions)}: give scores for one address")
        (address, intervention), *_ = self.interventions.items()
        given = {} if mask is None else {"mask": mask}
        scores = intervention.latents(wide(call(read(model, address, output=False), tokens, **given)[address]))
        if scores is None:
            raise UserError(f"{type(intervention).__name__} is no detector: ReFT-r1 is one")
        return scores if mask is None else jnp.where(mask, scores, jnp.zeros_like(scores))


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedMembers:
    """The interventions of a run.

    Attributes:
      config: how they were trained.
      members: which concept, layer and seed each of them has.
      interventions: one for each address of the config; its leaves have a leading axis over the members.
    """

    config: TrainedSteeringConfig
    members: tuple[Member, ...]
    interventions: tuple[Intervention, ...]

    def __len__(self) -> int:
        return len(self.members)

    def member(
        self, *, concept: str | None = None, layer: int | None = None, seed: int | None = None
    ) -> TrainedSteering:
        """The member with these properties.

        Args:
          concept: its concept. None: any.
          layer: its layer. None: any.
          seed: its seed. None: any.

        Raises:
          UserError: there is no such member, or there are several.
        """
        asked = {"concept": concept, "layer": layer, "seed": seed}
        asked = {name: value for name, value in asked.items() if value is not None}
        found = [i for i, m in enumerate(self.members) if all(getattr(m, n) == v for n, v in asked.items())]
        if len(found) != 1:
            given = ", ".join(f"{name}={value!r}" for name, value in asked.items()) or "no property"
            raise UserError(
                f"{len(found) or 'no'} members have {given}: name one by concept, layer and seed. There are "
                f"{', '.join(f'{m.concept!r} at layer {m.layer} with seed {m.seed}' for m in self.members[:8])}"
                + (" and others" if len(self.members) > 8 else "")
            )
        return self.at(found[0])

    def at(self, place: int) -> TrainedSteering:
        """The member at this place of `members`."""
        layer = self.members[place].layer
        one = [jax.tree.map(lambda leaf: leaf[place], intervention) for intervention in self.interventions]
        names = [with_layer(address, layer) for address in self.config.addresses]
        reserved = self.config.intervention.reserved
        pos = slice(0, reserved) if reserved else self.config.changed.pos()
        return TrainedSteering(dict(zip(names, one, strict=True)), index(pos))
