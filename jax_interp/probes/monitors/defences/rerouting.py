"""Representation rerouting, or circuit breakers (Zou et al. 2024, arXiv:2406.04313, algorithm 1).

Adapters are trained so that the representation of harmful responses points away from where it was, and that of benign
text stays. There is no alarm: a harmful response falls apart as the model writes it.

    c_s = α (1 - t / 2T),   c_r = α t / 2T
    loss = c_s mean ReLU(cos(h(x_s), h₀(x_s))) + c_r mean ‖h(x_r) - h₀(x_r)‖₂
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core import optimizers
from jax_interp.core.errors import UserError
from jax_interp.core.objectives import masked_mean
from jax_interp.core.pytrees import register_dataclass
from jax_interp.models.sharding import rules_for
from jax_interp.probes.monitors.defences.adapters import ADAPTERS, Adapters, moved, split_adapters
from jax_interp.probes.monitors.defences.defended import Defended
from jax_interp.probes.monitors.defences.examples import DefenceData, Texts, draws, wide
from jax_interp.probes.monitors.defences.retention import HIDDEN, hidden_distance, norm
from jax_interp.surgery import Model, depth_of, values_at
from jax_interp.training import Log, Place, RunTarget, SaveTo, automatic_step, fit, placed
from jax_interp.training.placement import replicated


@dataclasses.dataclass(frozen=True)
class ReroutingConfig:
    """How a model is rerouted. The defaults of `alpha`, `steps` and the adapters' rank are those of the paper's code.

    The published code drops the request of half of the harmful examples. Here the loss reads the tokens of the response
    only, and the request stays.
    """

    layers: tuple[int, ...]
    """The layers whose residual stream is rerouted, after the block. The paper takes 10 and 20 of 32."""
    alpha: float = 10.0
    steps: int = 150
    """T. At the last step c_s is about α/2."""
    batch: int = 16
    """The number of harmful examples in a step, and of benign examples."""
    learning_rate: float = 1e-4
    start: float = 0.01
    """The standard deviation of the noise that is added to the adapters at the start. With b = 0 the gradient of both
    losses is 0, because the cosine is at its maximum: the first step would follow rounding errors, and the run may stay
    where it is."""
    adapters: Adapters = ADAPTERS
    """By default every layer is adapted. The paper adapts the layers up to the last one that is rerouted."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.layers or self.steps < 1 or not self.alpha > 0:
            raise UserError(f"rerouting needs layers, at least one step and alpha above 0: {self}")


@register_dataclass
@dataclasses.dataclass(frozen=True)
class AdapterState:
    """The state of a run: the adapters, the optimizer, and the number of steps that are done."""

    adapters: Any
    opt: optax.OptState
    step: Int[Array, ""]


