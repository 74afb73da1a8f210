"""Many dictionaries on one stream of activations: a grid over seeds, strengths, k, learning rates and sites.

    sweep = Sweep(seeds=(0, 1, 2), coefficients={"l1": (0.004, 0.008, 0.016)})
    for member, sae in train_sweep(config, sweep, model, batch_at, run="runs/grid"): ...

In each step, the model runs once for all members. All members are one compiled program. The values that vary between
them are data, so another grid of the same size does not compile again.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key

from jax_interp.core.config_json import reads_older_files
from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.data.harvest import Stream, advance, init_stream, stream_shapes
from jax_interp.dictionaries.forms import Dictionary
from jax_interp.dictionaries.losses.term import snake
from jax_interp.dictionaries.sharding import rules
from jax_interp.dictionaries.training.config import DictionaryConfig
from jax_interp.dictionaries.training.initialise import init_dictionary, new_learner
from jax_interp.dictionaries.training.learner import BatchAt, Learner, kind_of, without_first
from jax_interp.dictionaries.training.train import SHOWN, export_learner, learn
from jax_interp.models.sharding import rules_for
from jax_interp.surgery import canonical
from jax_interp.surgery.contract import Model
from jax_interp.training import Log, Place, RunTarget, SaveTo, automatic_step, fit, placed
from jax_interp.training.placement import replicated
from jax_interp.training.planning.planned import PlannedStep


@reads_older_files(rewritten=lambda fields: fields | {"addresses": canonical(fields.get("addresses", []))})
@dataclasses.dataclass(frozen=True)
class Sweep:
    """The axes of a grid. An axis without entries uses the value of the config."""

    seeds: tuple[int, ...] = ()
    """Seeds of the initialisation. All members see the same rows."""
    coefficients: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    """Coefficients of loss terms, by the name of the term: {"l1": (0.004, 0.008)}."""
    k: tuple[int, ...] = ()
    """Values of k for TopK or BatchTopK. They can be at most the k of the config."""
    learning_rates: tuple[float, ...] = ()
    addresses: tuple[str, ...] = ()
    """Addresses that replace the address of the config, such as one site in several layers. Their widths must be
    equal."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "addresses", canonical(self.addresses))


@dataclasses.dataclass(frozen=True)
class Member:
    """One dictionary of a grid."""

    address: str | tuple[str, ...]
    seed: int
    learning_rate: float
    k: int | None
    coefficients: dict[str, float]
    diverged: int | None = None
    """The number of steps after which the gradient was not finite. The dictionary has not changed since. None: it did
    not diverge."""


@register_dataclass
@dataclasses.dataclass(frozen=True)
class SweepState:
    """The state of a sweep.

    Attributes:
      learners: a learner in which every leaf has a leading axis for the members.
      stream: the activations, shared by all members.
      ended: a mask of the members that have diverged. They do not change any more, and do not affect the others.
    """

    learners: Learner[Dictionary]
    stream: Stream
    ended: Bool[Array, " member"]


def members(config: DictionaryConfig, sweep: Sweep) -> list[Member]:
    """All combinations of the axes. The axes are address, seed, learning rate, k, coefficients; the last varies
    fastest.

    Raises:
      UserError: an axis varies something that the config does not have, or a member's config is refused.
    """
    terms = {snake(type(term).__name__): term for term in config.loss}
    for name in sweep.coefficients:
        if name not in terms:
            raise UserError(f"the sweep varies the coefficient of {name!r}; the loss has {', '.join(terms)}")
        if not sweep.coefficients[name]:
            raise UserError(
                f"the sweep gives no values for the coefficient of {name!r}: give some, or leave out this coefficient"
            )
    own_k = config.activation.k
    in_range = own_k is not None and all(1 <= k <= own_k for k in sweep.k)
    if sweep.k and not (config.activation.supports_limit and in_range):
        kind = type(config.activation).__name__
        raise UserError(
            f"the sweep has k={sweep.k}: give k of TopK or BatchTopK, from 1 to its own k; this is {kind}, k={own_k}"
        )
    if sweep.addresses and (config.writes is not None or not isinstance(config.address, str)):
        raise UserError("a sweep over addresses is only for SAEs, which write the one value that they read")
    axes = [
        sweep.addresses or (config.address,),
        sweep.seeds or (config.seed,),
        sweep.learning_rates or (config.optimizer.learning_rate,),
        sweep.k or (own_k,),
        *sweep.coefficients.values(),
    ]
    found = [
        Member(address, seed, rate, k, dict(zip(sweep.coefficients, values)))
        for address, seed, rate, k, *values in itertools.product(*axes)
    ]
    for i, member in enumerate(found):
        try:
            member_config(config, member)
        except UserError as error:
            raise UserError(f"member {i} of the sweep cannot be trained: {error}") from error
    return found


