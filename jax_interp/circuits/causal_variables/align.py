"""Learn where a variable is: train features so that their interchange does what the causal model says.

    found = align(model, train_data, Location("blocks.1.resid_post", "x"), AlignmentConfig(DAS(1)))
    interchange_accuracy(model, test_data, found.locations, found.features).accuracy

The model is frozen. Each step is one run of the sources up to the location, and one run of the bases with gradients.
A subspace that is trained to change an answer can do so in a model that does not use the variable, so report controls:
`controlled_alignment` (Makelov et al. 2023, arXiv:2311.17030; Sutter et al. 2025, arXiv:2507.08802).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from jax_interp.circuits.causal_variables.accuracy import cross_entropy_of
from jax_interp.circuits.causal_variables.features import Features, Subspace
from jax_interp.circuits.causal_variables.interchange import Location, Where, check_locations, interchanged
from jax_interp.circuits.causal_variables.interchange_data import InterchangeData
from jax_interp.circuits.causal_variables.methods import DAS, Given, Method, Params, orthonormal
from jax_interp.core import optimizers
from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.models.sharding import rules_for
from jax_interp.surgery import Model
from jax_interp.training import Log, Place, RunTarget, SaveTo, automatic_step, fit, placed
from jax_interp.training.placement import replicated


@dataclasses.dataclass(frozen=True)
class AlignmentConfig:
    """How features are learned: the method, and Adam with a rate that falls linearly to 0."""

    method: Method
    steps: int = 300
    batch: int = 64
    """Pairs in one step."""
    learning_rate: float = 1e-2
    """Of a basis. Its free matrix begins with entries of variance 1 / d."""
    mask_learning_rate: float = 1e-1
    """Of masks and boundaries."""
    seed: int = 0
    """Of the first basis."""
    data_seed: int = 0
    """Of the order of the pairs."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not (self.learning_rate > 0 and self.mask_learning_rate > 0):
            raise UserError(f"{self}: steps and batch are at least 1, and rates above 0")


@dataclasses.dataclass(frozen=True)
class Alignment:
    """The result of `align`: for each source, where and which features are exchanged."""

    locations: tuple[Location, ...]
    features: tuple[Features, ...]
    config: AlignmentConfig


@register_dataclass
@dataclasses.dataclass(frozen=True)
class AlignmentState:
    """The state of a training run."""

    params: tuple[Params, ...]
    opt: optax.OptState
    step: Int[Array, ""]


def align(
    model: Model,
    data: InterchangeData,
    locations: Sequence[Location] | Location,
    config: AlignmentConfig,
    *,
    basis: Given = None,
    run: RunTarget = None,
    place: Place = None,
    log: Log = Log(quiet=True),
) -> Alignment:
    """Learn the features of each source.

    Args:
      model: any model that keeps the surgery contract. Its weights do not change.
      data: the training pairs. Test on others.
      locations: for each source, where its value is exchanged. With `DAS`, sources at one location have subspaces that
        are orthogonal to each other, each of `dimension` dimensions.
      config: the method and the training.
      basis: what `LearnedMask` chooses from: an orthonormal basis [d, m], or a dictionary. None: neurons.
      run: where the run is saved, as in `training.fit`. A run that was killed resumes from its last checkpoint.
      place: a mesh: the pairs of a step are split over `data`, and the model is placed by its rules. None: one device.
      log: what is shown and logged.

    Returns:
      The locations and their features. The masks are 0 or 1.

    Raises:
      UserError: a location does not fit, the method does not fit the value, or there are fewer pairs than in a batch.
    """
    locations = (locations,) if isinstance(locations, Location) else tuple(locations)
    groups = _groups(model, data, locations, config, basis)
    if len(data) < config.batch:
        raise UserError(f"{len(data)} pairs are fewer than batch={config.batch}")
    keys = first_keys(config.seed, len(groups))
    params = tuple(
        config.method.init(key, group.width, basis) if len(group.sources) == 1 else _joint(key, group, config)
        for key, group in zip(keys, groups)
    )
    order = _Order(len(data), config)
    with placed(place, replicated) as there:
        frozen = (there.frozen(model, rules_for(model)), there.frozen(data, replicated(data)), basis)
        opt = optimizers.init(optimizer_of(config), params)
        state = there.state(AlignmentState(params, opt, jnp.int32(0)))
        step = _compiled_step(dataclasses.replace(config, seed=0, data_seed=0), _Setup(locations, groups))
        batch_at = there.batches(order.batch_at)
        log = log.with_defaults(title="alignment", shown=("loss",))
        state = fit(step, state, batch_at, steps=config.steps, run=SaveTo.of(run, config), frozen=frozen, log=log)
        features = _features(state.params, groups, basis, config, progress=None)
    return Alignment(locations, tuple(jax.tree.map(jnp.asarray, one) for one in features), config)


