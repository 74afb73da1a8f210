"""Training a decomposition: one jitted step of the target's forward, the importance function's, the adversary's, one
backward pass and the update.

    config = DecompositionConfig(matrices=("linear1",), tied=(("linear1", "linear2"),), C=20, steps=10_000)
    trained = train_decomposition(config, model, sample=lambda key: sparse_features(key, 4096))
    trained.model, trained.gates                      # the decomposed model, its importance function
    trained.importance(x).lower["linear1"]            # [batch, C]

The state is one pytree; the target is an argument of the step, so it is neither trained nor a constant of the program.
Seeds and coefficients are data: `train_instances` runs many in one program, as many under one `vmap` as pays.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from jax_interp.core import optimizers as optimizer
from jax_interp.core.errors import UserError
from jax_interp.decomposition.components import Decomposed, decompose
from jax_interp.decomposition.config import DecompositionConfig, Schedule
from jax_interp.decomposition.importance import Importance, causal_importance, init_importance, read_inputs
from jax_interp.decomposition.losses import HiddenReconstruction, Merged, PersistentPGD, Scene
from jax_interp.decomposition.losses.adversary import held
from jax_interp.decomposition.losses.faithfulness import warm_up
from jax_interp.decomposition.losses.scene import in_precision
from jax_interp.decomposition.matrices import check_tied
from jax_interp.decomposition.metrics.sparsity import l0
from jax_interp.training import Log, Run, RunTarget, SaveTo, fit
from jax_interp.training.fingerprint import fingerprints


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that the next step depends on. `sources` are the persistent adversaries', one for each loss that has one."""

    components: Any
    gates: Any
    opt_components: Any
    opt_gates: Any
    sources: tuple[Any, ...]
    coefficients: Float[Array, " loss"]
    key: Key[Array, ""]
    step: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a run directory belongs to: stored as its config, so that nothing else is taken up in it. `targets` is a
    hash of the weights that are decomposed; `seeds` and `coefficients` are of many instances, one row each."""

    config: Any
    targets: str
    seeds: tuple[int, ...] | None = None
    coefficients: tuple[tuple[float, ...], ...] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trained:
    """A decomposed model and the function that says how important its components are."""

    model: Decomposed
    gates: Any
    sigmoid: str = dataclasses.field(default="leaky_hard", metadata={"static": True})

    def importance(self, *args: Any, **kwargs: Any) -> Importance:
        """Of every component, on this input."""
        _, inputs, _ = read_inputs(self.model, *args, **kwargs)
        return causal_importance(self.gates(self.model, inputs), self.sigmoid)


def rate(schedule: Schedule, steps: int) -> Callable[[Any], Array]:
    """The learning rate of step 0, 1, ... of `steps`."""
    up = int(schedule.warm_up * steps)

    def at(count: Any) -> Array:
        t = jnp.asarray(count, jnp.float32)
        along = jnp.clip((t - up) / max(steps - up - 1, 1), 0.0, 1.0)
        if schedule.kind == "cosine":
            factor = schedule.final + (1 - schedule.final) * 0.5 * (1 + jnp.cos(math.pi * along))
        elif schedule.kind == "quarter_cosine":
            factor = jnp.cos(0.5 * math.pi * along)
        elif schedule.kind == "linear":
            factor = 1 + (schedule.final - 1) * along
        else:
            factor = jnp.ones_like(t)
        return schedule.rate * factor * (jnp.minimum(1.0, (t + 1) / up) if up else 1.0)

    return at


def adam(schedule: Schedule, steps: int, clip: float | None) -> optax.GradientTransformation:
    """Adam by this schedule, after clipping to the norm `clip`."""
    chain = [optax.clip_by_global_norm(clip)] if clip else []
    return optax.chain(*chain, optax.adam(rate(schedule, steps)))


def record(
    run: RunTarget,
    config: Any,
    targets: Any,
    seeds: Sequence[int] | None = None,
    coefficients: Any = None,
) -> SaveTo:
    """`run` with its `RunRecord` as the config to store; as it is where nothing is saved and where the run is open."""
    saving = SaveTo.of(run)
    if saving.run is None or isinstance(saving.run, Run):
        return saving
    prints = json.dumps(fingerprints(jax.tree.map(jnp.asarray, targets)))
    rows = None if coefficients is None else tuple(tuple(row) for row in np.asarray(coefficients, np.float64).tolist())
    stored = RunRecord(
        config,
        hashlib.sha256(prints.encode()).hexdigest()[:16],
        None if seeds is None else tuple(int(seed) for seed in seeds),
        rows,
    )
    return SaveTo.of(saving, stored)


def check_batch(batch: int, example: Any) -> None:
    """Raises UserError where the data has another number of rows than the config, which is what a run records."""
    have = {leaf.shape[0] for leaf in jax.tree.leaves(example)}
    if have != {batch}:
        rows = " and ".join(map(str, sorted(have)))
        raise UserError(
            f"batch={batch} in the config, and {rows} rows in what is trained on: give both the same number"
        )


def _optimizers(config: DecompositionConfig) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    return (
        adam(config.schedule, config.steps, config.clip),
        adam(config.importance_schedule or config.schedule, config.steps, config.importance_clip),
    )


def persistent(config: DecompositionConfig) -> list[tuple[int, PersistentPGD | Merged]]:
    """The losses that have an adversary in the training state, and their places among all."""
    return [(i, loss) for i, loss in enumerate(config.losses) if isinstance(loss, (PersistentPGD, Merged))]


def template(config: DecompositionConfig, model: Any, seed: Any = None) -> Decomposed:
    """The model decomposed as the config says, V and U as drawn."""
    key = jax.random.key(config.seed if seed is None else seed)
    return decompose(
        model, config.matrices, C=config.C, key=jax.random.fold_in(key, 0), tied=config.tied, init=config.init
    )


def start(config: DecompositionConfig, model: Any, example: Any, *, seed: Any = None) -> TrainState:
    """The state before the first step, V and U warmed up. `example` is a batch, or its type."""
    key = jax.random.key(config.seed if seed is None else seed)
    decomposed = template(config, model, seed)
    gates = init_importance(config.importance, jax.random.fold_in(key, 1), decomposed)
    if config.warm_up is not None:
        decomposed = warm_up(
            decomposed, config.warm_up.steps, config.warm_up.learning_rate, config.warm_up.weight_decay
        )
    look = lambda model, gates, x: gates(model, read_inputs(model, x)[1])
    types = jax.eval_shape(look, decomposed, gates, example)
    sources = [
        loss.adversary.start(jax.random.fold_in(key, 100 + i), types, config.delta) for i, loss in persistent(config)
    ]
    for_components, for_gates = _optimizers(config)
    return TrainState(
        decomposed.components,
        gates,
        optimizer.init(for_components, decomposed.components),
        optimizer.init(for_gates, gates),
        tuple(sources),
        jnp.asarray([loss.coefficient for loss in config.losses], jnp.float32),
        jax.random.fold_in(key, 2),
        jnp.zeros((), jnp.int32),
    )


def losses(
    config: DecompositionConfig, scene: Scene, key: Array, sources: Sequence[Any]
) -> tuple[Float[Array, " loss"], dict[str, Array]]:
    """Every loss of the config, unweighted, and as metrics by name."""
    mine = {i: raw for (i, _), raw in zip(persistent(config), sources, strict=True)}
    found = [loss(scene, jax.random.fold_in(key, i), mine.get(i)) for i, loss in enumerate(config.losses)]
    names = [type(loss).__name__ for loss in config.losses]
    names = [name if names.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(names)]
    return jnp.stack(found), dict(zip(names, found, strict=True))


def train_step(
    config: DecompositionConfig, state: TrainState, x: Any, target: Any
) -> tuple[TrainState, dict[str, Array]]:
    """One step on the batch `x`. Pure; `partial(train_step, config)` is a `fit` step with the target among `frozen`.

    Persistent adversaries climb on this batch first, by the importances as they are, and once more with the gradient
    of the loss itself.
    """
    key = jax.random.fold_in(state.key, state.step)
    progress = state.step.astype(jnp.float32) / config.steps
    x = in_precision(config.compute, x)
    template = Decomposed(target, state.components, config.tied)
    wants_hidden = any(isinstance(loss, HiddenReconstruction) for loss in config.losses)
    # once, outside what is differentiated
    output, inputs, hidden = read_inputs(in_precision(config.compute, template), x, outputs=wants_hidden)

    def scene_at(components: Any, gates: Any) -> Scene:
        model = dataclasses.replace(template, components=components)
        importance = causal_importance(gates(model, inputs), config.sigmoid)
        return Scene(
            model, (x,), output, importance, hidden, progress, config.delta, config.sampling, config.compare,
            config.remat, config.compute,
        )  # fmt: skip

    sources = state.sources
    if sources:
        still = held(scene_at(state.components, state.gates))
        sources = tuple(
            loss.adversary.before(partial(_error_of, loss, still), jax.random.fold_in(key, 1000 + i), mine, progress)
            for (i, loss), mine in zip(persistent(config), sources, strict=True)
        )

    def total(components: Any, gates: Any, raw: Any) -> tuple[Array, dict[str, Array]]:
        scene = scene_at(components, gates)
        values, metrics = losses(config, scene, key, raw)
        metrics["l0"] = sum((jnp.sum(g) for g in l0(scene.importance.lower).values()), jnp.zeros(()))
        return jnp.sum(values * state.coefficients), metrics

    raw = tuple(mine.raw for mine in sources)
    (value, metrics), grads = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(
        state.components, state.gates, raw
    )
    own = [jax.tree.map(partial(_over_coefficient, state.coefficients[i]), g)
           for (i, _), g in zip(persistent(config), grads[2], strict=True)]  # fmt: skip
    sources = tuple(
        loss.adversary.climb(mine, grad, progress)
        for (_, loss), mine, grad in zip(persistent(config), sources, own, strict=True)
    )
    for_components, for_gates = _optimizers(config)
    components, opt_components = optimizer.update(for_components, grads[0], state.opt_components, state.components)
    gates, opt_gates = optimizer.update(for_gates, grads[1], state.opt_gates, state.gates)
    after = TrainState(
        components, gates, opt_components, opt_gates, sources, state.coefficients, state.key, state.step + 1
    )
    return after, {"loss": value, **metrics}


def _error_of(loss: Any, scene: Scene, key: Array, raw: Any) -> Array:
    return loss(scene, key, raw)


def _over_coefficient(coefficient: Array, grad: Array) -> Array:
    """The gradient of a loss from that of what it adds to the total: Adam's eps does not scale with coefficients."""
    return grad / jnp.where(coefficient == 0, 1.0, coefficient)


