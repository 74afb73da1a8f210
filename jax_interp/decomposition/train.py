"""Train a decomposition by SPD or one of its successors (Bushnaq, Braun & Sharkey 2025; Bushnaq et al. 2026).

One jitted step computes the target's forward pass, the importances, the ascent of persistent adversaries, one backward
pass and the update.

    config = DecompositionConfig(matrices=("linear1",), tied=(("linear1", "linear2"),), C=20, steps=10_000)
    trained = train_decomposition(config, model, sample=lambda key: sparse_features(key, 4096))
    trained.model, trained.ci_fn                      # the decomposed model, its importance function
    trained.importance(x).lower["linear1"]            # [batch, C]

The state is one pytree. The target is an argument of the step: it is not trained, and it is not a constant of the
program. Seeds and coefficients are data, so `train_instances` can train many decompositions in one program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from jax_interp.core import optimizers
from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast_leaves
from jax_interp.core.leaves import PyTree
from jax_interp.core.pytrees import register_dataclass
from jax_interp.decomposition.components import Components, Decomposed, decompose
from jax_interp.decomposition.config import DecompositionConfig
from jax_interp.decomposition.importance import Importance, ImportanceFunction, causal_importance, read_inputs
from jax_interp.decomposition.importance.base import PerMatrix
from jax_interp.decomposition.importance.zero_rows import NonzeroRows, on_nonzero_rows, places_for_batches
from jax_interp.decomposition.losses import Adversary, Loss, LossInputs
from jax_interp.decomposition.losses.base import in_precision
from jax_interp.decomposition.losses.faithfulness import warm_up
from jax_interp.decomposition.metrics.importance import l0
from jax_interp.decomposition.training_run import (
    BatchAt,
    Sample,
    Seed,
    Step,
    Trainer,
    adam,
    check_batch,
    example_of,
    run_record,
)
from jax_interp.surgery.contract import Model
from jax_interp.training import Log, Place, RunTarget, fit


@register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that the next step depends on.

    components: V and U by entry.
    gates: the importance function. It is called `ci_fn` elsewhere, but checkpoints use the name of this field.
    opt_components, opt_gates: the states of their optimizers.
    sources: the states of the persistent adversaries, one for each loss that has an adversary.
    coefficients: the coefficients of the losses, in the order of the config.
    key: the run's random key.
    step: the number of steps done.
    """

    components: dict[str, Components]
    gates: ImportanceFunction
    opt_components: PyTree
    opt_gates: PyTree
    sources: tuple[PyTree, ...]
    coefficients: Float[Array, " loss"]
    key: Key[Array, ""]
    step: Int[Array, ""]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Trained:
    """A decomposed model and its causal importance function.

    model: the decomposed model. Its target is in at least float32, also if the original model is in 16 bits.
    ci_fn: the importance function, `ci_fn(model, inputs)`.
    sigmoid: the name of the pair of sigmoids.
    """

    model: Decomposed
    ci_fn: ImportanceFunction
    sigmoid: str = dataclasses.field(default="leaky_hard", metadata={"static": True})

    def importance(self, *args: Any, **kwargs: Any) -> Importance:
        """The causal importances of all components on one input.

        Args:
          *args: the model's positional arguments.
          **kwargs: the model's keyword arguments.

        Returns:
          The importances by entry, each `[*layer, batch, ..., C]`.
        """
        _, inputs, _ = read_inputs(self.model, *args, **kwargs)
        return causal_importance(self.ci_fn(self.model, inputs), self.sigmoid)


def initial_decomposition(config: DecompositionConfig, model: Model, seed: Seed = None) -> Decomposed:
    """The model decomposed as the config says, with initial V and U. `seed` replaces the config's seed."""
    key = jax.random.key(config.seed if seed is None else seed)
    return decompose(
        model, config.matrices, C=config.C, key=jax.random.fold_in(key, 0), tied=config.tied, init=config.init
    )


