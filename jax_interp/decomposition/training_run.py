"""Code that the trainers of all decomposition methods share: training loops, the record of a run, learning rates."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Int, Key

from jax_interp.core import optimizers
from jax_interp.core.errors import UserError
from jax_interp.core.leaves import PyTree
from jax_interp.decomposition.components import Components
from jax_interp.decomposition.config import MethodConfig, Schedule
from jax_interp.decomposition.matrices import check_tied
from jax_interp.decomposition.sharding import state_rules
from jax_interp.models.sharding import rules_for
from jax_interp.surgery.contract import Model
from jax_interp.training import Log, Place, Run, RunTarget, SaveTo, fit, placed, split_rows
from jax_interp.training.fingerprint import fingerprints
from jax_interp.training.planning.planned import PlannedStep
from jax_interp.training.sharding import used

Sample = Callable[[Key[Array, ""]], PyTree]
"""`sample(key)` draws one batch."""
Seed = int | Array | None
"""A seed, which may be traced; None: the config's seed."""
BatchAt = Callable[[int], PyTree]
"""`batch_at(step)` returns one batch."""
Config = TypeVar("Config", bound=MethodConfig)


class State(Protocol):
    """A training state: any pytree with the fields `components` and `step`, the number of steps done."""

    @property
    def components(self) -> dict[str, Components]: ...

    @property
    def step(self) -> Int[Array, ""]: ...


S = TypeVar("S", bound=State)
Step = Callable[[S, PyTree, Model], tuple[S, dict[str, Array]]]
"""`step(state, batch or step number, target)` returns the next state and metrics, as `training.fit` requires."""


@dataclasses.dataclass(frozen=True)
class Trainer(Generic[Config, S]):
    """The functions that differ between decomposition methods.

    title: the title of the progress display.
    shown: the metrics on the progress display.
    init: `init(config, model, example, seed)` returns the state before the first step. `example` is a batch or its
      type. If the seed is None, the config's seed is used.
    step: `step(config, state, x, target, rate_scale)` does one step on the batch x and returns `(state, metrics)`.
      `rate_scale` is a factor of the learning rates, None for 1.
    data_key: returns the random key of the next batch.
    adapted: `adapted(config, state, target, batch)` returns `step` for this config, in the form that is fastest for
      batches like `batch()`; None: there is only one form.
    """

    title: str
    shown: tuple[str, ...]
    init: Callable[[Config, Model, PyTree, Seed], S]
    step: Callable[..., tuple[S, dict[str, Array]]]
    data_key: Callable[[S], Key[Array, ""]]
    adapted: Callable[[Config, S, Model, Callable[[], PyTree]], Callable[..., Any]] | None = None

    def step_for(self, config: Config, state: S, target: Model, batch: Callable[[], PyTree]) -> Callable[..., Any]:
        """The step of a run whose batches are like `batch()`: `step` without its config."""
        return partial(self.step, config) if self.adapted is None else self.adapted(config, state, target, batch)

    def sampled_step(self, config: Config, sample: Sample, state: S, target: Model) -> Callable[..., Any]:
        """The step of a run that draws its batches by `sample(key)`, inside the same program.

        The function that is returned takes the number of the batch in place of the batch. `state` and `target` are
        those of the start.
        """

        step = self.step_for(config, state, target, lambda: jax.jit(partial(self._drawn, sample))(state, 0))

        def sampled(
            state: S, number: int | Array, target: Model, rate_scale: Array | None = None
        ) -> tuple[S, dict[str, Array]]:
            return step(state, split_rows(self._drawn(sample, state, number)), target, rate_scale)

        return sampled

    def _drawn(self, sample: Sample, state: S, number: int | Array) -> PyTree:
        """The batch with this number."""
        of_batch = dataclasses.replace(state, step=jnp.asarray(number, jnp.int32))  # pyright: ignore[reportArgumentType]
        return sample(self.data_key(of_batch))

    def train(
        self,
        config: Config,
        model: Model,
        *,
        sample: Sample | None = None,
        batch_at: BatchAt | None = None,
        run: RunTarget = None,
        place: Place = None,
        log: Log = Log(),
    ) -> S:
        """Do a whole run and return the last state. See `train_decomposition` for the arguments."""
        if (sample is None) == (batch_at is None):
            raise UserError("give the data as sample= or as batch_at=: exactly one of them is needed")
        split = rules_for(model)
        log = log.with_defaults(shown=self.shown, title=self.title, every=100)
        with placed(place, lambda state: state_rules(state, split)) as there:
            model = there.frozen(model, split)
            if sample is not None:
                example = example_of(sample)
            else:
                assert batch_at is not None
                batch_at = there.batches(batch_at)
                example = batch_at(0)
            check_batch(config.batch, example)
            state = there.state(self.init(config, model, example, None))
            if sample is not None:
                step = self.sampled_step(config, sample, state, model)
            else:
                step = self.step_for(config, state, model, lambda: example)
            saving = run_record(run, config, model)
            return fit(step, state, batch_at, steps=config.steps, run=saving, frozen=(model,), log=log)

    def planned(
        self, config: Config, model: Model, example: PyTree, tokens: int, sample: Sample | None = None
    ) -> PlannedStep:
        """The step of `train`, from the shapes of the target and of a batch (`training.planning`).

        Args:
          config: the config of the run.
          model: the target, or its shapes.
          example: the shapes of a batch.
          tokens: the number of tokens (or rows) of a batch.
          sample: draws a batch inside the step, as in `train`. None: the batch is an argument of the step.
        """
        check_batch(config.batch, example)
        split = rules_for(model)
        state = jax.eval_shape(lambda model: self.init(config, model, example, None), model)
        batch = example if sample is None else jax.ShapeDtypeStruct((), jnp.int32)

        def sampled(state: S, number: Array, target: Model) -> tuple[S, dict[str, Array]]:
            assert sample is not None
            return self.step(config, state, split_rows(self._drawn(sample, state, number)), target)

        step = partial(self.step, config) if sample is None else sampled
        rules = used(state_rules(state, split), state)
        return PlannedStep(step, state, batch, ((model, split),), rules, _kind_of, config.steps, tokens)

    def init_instances(
        self, config: Config, targets: Model, *, seeds: Sequence[int], models: bool, example: PyTree
    ) -> S:
        """Initial states of many runs, with a leading instance axis."""
        if config.tied:  # checked here, because inside jit there are no values to compare
            for i in range(len(seeds) if models else 1):
                check_tied(jax.tree.map(lambda leaf, i=i: leaf[i], targets) if models else targets, config.tied)
        init = lambda seed, model: self.init(config, model, example, seed)
        return jax.jit(jax.vmap(init, (0, 0 if models else None)))(jnp.asarray(seeds, jnp.uint32), targets)

    def instances_step(
        self,
        config: Config,
        sample: Sample,
        states: S,
        targets: Model,
        *,
        at_once: int | None = None,
        models: bool = False,
    ) -> Step[S]:
        """A step like `sampled_step` for states with a leading instance axis.

        Args:
          config: the config of all instances.
          sample: draws the batch of each instance. Each instance has its own key.
          states, targets: those of the start.
          at_once: the number of instances under one `vmap`. The others run after them in the same step. None: all; on a
            CPU one, because the arrays of many instances do not fit into its caches.
          models: whether the targets have an instance axis too.
        """
        if at_once is None:
            at_once = 1 if jax.default_backend() == "cpu" else states.step.shape[0]
        if at_once == 1:
            first = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)
            one_step = self.sampled_step(config, sample, first(states), first(targets) if models else targets)
        else:  # under vmap, all branches of an adapted step would be computed
            plain = dataclasses.replace(self, adapted=None)
            one_step = plain.sampled_step(config, sample, states, targets)

        def step(
            state: S, number: int | Array, target: Model, rate_scale: Array | None = None
        ) -> tuple[S, dict[str, Array]]:
            one = lambda both: one_step(both[0], number, both[1] if models else target, rate_scale)
            return jax.lax.map(one, (state, target if models else ()), batch_size=None if at_once == 1 else at_once)

        return step