def sampled_step(
    config: DecompositionConfig,
    sample: Callable[[Array], Any],
    state: TrainState,
    number: Any,
    target: Any,
) -> tuple[TrainState, dict[str, Array]]:
    """`train_step` on `sample(key)`, drawn inside the same program; `number` is not looked at."""
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 0x5A)
    return train_step(config, state, sample(key), target)


def train_decomposition(
    config: DecompositionConfig,
    model: Any,
    *,
    sample: Callable[[Array], Any] | None = None,
    batch_at: Callable[[int], Any] | None = None,
    run: RunTarget = None,
    place: Callable[[TrainState], TrainState] | None = None,
    log: Log = Log(),
) -> Trained:
    """Train from the start, or from the last checkpoint of `run`. Data is drawn in the step by `sample(key)`, or comes
    as `batch_at(number)`. `run` and `log` are as in `training.fit`. The same call after a kill ends with the same bits.
    On a mesh `place` puts the state where it is to live (`sharding.state_rules`); the model and batches come placed.
    """
    step, example = _step(config, sample, batch_at)
    check_batch(config.batch, example)
    state = start(config, model, example)
    state = state if place is None else place(state)
    log = log.with_defaults(shown=("loss", "l0"), title="decomposition", every=100)
    state = fit(
        step,
        state,
        batch_at,
        steps=config.steps,
        run=record(run, config, model),
        frozen=(model,),
        log=log,
    )
    return trained(config, model, state)