def member_config(config: DictionaryConfig, member: Member) -> DictionaryConfig:
    """The config that trains only this member."""
    loss = []
    for term in config.loss:
        coefficient = member.coefficients.get(snake(type(term).__name__))
        loss.append(term if coefficient is None else dataclasses.replace(term, coefficient=coefficient))  # type: ignore
    activation = config.activation
    if member.k is not None and member.k != activation.k:
        activation = activation.with_k(member.k)
    return dataclasses.replace(
        config,
        address=member.address,
        activation=activation,
        loss=tuple(loss),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=member.learning_rate),
        seed=member.seed,
    )


def swept_values(config: DictionaryConfig, sweep: Sweep) -> dict[str, Any]:
    """The values that vary between members, as arrays with an axis for the members. The step maps over this axis."""
    each = members(config, sweep)
    order = sweep.addresses or (config.address,)
    names = [snake(type(term).__name__) for term in config.loss]
    loss = tuple(
        dataclasses.replace(term, coefficient=jnp.asarray([m.coefficients.get(name, term.coefficient) for m in each]))
        for name, term in zip(names, config.loss)
    )
    return {
        "loss": loss,
        "rate": jnp.asarray([m.learning_rate for m in each]),
        "site": jnp.asarray([order.index(m.address) for m in each], jnp.int32),
    }


def init_sweep_state(config: DictionaryConfig, sweep: Sweep, model: Model, batch_at: BatchAt) -> SweepState:
    """The state before the first step. Each member starts as in `train_dictionary` with the config of this member."""
    each = members(config, sweep)
    dictionary_key, stream_key = jax.random.split(jax.random.key(config.seed))
    addresses, batch_at = sweep.addresses or config.addresses, without_first(batch_at, config.skip_first)
    stream = init_stream(stream_key, model, addresses, batch_at, config.buffer, config.max_norm)
    if sweep.addresses and len(set(stream.widths)) > 1:
        widths = ", ".join(f"{a} {w}" for a, w in zip(sweep.addresses, stream.widths))
        raise UserError(f"a sweep over addresses needs values of one width; the widths are {widths}")
    learners = _first_learners(config, sweep, each, dictionary_key, stream)
    return SweepState(learners, stream, jnp.zeros((len(each),), bool))


def _first_learners(
    config: DictionaryConfig, sweep: Sweep, each: Sequence[Member], dictionary_key: Key[Array, ""], stream: Stream
) -> Learner[Dictionary]:
    """The learners of all members before the first step, with an axis for the members."""
    learners = []
    for member in each:
        key = dictionary_key if member.seed == config.seed else jax.random.split(jax.random.key(member.seed))[0]
        own = _of_site(sweep, stream, member.address)
        dictionary = init_dictionary(config, key, own.widths, own.mean - own.centre)
        if sweep.k:
            activation = dataclasses.replace(dictionary.activation, limit=jnp.float32(member.k))
            dictionary = dataclasses.replace(dictionary, activation=activation)
        learners.append(new_learner(dictionary, config.optimizer, config.steps, (config.n_features,), key))
    return jax.tree.map(lambda *a: jnp.stack(a), *learners)