def coefficients(config: ReroutingConfig, step: Int[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(c_s, c_r) of a step, counted from 0."""
    progress = step.astype(jnp.float32) / (2 * config.steps)
    return config.alpha * (1 - progress), config.alpha * progress


def rerouting_loss(
    new: Float[Array, "layer example pos d"], old: Float[Array, "layer example pos d"], read: Bool[Array, "example pos"]
) -> Float[Array, ""]:
    """L_s: the mean over layers and tokens of ReLU(cos(new, old)). It is 1 if nothing has changed.

    Args:
      new: values of the adapted model on harmful examples.
      old: the same values of the untouched model.
      read: the tokens of the response. Padding is left out.
    """
    new, old = wide(new), wide(old)
    size = norm(new) * norm(old)
    cosine = jnp.sum(new * old, axis=-1) / jnp.where(size > 0, size, 1.0)
    return masked_mean(jax.nn.relu(cosine), jnp.broadcast_to(read[None], cosine.shape))


def rerouting_losses(
    config: ReroutingConfig, adapted: Model, untouched: Model, harmful: Texts, retain: Texts
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(L_s, L_r): the rerouting loss at the layers of the config, and the retain loss at all layers.

    Args:
      config: the layers.
      adapted: the model with adapters.
      untouched: the model without.
      harmful: harmful requests with responses.
      retain: benign text.
    """
    sites = [f"blocks.{layer}.resid_post" for layer in config.layers]
    stacked = lambda model: jnp.stack([values_at(model, *sites)(harmful.tokens, mask=harmful.mask)[s] for s in sites])
    whole = lambda model: values_at(model, HIDDEN)(retain.tokens, mask=retain.mask)[HIDDEN]
    reroute = rerouting_loss(stacked(adapted), stacked(untouched), harmful.response)
    return reroute, hidden_distance(whole(adapted), whole(untouched), retain.mask)


@automatic_step
def rerouting_step(
    config: ReroutingConfig, state: AdapterState, batch: tuple[Texts, Texts], rest: Any, untouched: Model
) -> tuple[AdapterState, dict[str, Any]]:
    """One step of the adapters.

    Args:
      config: the schedules, the layers and the optimizer.
      state: the adapters and the optimizer's state.
      batch: harmful examples, and benign ones.
      rest: the parts of the model that are not trained.
      untouched: the model without adapters.

    Returns:
      The next state, and the metrics `loss`, `reroute` (L_s) and `retain` (L_r).
    """
    harmful, retain = batch
    c_s, c_r = coefficients(config, state.step)

    def loss(adapters: Any) -> tuple[Array, tuple[Array, Array]]:
        adapted = config.adapters.joined(adapters, rest)
        reroute, keep = rerouting_losses(config, adapted, untouched, harmful, retain)
        return c_s * reroute + c_r * keep, (reroute, keep)

    (value, (reroute, keep)), grads = jax.value_and_grad(loss, has_aux=True)(state.adapters)
    adapters, opt = optimizers.update(optax.adam(config.learning_rate), grads, state.opt, state.adapters)
    metrics = {"loss": value, "reroute": reroute, "retain": keep}
    return AdapterState(adapters, opt, state.step + 1), metrics


def reroute(
    config: ReroutingConfig,
    model: Model,
    data: DefenceData,
    *,
    run: RunTarget = None,
    place: Place = None,
    log: Log = Log(),
) -> Defended:
    """Train circuit breakers into a model (Zou et al. 2024).

    Args:
      config: the layers, the schedules and the adapters.
      model: the model.
      data: `train` has the harmful examples, `retain` the benign ones.
      run: where the run is saved, as in `training.fit`. A run that was killed resumes from its last checkpoint.
      place: a mesh, a function, or None, as in `training.placed`.
      log: what is shown and logged.

    Returns:
      The rerouted model, without an alarm.

    Raises:
      UserError: a layer does not exist, or a part of the adapters.
    """
    depth = depth_of(model)
    if not config.start > 0:
        raise UserError(f"start={config.start} must be above 0: with b = 0 the losses have no gradient")
    if bad := [layer for layer in config.layers if not 0 <= layer < depth]:
        raise UserError(f"there is no layer {bad[0]} to reroute: the model has the layers 0 to {depth - 1}")
    harmful = draws(data.train.take(data.train.labels == 1), config.batch, config.seed)
    retain = draws(data.retain, config.batch, config.seed + 1)
    log = log.with_defaults(shown=("reroute", "retain"), title="rerouting")
    with placed(place, replicated) as there:
        untouched = there.frozen(model, rules_for(model))
        key, moves = jax.random.split(jax.random.key(config.seed))
        adapters, rest = split_adapters(config.adapters.into(untouched, key))
        adapters = moved(adapters, config.start, moves)
        opt = optimizers.init(optax.adam(config.learning_rate), adapters)
        state = there.state(AdapterState(adapters, opt, jnp.zeros((), jnp.int32)))
        rest = there.frozen(rest, replicated(rest))
        batch_at = there.batches(lambda step: (harmful(step), retain(step)))
        step = partial(rerouting_step, config)
        frozen, saving = (rest, untouched), SaveTo.of(run, config)
        state = fit(step, state, batch_at, steps=config.steps, run=saving, frozen=frozen, log=log)
    return Defended(config.adapters.joined(state.adapters, rest))