@dataclasses.dataclass(frozen=True)
class _Group:
    """Sources that share one basis, and the width of their value."""

    sources: tuple[int, ...]
    width: int


@dataclasses.dataclass(frozen=True)
class _Setup:
    """What is static in a step."""

    locations: tuple[Location, ...]
    groups: tuple[_Group, ...]


@lru_cache(maxsize=16)
def _compiled_step(config: AlignmentConfig, setup: _Setup) -> Callable[..., Any]:
    """The jitted step. It is kept, so that other seeds, labels and weights do not compile again."""
    return jax.jit(partial(alignment_step, config, setup), donate_argnums=0)


@automatic_step
def alignment_step(
    config: AlignmentConfig,
    setup: _Setup,
    state: AlignmentState,
    chosen: Int[Array, " batch"],
    model: Model,
    data: InterchangeData,
    basis: Given,
) -> tuple[AlignmentState, dict[str, Any]]:
    """One step on the pairs `chosen`. The metric is `loss`, the cross-entropy of the counterfactual answers in nats."""
    part = data.rows(chosen)
    places = [Where.of(part, location, i) for i, location in enumerate(setup.locations)]
    progress = state.step.astype(jnp.float32) / max(config.steps - 1, 1)

    def loss(params: tuple[Params, ...]) -> tuple[Array, Array]:
        features = _features(params, setup.groups, basis, config, progress)
        value = jnp.mean(cross_entropy_of(interchanged(model, part, places, features), part))
        return value + sum(config.method.penalty(one, basis, progress) for one in params), value

    grads, value = jax.grad(loss, has_aux=True)(state.params)
    params, opt = optimizers.update(optimizer_of(config), grads, state.opt, state.params)
    return AlignmentState(params, opt, state.step + 1), {"loss": value}


def _features(
    params: Sequence[Params], groups: Sequence[_Group], basis: Given, config: AlignmentConfig, progress: Any
) -> list[Features]:
    """The features of each source. `progress=None`: after training."""
    found: dict[int, Features] = {}
    for one, group in zip(params, groups):
        if len(group.sources) == 1:
            method = config.method
            found[group.sources[0]] = method.hard(one, basis) if progress is None else method.soft(one, basis, progress)
        else:
            parts = jnp.split(orthonormal(one["basis"]), len(group.sources), axis=1)
            found |= {source: Subspace(part) for source, part in zip(group.sources, parts)}
    return [found[i] for i in range(len(found))]


def _groups(
    model: Model, data: InterchangeData, locations: tuple[Location, ...], config: AlignmentConfig, basis: Given
) -> tuple[_Group, ...]:
    widths = check_locations(model, data, locations, [None] * len(locations))
    together: dict[Location, list[int]] = {}
    for i, location in enumerate(locations):
        together.setdefault(location, []).append(i)
    groups = tuple(_Group(tuple(sources), widths[sources[0]]) for sources in together.values())
    for group in groups:
        config.method.check(group.width, basis)
        shared = len(group.sources)
        if shared > 1:
            if not isinstance(config.method, DAS):
                raise UserError(
                    f"{shared} sources share a location: {type(config.method).__name__} learns one: use DAS"
                )
            DAS(config.method.dimension * shared).check(group.width, basis)
    return groups


def _joint(key: Array, group: _Group, config: AlignmentConfig) -> Params:
    assert isinstance(config.method, DAS)
    return DAS(config.method.dimension * len(group.sources)).init(key, group.width, None)


def optimizer_of(config: AlignmentConfig) -> optax.GradientTransformation:
    """Adam for the parameters of a method: one rate for bases, another one for masks."""
    falling = lambda rate: optax.adam(optax.linear_schedule(rate, 0.0, config.steps))
    is_mask = lambda path, _: "mask" if str(path[-1].key).startswith("mask") else "basis"
    return optax.partition(
        {"basis": falling(config.learning_rate), "mask": falling(config.mask_learning_rate)},
        lambda params: jax.tree_util.tree_map_with_path(is_mask, params),
    )


def first_keys(seed: int | Array, count: int) -> Array:
    """The keys of the first parameters of each location."""
    return jax.random.split(jax.random.key(seed), count)


@dataclasses.dataclass(frozen=True)
class _Order:
    """Which pairs each step uses: every epoch is a permutation of its own, whose incomplete last batch is left out."""

    pairs: int
    config: AlignmentConfig

    def batch_at(self, step: int) -> Int[np.ndarray, " batch"]:
        batches = self.pairs // self.config.batch
        epoch, i = divmod(step, batches)
        order = np.random.default_rng((self.config.data_seed, epoch)).permutation(self.pairs)
        return order[i * self.config.batch : (i + 1) * self.config.batch].astype(np.int32)


def steps_of_pairs(pairs: int, config: AlignmentConfig) -> Int[np.ndarray, "step batch"]:
    """The pairs of every step of `align`."""
    order = _Order(pairs, config)
    return np.stack([order.batch_at(step) for step in range(config.steps)])