def init_state(config: DecompositionConfig, model: Model, example: PyTree, seed: Seed = None) -> TrainState:
    """The state before the first step, after the warm-up of V and U.

    Args:
      config: the config of the run.
      model: the target.
      example: a batch, or its type.
      seed: an integer, which may be traced; None: the config's seed.
    """
    key = jax.random.key(config.seed if seed is None else seed)
    decomposed = initial_decomposition(config, model, seed)
    ci_fn = config.importance.init(jax.random.fold_in(key, 1), decomposed)
    if config.warm_up is not None:
        decomposed = warm_up(
            decomposed, config.warm_up.steps, config.warm_up.learning_rate, config.warm_up.weight_decay
        )

    def values(model: Decomposed, ci_fn: ImportanceFunction, x: PyTree) -> PerMatrix:
        return ci_fn(model, read_inputs(*in_precision(config.compute, (model, x)))[1])

    types = jax.eval_shape(values, decomposed, ci_fn, example)
    sources = [
        adversary.init(jax.random.fold_in(key, 100 + i), types, config.delta)
        for i, _, adversary in _adversaries(config)
    ]
    for_components, for_ci_fn = _optimizers(config)
    return TrainState(
        decomposed.components,
        ci_fn,
        optimizers.init(for_components, decomposed.components),
        optimizers.init(for_ci_fn, ci_fn),
        tuple(sources),
        jnp.asarray([loss.coefficient for loss in config.losses], jnp.float32),
        jax.random.fold_in(key, 2),
        jnp.zeros((), jnp.int32),
    )


def loss_values(
    config: DecompositionConfig, inputs: LossInputs, key: Key[Array, ""], sources: Sequence[PerMatrix]
) -> tuple[Float[Array, " loss"], dict[str, Array]]:
    """Every loss of the config, without its coefficient. Returns the losses as one array, and as metrics by name.

    Args:
      config: the config of the run.
      inputs: the inputs of the loss terms for one batch.
      key: the step's random key.
      sources: the raw sources of the persistent adversaries, one for each loss that has an adversary.
    """
    own = {i: raw for (i, _, _), raw in zip(_adversaries(config), sources, strict=True)}
    values = [loss(inputs, jax.random.fold_in(key, i), own.get(i)) for i, loss in enumerate(config.losses)]
    names = [loss.metric or type(loss).__name__ for loss in config.losses]
    names = [name if names.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(names)]
    return jnp.stack(values), dict(zip(names, values, strict=True))


