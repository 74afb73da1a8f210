"""`train_steering`: interventions for many concepts, layers and seeds, trained at once on one frozen model.

The members share the model, and each has its own parameters and optimizer. One compiled step trains all of them under
`jax.vmap`, in pieces that fit into memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jax_interp.core import optimizers
from jax_interp.core.processes import to_host
from jax_interp.core.pytrees import register_dataclass
from jax_interp.models.sharding import rules_for
from jax_interp.steering.trained.batches import concept_texts, member_batches
from jax_interp.steering.trained.completions import Concept
from jax_interp.steering.trained.config import TrainedSteeringConfig, members_of
from jax_interp.steering.trained.intervention import Intervention
from jax_interp.steering.trained.likelihood import Steered
from jax_interp.steering.trained.objectives import Batch
from jax_interp.steering.trained.prepared import calibrated, reference, started
from jax_interp.steering.trained.trained import TrainedMembers
from jax_interp.surgery import Model
from jax_interp.training import Log, Place, RunTarget, SaveTo, automatic_step, fit, placed
from jax_interp.training.placement import replicated


@register_dataclass
@dataclasses.dataclass(frozen=True)
class SteeringState:
    """The state of a run. All leaves but the step have a leading axis over the members.

    Attributes:
      interventions: one for each address.
      opt: the state of each member's optimizer.
      step: the number of steps that are done.
    """

    interventions: tuple[Intervention, ...]
    opt: optax.OptState
    step: Int[Array, ""]


@automatic_step
def steering_step(
    config: TrainedSteeringConfig,
    state: SteeringState,
    batch: Batch,
    model: Model,
    layers: Int[Array, " member"] | None,
    rate_scale: Float[Array, ""] | None = None,
) -> tuple[SteeringState, dict[str, Any]]:
    """One step of every member.

    Args:
      config: the objective and the optimizer.
      state: the parameters and the optimizers.
      batch: arrays `[row, member, ...]`.
      model: the frozen model.
      layers: the layer of each member; None if the addresses name the layers.
      rate_scale: a factor of the learning rate.

    Returns:
      The next state, and the metrics: `loss`, the mean over the members, and `members.<name>`, one number for each.
    """
    optimizer, progress = config.optimizer(), state.step.astype(jnp.float32) / config.steps

    def of_member(member: tuple[Any, ...]) -> tuple[Any, ...]:
        interventions, opt, rows, layer = member

        def loss(interventions: tuple[Intervention, ...]) -> tuple[Array, dict[str, Any]]:
            bound = tuple(intervention.constrained() for intervention in interventions)
            return config.objective.loss(Steered(model, config.addresses, bound, layer), rows, progress)

        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(interventions)
        interventions, opt = optimizers.update(optimizer, grads, opt, interventions, rate_scale)
        bound = tuple(intervention.constrained() for intervention in interventions)
        return bound, opt, {"loss": value} | metrics

    rows = jax.tree.map(lambda array: jnp.moveaxis(array, 1, 0), batch)
    given = (state.interventions, state.opt, rows, layers)
    interventions, opt, metrics = in_pieces(of_member, given, config.members_at_once)
    metrics = {"loss": jnp.mean(metrics["loss"]), "members": metrics}
    return SteeringState(interventions, opt, state.step + 1), metrics


def in_pieces(function: Callable[[Any], Any], members: Any, at_once: int) -> Any:
    """`jax.vmap(function)(members)`, for `at_once` members at a time."""
    count = len(jax.tree.leaves(members)[0])
    if count <= at_once:
        return jax.vmap(function)(members)
    return jax.lax.map(function, members, batch_size=at_once)


def train_steering(
    model: Model,
    concepts: Mapping[str, Concept],
    config: TrainedSteeringConfig,
    *,
    run: RunTarget = None,
    place: Place = None,
    log: Log = Log(),
) -> TrainedMembers:
    """Train an intervention for each concept, each layer and each seed.

    Args:
      model: any model with the addresses of the config, with or without edits. It is called with `mask=`.
      concepts: the texts of each concept: `Completions`, or `Questions` for an objective that compares two completions.
        Of `Questions`, language modelling takes the matching answers.
      config: what is trained, where, and for what.
      run: where the run is saved, as in `training.fit`. A run that was killed resumes from its last checkpoint.
      place: a mesh, a function, or None, as in `training.placed`.
      log: what is shown and logged.

    Returns:
      The trained interventions. `.member(concept=...)` is a `Steering`.

    Raises:
      UserError: a layer or an address does not exist, a value is not `[batch, pos, d]`, or the texts do not fit the
        objective.

    Example:
        config = TrainedSteeringConfig(("blocks.resid_post",), LoReFTConfig(rank=4), layers=(1, 2), steps=300)
        steering = train_steering(model, {"french": completions}, config).member(layer=2)
        generate(edit(model, *steering.edits(1.0)), tokens, 20)
    """
    config.check_layers(model)
    members, texts = members_of(config, list(concepts)), concept_texts(config, concepts)
    log = log.with_defaults(shown=("loss",), title="steering")
    with placed(place, replicated) as there:
        frozen = there.frozen(model, rules_for(model))
        start = started(config, members, frozen, texts)
        opt = jax.vmap(partial(optimizers.init, config.optimizer()))(start)
        state = there.state(SteeringState(start, opt, jnp.zeros((), jnp.int32)))
        layers = jnp.asarray([m.layer for m in members], jnp.int32) if config.layers else None
        known = {name: reference(config, frozen, concept, there) for name, concept in texts.items()}
        batch_at = there.batches(member_batches(config, members, texts, known))
        step, saving = partial(steering_step, config), SaveTo.of(run, config)
        given = (frozen, layers if layers is None else there.frozen(layers, replicated(layers)))
        state = fit(step, state, batch_at, steps=config.steps, run=saving, frozen=given, log=log)
        found = calibrated(config, members, frozen, texts, to_host(state.interventions), there)
    return TrainedMembers(config, members, found)