def planned(
    config: DictionaryConfig, sweep: Sweep, model: Model, batch: tuple[Any, Any], batched: bool | None = None
) -> PlannedStep:
    """The step of `train_sweep`, from the shapes of a model and of a batch (`training.planning`)."""
    batched = jax.default_backend() != "cpu" if batched is None else batched
    each, addresses = members(config, sweep), sweep.addresses or config.addresses
    stream = stream_shapes(model, addresses, batch, config.buffer, config.max_norm)

    def first(stream: Stream) -> SweepState:
        learners = _first_learners(config, sweep, each, jax.random.key(0), stream)
        return SweepState(learners, stream, jnp.zeros((len(each),), bool))

    state = jax.eval_shape(first, stream)
    step = partial(_logged_step, config, sweep, batched)
    grid = jax.eval_shape(lambda: swept_values(config, sweep))
    frozen = ((model, rules_for(model)), (grid, replicated(grid)))
    return PlannedStep(step, state, batch, frozen, rules(state), kind_of, config.steps, batch[0].size)


def _of_site(sweep: Sweep, stream: Stream, address: str | tuple[str, ...]) -> Stream:
    """The stream with the statistics of the value of one member. The buffer holds the values of all members."""
    if not sweep.addresses:
        return stream
    site, width = sweep.addresses.index(address), stream.widths[0]
    one = slice(site, site + 1)
    return dataclasses.replace(
        stream,
        scale=stream.scale[one],
        mean=stream.mean[site * width : (site + 1) * width],
        variance=stream.variance[one],
        widths=(width,),
    )


@automatic_step
def sweep_step(
    config: DictionaryConfig,
    sweep: Sweep,
    state: SweepState,
    batch: tuple[Array, Array],
    model: Model,
    grid: dict[str, Any],
    batched: bool,
) -> tuple[SweepState, dict[str, Array]]:
    """One training step of all members. The metrics have an axis for the members, and include "ended".

    Args:
      config: the config that the grid varies.
      sweep: the grid.
      state: the state before the step.
      batch: (tokens [seq, pos], keep [seq, pos]).
      model: the model.
      grid: `swept_values(config, sweep)`.
      batched: True: all members at once (`vmap`). False: one after the other, in the same program. This is faster on a
        CPU: one member is enough to keep it busy, and branches that a member does not take are not computed.
    """
    if batched:
        config = dataclasses.replace(config, sparse_gradient_sizes=())  # under vmap every branch is computed
    stream, rows = advance(state.stream, model, sweep.addresses or config.addresses, *batch)

    def learn_member(member: tuple[Learner[Dictionary], dict[str, Any], Array]):
        learner, what, ended = member
        x, variance = rows, stream.variance
        if sweep.addresses:
            width = stream.widths[0]
            x = jax.lax.dynamic_slice_in_dim(rows, what["site"] * width, width, axis=1)
            variance = stream.variance[what["site"]][None]
        return learn(config, learner, x, variance, what["loss"], what["rate"], ended=ended)

    every = jax.vmap(learn_member) if batched else partial(jax.lax.map, learn_member)
    learners, metrics = every((state.learners, grid, state.ended))
    return SweepState(learners, stream, metrics["ended"]), metrics


def export_sweep(config: DictionaryConfig, sweep: Sweep, state: SweepState) -> list[tuple[Member, Dictionary]]:
    """All members, each with its dictionary for raw activations."""
    out, steps = [], [int(n) if over else None for n, over in zip(state.learners.step, state.ended)]
    for i, member in enumerate(members(config, sweep)):
        learner = jax.tree.map(lambda a, i=i: a[i], state.learners)
        dictionary = export_learner(config, learner, _of_site(sweep, state.stream, member.address))
        if member.k is not None:
            dictionary = dataclasses.replace(dictionary, activation=dictionary.activation.with_k(member.k))
        out.append((dataclasses.replace(member, diverged=steps[i]), dictionary))
    return out