def train_step(
    config: DecompositionConfig,
    state: TrainState,
    x: PyTree,
    target: Model,
    rate_scale: Array | None = None,
    *,
    places: int | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """One training step, a pure function.

    `partial(train_step, config)` is a step for `training.fit` with the target in `frozen`. Persistent adversaries first
    take ascent steps on this batch with V, U and importances fixed. They take one more step along the gradient of the
    loss.

    Args:
      config: the config of the run.
      state: the state before the step.
      x: the batch of `config.batch` rows.
      target: the model that is decomposed.
      rate_scale: a factor of both learning rates. None: 1.
      places: as in `on_nonzero_rows`. It changes the time of a step, and results only by rounding.

    Returns:
      The state after the step, and metrics: the total loss, every loss, and L0.
    """
    key = jax.random.fold_in(state.key, state.step)
    progress = state.step.astype(jnp.float32) / config.steps
    x = in_precision(config.compute, x)
    template = Decomposed(target, state.components, config.tied)
    needs_hidden = any(loss.needs_hidden for loss in config.losses)
    # computed once, outside the function that is differentiated
    output, inputs, hidden = read_inputs(in_precision(config.compute, template), x, outputs=needs_hidden)

    def loss_inputs(
        components: dict[str, Components], ci_fn: ImportanceFunction, rows: NonzeroRows | None = None
    ) -> LossInputs:
        model = dataclasses.replace(template, components=components)
        values = ci_fn(model, inputs) if rows is None else rows.spread(ci_fn(model, rows.take(inputs)))
        importance = causal_importance(values, config.sigmoid)
        return LossInputs(model, (x,), output, importance, hidden, progress, config.loss_settings)

    sources = state.sources
    if sources:
        constant = loss_inputs(state.components, state.gates).stop_gradient()
        sources = tuple(
            adversary.warm_up(partial(_error_of, loss, constant), jax.random.fold_in(key, 1000 + i), own, progress)
            for (i, loss, adversary), own in zip(_adversaries(config), sources, strict=True)
        )

    def total(
        rows: NonzeroRows | None,
        components: dict[str, Components],
        ci_fn: ImportanceFunction,
        raw: tuple[PerMatrix, ...],
    ) -> tuple[Array, dict[str, Array]]:
        of_batch = loss_inputs(components, ci_fn, rows)
        values, metrics = loss_values(config, of_batch, key, raw)
        metrics["l0"] = sum((jnp.sum(g) for g in l0(of_batch.lower).values()), jnp.zeros(()))
        return jnp.sum(values * state.coefficients), metrics

    raw = tuple(own.raw for own in sources)
    gradient = jax.value_and_grad(total, argnums=(1, 2, 3), has_aux=True)
    of_rows = lambda rows: gradient(rows, state.components, state.gates, raw)
    (value, metrics), grads = on_nonzero_rows(of_rows, inputs, places)
    sources = _climb(config, state, sources, grads[2], progress)
    return _update(config, state, sources, grads[:2], rate_scale), {"loss": value, **metrics}


def train_decomposition(
    config: DecompositionConfig,
    model: Model,
    *,
    sample: Sample | None = None,
    batch_at: BatchAt | None = None,
    run: RunTarget = None,
    place: Place = None,
    log: Log = Log(),
) -> Trained:
    """Train a decomposition, from the start or from the last checkpoint of `run`.

    If a run is killed, the same call resumes it, and the result is the same bit for bit. A run can also be resumed on
    another mesh; its numbers then agree up to rounding.

    Args:
      config: the config of the run.
      model: the target: any model that keeps the surgery contract and takes one batch as its argument.
      sample: `sample(key)` draws a batch of `config.batch` rows inside the step.
      batch_at: `batch_at(step)` returns a batch of `config.batch` rows. Give either `sample` or `batch_at`.
      run: where and how often the run is saved, as in `training.fit`.
      place: a mesh, on which the state, the model and the batches are placed. Or a function that shards the state
        (see `sharding.state_rules`), for use inside `jax.set_mesh(mesh)`. None: one device.
      log: what is logged and shown, as in `training.fit`.

    Returns:
      The decomposed model and its importance function.

    Raises:
      UserError: a pattern selects no matrix, the batches do not have `config.batch` rows, or `run` belongs to another
        config or target.

    Example:
        config = DecompositionConfig(("linear1",), C=20, tied=(("linear1", "linear2"),), steps=10_000, batch=1024)
        trained = train_decomposition(config, model, sample=partial(sparse_features, batch=1024, n=5, probability=0.05))
    """
    state = SPD.train(config, model, sample=sample, batch_at=batch_at, run=run, place=place, log=log)
    return trained_from(config, model, state)


def train_instances(
    config: DecompositionConfig,
    model: Model,
    *,
    seeds: Sequence[int],
    coefficients: Float[Array, "instance loss"] | None = None,
    models: Model | None = None,
    sample: Sample,
    at_once: int | None = None,
    run: RunTarget = None,
    log: Log = Log(),
) -> Trained:
    """Train many decompositions in one program.

    Args:
      config: the config of all instances.
      model: the target of all instances. It is not used if `models` is given.
      seeds: one seed for each instance.
      coefficients: the coefficients of the losses for each instance, in the order of the config; None: those of the
        config.
      models: a different target for each instance, as one model whose leaves have a leading instance axis.
      sample: `sample(key)` draws a batch. Each instance has its own key.
      at_once: the number of instances under one `vmap`. The others run after them in the same step. None: all; on a CPU
        one, because the arrays of many instances do not fit into its caches.
      run: where the runs are saved. They can be resumed only with the same config, seeds, coefficients and models.
      log: what is logged and shown, as in `training.fit`.

    Returns:
      A `Trained` with a leading instance axis on every leaf.

    Raises:
      UserError: the coefficients have the wrong shape; or in the same cases as `train_decomposition`.
    """
    example = example_of(sample)
    check_batch(config.batch, example)
    targets = model if models is None else models
    state = SPD.init_instances(config, targets, seeds=seeds, models=models is not None, example=example)
    if coefficients is not None:
        wanted = (len(seeds), len(config.losses))
        if coefficients.shape != wanted:
            raise UserError(f"coefficients have shape {coefficients.shape}: one row an instance, {wanted}")
        state = dataclasses.replace(state, coefficients=jnp.asarray(coefficients, jnp.float32))
    step = SPD.instances_step(config, sample, state, targets, at_once=at_once, models=models is not None)
    log = log.with_defaults(shown=(), title=f"{len(seeds)} decompositions", every=100)
    saving = run_record(run, config, targets, seeds, coefficients)
    state = fit(step, state, steps=config.steps, run=saving, frozen=(targets,), log=log)
    if models is None:
        targets = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(seeds), *x.shape)), model)
    return trained_from(config, targets, state)