def train_instances(
    config: DecompositionConfig,
    model: Any,
    *,
    seeds: Sequence[int],
    coefficients: Float[Array, "instance loss"] | None = None,
    models: Any = None,
    sample: Callable[[Array], Any],
    at_once: int | None = None,
    run: RunTarget = None,
    log: Log = Log(),
) -> Trained:
    """Many runs in one program: a leading instance axis everywhere in what is returned. `run` goes on only with the
    config, seeds, coefficients and models that it was begun with.

    `at_once` of them are under one `vmap`, the others after them in the same step. None: all, and on a CPU one, where
    the arrays of many leave its caches and cost more than they save.

    `coefficients` are of the losses in the config's order, one row an instance. `models` is the target with a leading
    instance axis on its leaves, where instances decompose different ones; `model` is then one of them, for its shape.
    """
    example = jax.eval_shape(sample, jax.random.key(0))
    check_batch(config.batch, example)
    one = lambda seed, model: start(config, model, example, seed=seed)
    places = (0, None if models is None else 0)
    targets = model if models is None else models
    if config.tied:  # inside jit weights have no values to compare
        for i in range(1 if models is None else len(seeds)):
            check_tied(model if models is None else jax.tree.map(lambda leaf, i=i: leaf[i], models), config.tied)
    state = jax.jit(jax.vmap(one, places))(jnp.asarray(seeds, jnp.uint32), targets)
    if coefficients is not None:
        wanted = (len(seeds), len(config.losses))
        if coefficients.shape != wanted:
            raise UserError(f"coefficients have shape {coefficients.shape}: one row an instance, {wanted}")
        state = dataclasses.replace(state, coefficients=jnp.asarray(coefficients, jnp.float32))
    step = instances_step(config, sample, at_once, with_models=models is not None)
    log = log.with_defaults(shown=(), title=f"{len(seeds)} decompositions", every=100)
    saving = record(run, config, targets, seeds, coefficients)
    state = fit(step, state, steps=config.steps, run=saving, frozen=(targets,), log=log)
    if models is None:
        targets = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(seeds), *x.shape)), model)
    return trained(config, targets, state)


def instances_step(
    config: DecompositionConfig, sample: Callable[[Array], Any], at_once: int | None = None, with_models: bool = False
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """`sampled_step` of states with a leading instance axis (and, `with_models`, of targets with one)."""
    if at_once is None and jax.default_backend() == "cpu":
        at_once = 1

    def step(state: TrainState, number: Any, target: Any) -> tuple[TrainState, dict[str, Array]]:
        one = lambda both: sampled_step(config, sample, both[0], number, both[1] if with_models else target)
        return jax.lax.map(one, (state, target if with_models else ()), batch_size=at_once or state.step.shape[0])

    return step


def trained(config: DecompositionConfig, model: Any, state: TrainState) -> Trained:
    """What a state has learned so far."""
    return Trained(Decomposed(model, state.components, config.tied), state.gates, config.sigmoid)


def _step(config: DecompositionConfig, sample: Any, batch_at: Any) -> tuple[Callable, Any]:
    if (sample is None) == (batch_at is None):
        raise UserError("a decomposition draws its data by sample(key), or is given batch_at(number): one of the two")
    if sample is not None:
        return partial(sampled_step, config, sample), jax.eval_shape(sample, jax.random.key(0))
    assert batch_at is not None
    return partial(train_step, config), batch_at(0)
