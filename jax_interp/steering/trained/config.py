"""`TrainedSteeringConfig`: what is trained, where, for what, and how long."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import optax

from jax_interp.core import optimizers
from jax_interp.core.errors import UserError
from jax_interp.steering.trained.completions import ChangedTokens
from jax_interp.steering.trained.intervention import InterventionConfig
from jax_interp.steering.trained.interventions import SoftPromptConfig, VectorConfig
from jax_interp.steering.trained.objectives import LanguageModelling, Objective, RePS
from jax_interp.surgery import Address, Model, canonical, depth_of

VECTOR, LANGUAGE_MODELLING, ALL_TOKENS = VectorConfig(), LanguageModelling(), ChangedTokens()


@dataclasses.dataclass(frozen=True)
class TrainedSteeringConfig:
    """How steering is trained. One run trains an intervention for each concept, each layer and each seed.

    `addresses` and `layers` go together in one of two ways:

        addresses=("blocks.resid_post",), layers=(5, 10)          one intervention at layer 5, and another run at 10
        addresses=("blocks.5.resid_post", "blocks.10.resid_post")  two interventions that are trained together

    The optimizer is AdamW with a rate that falls linearly to 0, and a bound of the gradient's norm, as in AxBench.
    """

    addresses: tuple[str, ...]
    """The values that are changed together. All have the same width."""
    intervention: InterventionConfig = VECTOR
    objective: Objective = LANGUAGE_MODELLING
    changed: ChangedTokens = ALL_TOKENS
    """The tokens whose values are changed. A soft prompt changes its own tokens only."""
    layers: tuple[int, ...] = ()
    """The layers that are compared, if the address leaves the layer open ("blocks.resid_post")."""
    seeds: tuple[int, ...] = (0,)
    """The seeds that are compared: each has its own start and its own order of the texts."""
    steps: int = 200
    batch: int = 8
    """The number of texts, or of pairs, in a step of one intervention."""
    learning_rate: float = 0.01
    """The rate at the first step."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """The largest norm of the gradient of one intervention."""
    members_at_once: int = 32
    """How many interventions a device trains at the same time. More of them are trained in turn, within each step. The
    memory for activations and logits is proportional to this number."""

    def __post_init__(self) -> None:
        if not self.addresses or not self.seeds:
            raise UserError("give at least one address and one seed")
        if min(self.steps, self.batch, self.members_at_once) < 1:
            raise UserError("steps, batch and members_at_once must be at least 1")
        if not (self.learning_rate > 0 and self.clip > 0 and self.weight_decay >= 0):
            raise UserError("learning_rate and clip must be above 0, and weight_decay at least 0")
        for what, values in (("layers", self.layers), ("seeds", self.seeds), ("addresses", self.addresses)):
            if len(set(values)) < len(values):
                raise UserError(f"{what}={values} names one of them twice")
        parsed = [Address.parse(canonical(address)) for address in self.addresses]
        if any(address.layers == "" for address in parsed) != bool(self.layers):
            raise UserError(
                f"addresses={self.addresses} and layers={self.layers} do not go together: give layers=, and an "
                "address that leaves the layer open, 'blocks.resid_post'; or an address of one layer and no layers="
            )
        if several := [a for a, p in zip(self.addresses, parsed, strict=True) if p.layers != "" and not p.is_single]:
            raise UserError(f"{several[0]!r} names several layers: write one address for each of them")
        if isinstance(self.intervention, SoftPromptConfig) and self.addresses != ("embed",):
            raise UserError(f"a soft prompt acts at 'embed', not at {', '.join(self.addresses)}")
        removes = isinstance(self.objective, RePS) and self.objective.suppress == "remove"
        if removes and isinstance(self.intervention, VectorConfig) and self.intervention.norm == 0:
            raise UserError("RePS removes the vector from the start on: give VectorConfig(norm=...) above 0")

    def check_layers(self, model: Model) -> None:
        """Raise `UserError` if the model lacks one of the layers."""
        if self.layers and (bad := [layer for layer in self.layers if not 0 <= layer < depth_of(model)]):
            raise UserError(f"there is no layer {bad[0]}: the model has the layers 0 to {depth_of(model) - 1}")

    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer of one intervention."""
        rate = lambda count: self.learning_rate * optimizers.decay("linear", count / self.steps)
        return optax.chain(
            optax.clip_by_global_norm(self.clip), optax.adamw(rate, weight_decay=self.weight_decay, eps=1e-8)
        )


@dataclasses.dataclass(frozen=True)
class Member:
    """One intervention of a run.

    Attributes:
      concept: the name of its texts.
      layer: its layer; None if the addresses name the layers.
      seed: its seed.
    """

    concept: str
    layer: int | None
    seed: int


def members_of(config: TrainedSteeringConfig, concepts: Sequence[str]) -> tuple[Member, ...]:
    """The members of a run: concepts, then layers, then seeds."""
    layers = config.layers or (None,)
    return tuple(Member(c, layer, seed) for c in concepts for layer in layers for seed in config.seeds)


def with_layer(address: str, layer: int | None) -> str:
    """The address at a layer, if it leaves the layer open; else the address as it is."""
    parsed = Address.parse(address)
    return f"blocks.{layer}.{parsed.name}" if parsed.layers == "" else address