def train_sweep(
    config: DictionaryConfig,
    sweep: Sweep,
    model: Model,
    batch_at: BatchAt,
    *,
    run: RunTarget = None,
    place: Place = None,
    batched: bool | None = None,
    log: Log = Log(),
) -> list[tuple[Member, Dictionary]]:
    """Train every member of a grid on one stream, from the start or from the last checkpoint of `run`.

    If a run is killed, the same call resumes it. The result has the same bits as that of an uninterrupted run. The log
    has means over the members, and the figures of each member under `member.<i>`. A member that diverges stops, and the
    others continue. It is left out of the means, its figures are null, and `Member.diverged` is the step.

    Args:
      config: the config that the grid varies.
      sweep: the grid.
      model: any model that keeps the surgery contract. It is not changed.
      batch_at: a function from the index of a batch to (tokens [seq, pos], keep [seq, pos]), as in `train_dictionary`.
      run: where to save the run: a directory, or a `SaveTo` that also sets how often. None: nothing is saved.
      place: as in `train_dictionary`. The members are not divided among devices; each of them is.
      batched: as in `sweep_step`. None: True except on a CPU.
      log: what is evaluated, logged and shown.

    Returns:
      A list of (member, dictionary for raw activations), in the order of `members`.

    Raises:
      UserError: an axis varies something that the config does not have, or `run` holds a run of another grid.
      NonFinite: all members have diverged.

    Example:
        sweep = Sweep(seeds=(0, 1), coefficients={"l1": (0.004, 0.008)})
        for member, sae in train_sweep(config, sweep, model, batch_at, run="runs/grid"):
            print(member, evaluate(model, member.address, sae, batches).reconstruction.fvu)
    """
    batched = jax.default_backend() != "cpu" if batched is None else batched
    tokens, saving = batch_at(0)[0].size, SaveTo.of(run, SweepRun(config, sweep))
    log = log.with_defaults(shown=SHOWN, per_step={"tokens": tokens}, title="sweep", may_be_nan=("member.",))
    with placed(place, rules) as there:
        model, batch_at = there.frozen(model, rules_for(model)), there.batches(batch_at)
        state = there.state(init_sweep_state(config, sweep, model, batch_at))
        filled, batch_at = int(state.stream.cursor), without_first(batch_at, config.skip_first)
        state = fit(
            partial(_logged_step, config, sweep, batched),
            state,
            lambda i: batch_at(filled + i),
            steps=config.steps,
            run=saving,
            frozen=(model, swept_values(config, sweep)),
            log=log,
        )
        return export_sweep(config, sweep, state)


def _logged_step(
    config: DictionaryConfig,
    sweep: Sweep,
    batched: bool,
    state: SweepState,
    batch: tuple[Array, Array],
    model: Model,
    grid: dict[str, Any],
) -> tuple[SweepState, dict[str, Any]]:
    """`sweep_step`, with means over the members and the figures of each member as metrics."""
    state, metrics = sweep_step(config, sweep, state, batch, model, grid, batched)
    ended, tokens = metrics.pop("ended"), metrics.pop("tokens")
    figures = {name: a.astype(jnp.float32) for name, a in metrics.items()}
    mean = {name: jnp.mean(a, where=~ended) for name, a in figures.items()}
    of_member = lambda i: {name: jnp.where(ended[i], jnp.nan, figures[name][i]) for name in ("fvu", "l0", "dead")}
    counted = {"tokens": jnp.max(jnp.where(ended, 0, tokens)), "ended": jnp.sum(ended)}
    return state, mean | counted | {"member": {str(i): of_member(i) for i in range(len(ended))}}


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """The stored config of a sweep. A run can be resumed only with an equal config."""

    dictionary: DictionaryConfig
    sweep: Sweep