def _kind_of(address: str) -> str:
    """What a leaf of a training state is, for `training.planning`."""
    first = address.partition(".")[0]
    return "optimizer" if first.startswith("opt") else "trained" if first in ("components", "gates") else "state"


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What identifies a run. It is stored as the config of the run directory, so no other run can continue there.

    config: the config of the method.
    targets: a hash of the target's weights.
    seeds, coefficients: for runs of many instances, one seed and one row of coefficients for each instance.
    """

    config: MethodConfig
    targets: str
    seeds: tuple[int, ...] | None = None
    coefficients: tuple[tuple[float, ...], ...] | None = None


def run_record(
    run: RunTarget,
    config: MethodConfig,
    targets: PyTree,
    seeds: Sequence[int] | None = None,
    coefficients: Float[Array, "instance loss"] | None = None,
) -> SaveTo:
    """`run` with a `RunRecord` as the config to store. If nothing is saved or the run is open, `run` is unchanged."""
    saving = SaveTo.of(run)
    if saving.run is None or isinstance(saving.run, Run):
        return saving
    prints = json.dumps(fingerprints(jax.tree.map(jnp.asarray, targets)))
    rows = None if coefficients is None else tuple(tuple(row) for row in np.asarray(coefficients, np.float64).tolist())
    record = RunRecord(
        config,
        hashlib.sha256(prints.encode()).hexdigest()[:16],
        None if seeds is None else tuple(int(seed) for seed in seeds),
        rows,
    )
    return SaveTo.of(saving, record)


def example_of(sample: Sample) -> PyTree:
    """The types of a batch."""
    return jax.eval_shape(sample, jax.random.key(0))


def check_batch(batch: int, example: PyTree) -> None:
    """Raises UserError if a batch of the data does not have as many rows as the config says."""
    have = {leaf.shape[0] for leaf in jax.tree.leaves(example)}
    if have != {batch}:
        rows = " and ".join(map(str, sorted(have)))
        raise UserError(
            f"batch={batch} in the config, but a batch of the data has {rows} rows: make both numbers equal"
        )


def rate(schedule: Schedule, steps: int) -> Callable[[ArrayLike], Array]:
    """The learning rate as a function of the step, which is counted from 0, in a run of `steps` steps."""
    up = int(schedule.warm_up * steps)

    def at(count: ArrayLike) -> Array:
        step = jnp.asarray(count, jnp.float32)
        factor = optimizers.decay(schedule.kind, (step - up) / max(steps - up - 1, 1), schedule.final)
        return schedule.rate * factor * optimizers.linear_warmup(step, up)

    return at


def adam(schedule: Schedule, steps: int, clip: float | None) -> optax.GradientTransformation:
    """Adam with this schedule, after the gradient is clipped to the norm `clip`."""
    chain = [optax.clip_by_global_norm(clip)] if clip else []
    return optax.chain(*chain, optax.adam(rate(schedule, steps)))