def trained_from(config: DecompositionConfig, model: Model, state: TrainState) -> Trained:
    """The decomposition in a training state. The target is in at least float32, as in the training step."""
    return Trained(Decomposed(upcast_leaves(model), state.components, config.tied), state.gates, config.sigmoid)


def _optimizers(config: DecompositionConfig) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """The optimizer of V and U, and the optimizer of the importance function."""
    return (
        adam(config.schedule, config.steps, config.clip),
        adam(config.importance_schedule or config.schedule, config.steps, config.importance_clip),
    )


def _adversaries(config: DecompositionConfig) -> list[tuple[int, Loss, Adversary]]:
    """The losses with a persistent adversary, as (index among all losses, loss, adversary)."""
    return [(i, loss, loss.adversary) for i, loss in enumerate(config.losses) if loss.adversary is not None]


def _error_of(loss: Loss, inputs: LossInputs, key: Array, raw: PerMatrix) -> Array:
    return loss(inputs, key, raw)


def _climb(config: DecompositionConfig, state: TrainState, sources: tuple, grads: tuple, progress: Array) -> tuple:
    """The adversaries after one step along the gradients of their losses.

    The gradients come from the total loss, in which each loss is multiplied by its coefficient. The coefficient is
    divided out, because Adam's eps does not scale with it.
    """

    def own_gradient(i: int, grad: Array) -> Array:
        coefficient = state.coefficients[i]
        return grad / jnp.where(coefficient == 0, 1.0, coefficient)

    return tuple(
        adversary.climb(own, jax.tree.map(partial(own_gradient, i), grad), progress)
        for (i, _, adversary), own, grad in zip(_adversaries(config), sources, grads, strict=True)
    )


def _update(
    config: DecompositionConfig, state: TrainState, sources: tuple, grads: Sequence[PyTree], rate_scale: Array | None
) -> TrainState:
    """The state after a step along the gradients of the components and of the importance function."""
    for_components, for_ci_fn = _optimizers(config)
    components, opt_components = optimizers.update(
        for_components, grads[0], state.opt_components, state.components, rate_scale
    )
    ci_fn, opt_ci_fn = optimizers.update(for_ci_fn, grads[1], state.opt_gates, state.gates, rate_scale)
    return TrainState(
        components, ci_fn, opt_components, opt_ci_fn, sources, state.coefficients, state.key, state.step + 1
    )


def _data_key(state: TrainState) -> Array:
    return jax.random.fold_in(jax.random.fold_in(state.key, state.step), 0x5A)


def _adapted(
    config: DecompositionConfig, state: TrainState, target: Model, batch: Callable[[], PyTree]
) -> Step[TrainState]:
    def read(x: PyTree) -> PerMatrix:
        model = Decomposed(target, state.components, config.tied)
        return read_inputs(*in_precision(config.compute, (model, x)))[1]

    places = places_for_batches(read, batch) if config.importance.row_by_row else None
    return partial(train_step, config, places=places)


SPD = Trainer("decomposition", ("loss", "l0"), init_state, train_step, _data_key, _adapted)
