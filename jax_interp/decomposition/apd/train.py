"""Training an APD decomposition (Braun, Bushnaq, Heimersheim, Mendel & Sharkey 2025, arXiv 2501.14926)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jax_interp.core import optimizers
from jax_interp.core.layer import upcast_leaves
from jax_interp.core.leaves import PyTree
from jax_interp.core.pytrees import register_dataclass
from jax_interp.decomposition.apd.config import APDConfig
from jax_interp.decomposition.apd.losses import apd_losses
from jax_interp.decomposition.components import Components, Decomposed, decompose
from jax_interp.decomposition.training_run import Sample, Seed, Trainer, adam, check_batch, example_of, run_record
from jax_interp.surgery.contract import Model
from jax_interp.training import Log, Place, RunTarget, automatic_step, fit


@register_dataclass
@dataclasses.dataclass(frozen=True)
class APDState:
    """Everything that the next step depends on.

    components: V and U by entry.
    opt: the state of the optimizer.
    key: the run's random key.
    step: the number of steps done.
    """

    components: dict[str, Components]
    opt: PyTree
    key: Key[Array, ""]
    step: Int[Array, ""]


def initial_decomposition(config: APDConfig, model: Model, seed: Seed = None) -> Decomposed:
    """The model decomposed as the config says, with initial components.

    For each component, A `[d_in, rank]` and B `[rank, d_out]` are Xavier-normal values times `init_scale`. `seed`
    replaces the config's seed.
    """
    key = jax.random.key(config.seed if seed is None else seed)
    wide = decompose(model, config.matrices, C=config.C * config.rank, key=key, tied=config.tied)
    scaled = {}
    for name, pair in wide.components.items():
        d_in, d_out, m = pair.V.shape[-2], pair.U.shape[-1], config.rank
        # `decompose` draws V with standard deviation 1/√d_in, and U with 1/√(C m)
        V = pair.V * (d_in**0.5 * config.init_scale * (2 / (d_in + m)) ** 0.5)
        U = pair.U * ((config.C * m) ** 0.5 * config.init_scale * (2 / (m + d_out)) ** 0.5)
        scaled[name] = Components(V, U)
    return dataclasses.replace(wide, components=scaled)


def init_state(config: APDConfig, model: Model, example: PyTree = None, seed: Seed = None) -> APDState:
    """The state before the first step.

    Args:
      config: the config of the run.
      model: the target.
      example: not used.
      seed: an integer, which may be traced; None: the config's seed.
    """
    components = initial_decomposition(config, model, seed).components
    opt = optimizers.init(adam(config.schedule, config.steps, None), components)
    key = jax.random.fold_in(jax.random.key(config.seed if seed is None else seed), 2)
    return APDState(components, opt, key, jnp.zeros((), jnp.int32))


@automatic_step
def apd_step(
    config: APDConfig, state: APDState, x: PyTree, target: Model, rate_scale: Array | None = None
) -> tuple[APDState, dict[str, Array]]:
    """One step on the batch `x`. Returns the next state, and metrics: the total loss and every loss.

    `rate_scale` is a factor of the learning rate.
    """
    components, target, x = state.components, upcast_leaves(target), upcast_leaves(x)
    if config.unit_norm:
        components = {name: Components(_unit_columns(pair.V), pair.U) for name, pair in components.items()}
    total = lambda pairs: apd_losses(config, Decomposed(target, pairs, config.tied), x)
    (loss, metrics), grads = jax.value_and_grad(total, has_aux=True)(components)
    if config.unit_norm:
        grads = {n: Components(_at_right_angles(g.V, components[n].V), g.U) for n, g in grads.items()}
    optimizer = adam(config.schedule, config.steps, None)
    components, opt = optimizers.update(optimizer, grads, state.opt, components, rate_scale)
    return APDState(components, opt, state.key, state.step + 1), {"loss": loss, **metrics}


def train_apd(
    config: APDConfig,
    model: Model,
    *,
    sample: Sample,
    run: RunTarget = None,
    place: Place = None,
    log: Log = Log(),
) -> Decomposed:
    """Train an APD decomposition, from the start or from the last checkpoint of `run`.

    Args:
      config: the config of the run.
      model: the target. Use a toy model, because attributions take one backward pass for each output.
      sample: `sample(key)` draws a batch of `config.batch` rows inside the step.
      run: where and how often the run is saved, as in `training.fit`.
      place: as in `train_decomposition`.
      log: what is logged and shown, as in `training.fit`.

    Returns:
      The decomposed model, with its target in at least float32. Each component consists of `rank` neighbouring
      subcomponents of every matrix.

    Raises:
      UserError: a pattern selects no matrix, the batches do not have `config.batch` rows, or `run` belongs to another
        config or target.
    """
    state = APD.train(config, model, sample=sample, run=run, place=place, log=log)
    return Decomposed(upcast_leaves(model), state.components, config.tied)


def apd_instances(
    config: APDConfig,
    model: Model,
    *,
    seeds: Sequence[int],
    sample: Sample,
    run: RunTarget = None,
    log: Log = Log(),
) -> dict[str, Components]:
    """Train one APD decomposition for each seed, under one `vmap`.

    Args:
      config, model, sample, run, log: as in `train_apd`.
      seeds: one seed for each instance. `run` can be resumed only with the same config, seeds and model.

    Returns:
      V and U by entry, with a leading instance axis.
    """
    example = example_of(sample)
    check_batch(config.batch, example)
    state = APD.init_instances(config, model, seeds=seeds, models=False, example=example)
    step = APD.instances_step(config, sample, state, model, at_once=len(seeds))
    log = log.with_defaults(title=f"{len(seeds)} APD runs", shown=(), every=100)
    saving = run_record(run, config, model, seeds)
    return fit(step, state, steps=config.steps, run=saving, frozen=(model,), log=log).components


def _unit_columns(V: Float[Array, "*layer d_in C"]) -> Float[Array, "*layer d_in C"]:
    return V / jnp.maximum(jnp.linalg.norm(V, axis=-2, keepdims=True), 1e-12)


def _at_right_angles(grad: Array, V: Array) -> Array:
    """The gradient without its component along the columns of V."""
    return grad - jnp.sum(grad * V, axis=-2, keepdims=True) * V


def _data_key(state: APDState) -> Array:
    return jax.random.fold_in(state.key, state.step)


APD = Trainer("APD", ("loss",), init_state, apd_step, _data_key)
