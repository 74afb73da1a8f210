"""Many dictionaries on one stream of activations: a grid over seeds, strengths, k, learning rates and sites.

    sweep = Sweep(seeds=(0, 1, 2), coefficients={"l1": (0.004, 0.008, 0.016)})
    for member, sae in train_sweep(config, sweep, model, batch_at, run="runs/grid"): ...

The model is run once a step for all of them, and all of them are one program. What is varied is data, so another grid
of the same size compiles nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jax_interp.core.errors import UserError
from jax_interp.data.harvest import Stream, advance, init_stream
from jax_interp.dictionaries.forms import Dictionary
from jax_interp.dictionaries.losses.term import snake
from jax_interp.dictionaries.training.config import DictionaryConfig
from jax_interp.dictionaries.training.initialise import init_dictionary, new_learner
from jax_interp.dictionaries.training.learner import BatchAt, Learner
from jax_interp.dictionaries.training.train import SHOWN, export_learner, learn
from jax_interp.surgery.contract import Model
from jax_interp.training import Log, RunTarget, SaveTo, fit


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The axes of a grid. An axis without entries has the config's own value."""

    seeds: tuple[int, ...] = ()
    """Of the initialisation. All members see the same rows."""
    coefficients: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    """Of the loss's terms, by name: {"l1": (0.004, 0.008)}."""
    k: tuple[int, ...] = ()
    """Of TopK and BatchTopK: at most the config's own."""
    learning_rates: tuple[float, ...] = ()
    addresses: tuple[str, ...] = ()
    """Values of one width, such as the same site of several layers, in place of the config's address."""


@dataclasses.dataclass(frozen=True)
class Member:
    """One dictionary of a grid."""

    address: str | tuple[str, ...]
    seed: int
    learning_rate: float
    k: int | None
    coefficients: dict[str, float]
    diverged: int | None = None
    """After how many steps its gradient was no longer finite: it has been left as it was then."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SweepState:
    """`learners` with a leading axis over the members. Those that have `ended`, since they diverged, stay as they were
    and take no one along."""

    learners: Learner
    stream: Stream
    ended: Bool[Array, " member"]


def members(config: DictionaryConfig, sweep: Sweep) -> list[Member]:
    """Every combination, the last axis fastest, in the order: address, seed, learning rate, k, coefficients. Raises
    UserError where the config has nothing that an axis varies."""
    terms = {snake(type(term).__name__): term for term in config.loss}
    for name in sweep.coefficients:
        if name not in terms:
            raise UserError(f"the sweep varies the coefficient of {name!r}; the loss has {', '.join(terms)}")
        if not sweep.coefficients[name]:
            raise UserError(f"the sweep gives no values for the coefficient of {name!r}: leave it out, or give some")
    own_k = config.activation.k
    in_range = own_k is not None and all(1 <= k <= own_k for k in sweep.k)
    if sweep.k and not (config.activation.supports_limit and in_range):
        kind = type(config.activation).__name__
        raise UserError(
            f"the sweep has k={sweep.k}: for TopK or BatchTopK, from 1 to its own k; this is {kind}, k={own_k}"
        )
    if sweep.addresses and (config.writes is not None or not isinstance(config.address, str)):
        raise UserError("a sweep over addresses is for SAEs: dictionaries that write what they read, one value each")
    axes = [
        sweep.addresses or (config.address,),
        sweep.seeds or (config.seed,),
        sweep.learning_rates or (config.optimizer.learning_rate,),
        sweep.k or (own_k,),
        *sweep.coefficients.values(),
    ]
    return [
        Member(address, seed, rate, k, dict(zip(sweep.coefficients, values)))
        for address, seed, rate, k, *values in itertools.product(*axes)
    ]


def member_config(config: DictionaryConfig, member: Member) -> DictionaryConfig:
    """The config that makes this member by itself."""
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
    """What differs between members, as arrays over them: the tree that the step maps over beside the learners."""
    found = members(config, sweep)
    order = sweep.addresses or (config.address,)
    names = [snake(type(term).__name__) for term in config.loss]
    loss = tuple(
        dataclasses.replace(term, coefficient=jnp.asarray([m.coefficients.get(name, term.coefficient) for m in found]))
        for name, term in zip(names, config.loss)
    )
    return {
        "loss": loss,
        "rate": jnp.asarray([m.learning_rate for m in found]),
        "site": jnp.asarray([order.index(m.address) for m in found], jnp.int32),
    }


def init_sweep_state(config: DictionaryConfig, sweep: Sweep, model: Model, batch_at: BatchAt) -> SweepState:
    found = members(config, sweep)
    dictionary_key, stream_key = jax.random.split(jax.random.key(config.seed))
    stream = init_stream(stream_key, model, sweep.addresses or config.addresses, batch_at, config.buffer)
    if sweep.addresses and len(set(stream.widths)) > 1:
        widths = ", ".join(f"{a} {w}" for a, w in zip(sweep.addresses, stream.widths))
        raise UserError(f"a sweep is over values of one width; these are {widths}")
    learners = []
    for member in found:
        # a member on its own is what `train_dictionary` would make of its config
        key = dictionary_key if member.seed == config.seed else jax.random.split(jax.random.key(member.seed))[0]
        widths, mean = _of_site(sweep, stream, member.address)
        dictionary = init_dictionary(config, key, widths, mean)
        if sweep.k:
            activation = dataclasses.replace(dictionary.activation, limit=jnp.float32(member.k))
            dictionary = dataclasses.replace(dictionary, activation=activation)
        learners.append(new_learner(dictionary, config.optimizer, config.steps, (config.n_features,), key))
    return SweepState(jax.tree.map(lambda *a: jnp.stack(a), *learners), stream, jnp.zeros((len(found),), bool))


def _of_site(sweep: Sweep, stream: Stream, address: Any) -> tuple[tuple[int, ...], Array]:
    if not sweep.addresses:
        return stream.widths, stream.mean
    site, width = sweep.addresses.index(address), stream.widths[0]
    return (width,), stream.mean[site * width : (site + 1) * width]


def sweep_step(
    config: DictionaryConfig,
    sweep: Sweep,
    state: SweepState,
    batch: tuple[Array, Array],
    model: Model,
    grid: dict[str, Any],
    batched: bool,
) -> tuple[SweepState, dict[str, Array]]:
    """One step of every member. Metrics have the axis of members, also `ended`. `batched`: by `vmap`; otherwise one
    after the other in the same program, which on a CPU is faster: there is nothing left to fill, and branches that a
    member does not need are not computed."""
    if batched:
        config = dataclasses.replace(
            config, sparse_gradient_sizes=()
        )  # under vmap a branch costs as much as all of them
    found = sweep.addresses or config.addresses
    stream, rows = advance(state.stream, model, found, *batch)

    def one(of_member):
        learner, what, ended = of_member
        x, variance = rows, stream.variance
        if sweep.addresses:
            width = stream.widths[0]
            x = jax.lax.dynamic_slice_in_dim(rows, what["site"] * width, width, axis=1)
            variance = stream.variance[what["site"]][None]
        return learn(config, learner, x, variance, what["loss"], what["rate"], ended=ended)

    go = jax.vmap(one) if batched else partial(jax.lax.map, one)
    learners, metrics = go((state.learners, grid, state.ended))
    return SweepState(learners, stream, metrics["ended"]), metrics


def export_sweep(config: DictionaryConfig, sweep: Sweep, state: SweepState) -> list[tuple[Member, Dictionary]]:
    """Each member with its dictionary for raw activations."""
    out, steps = [], [int(n) if over else None for n, over in zip(state.learners.step, state.ended)]
    for i, member in enumerate(members(config, sweep)):
        learner, stream = jax.tree.map(lambda a, i=i: a[i], state.learners), state.stream
        if sweep.addresses:
            site = sweep.addresses.index(member.address)
            stream = dataclasses.replace(stream, scale=stream.scale[site : site + 1], widths=stream.widths[:1])
        dictionary = export_learner(config, learner, stream)
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
    batched: bool | None = None,
    log: Log = Log(),
) -> list[tuple[Member, Dictionary]]:
    """Train all members, from the start or from the last checkpoint of `run`, and export. `run` and `log`
    are as in `training.fit`. The log has means over the members, and the figures of each under `member.<i>`.

    A member that diverges ends there and the others go on: it is in no mean any more, its figures are null, and
    `Member.diverged` says when. NonFinite where none is left."""
    batched = jax.default_backend() != "cpu" if batched is None else batched
    state = init_sweep_state(config, sweep, model, batch_at)
    filled, count = int(state.stream.cursor), len(members(config, sweep))
    tokens = batch_at(0)[0].size

    def step(state, batch, model, grid):
        state, metrics = sweep_step(config, sweep, state, batch, model, grid, batched)
        ended, tokens = metrics.pop("ended"), metrics.pop("tokens")
        found = {name: a.astype(jnp.float32) for name, a in metrics.items()}
        mean = {name: jnp.mean(a, where=~ended) for name, a in found.items()}
        of_member = lambda i: {name: jnp.where(ended[i], jnp.nan, found[name][i]) for name in ("fvu", "l0", "dead")}
        counted = {"tokens": jnp.max(jnp.where(ended, 0, tokens)), "ended": jnp.sum(ended)}
        return state, mean | counted | {"member": {str(i): of_member(i) for i in range(count)}}

    state = fit(
        step,
        state,
        lambda i: batch_at(filled + i),
        steps=config.steps,
        run=SaveTo.of(run, SweepRun(config, sweep)),
        frozen=(model, swept_values(config, sweep)),
        log=log.with_defaults(shown=SHOWN, per_step={"tokens": tokens}, title="sweep", may_be_nan=("member.",)),
    )
    return export_sweep(config, sweep, state)


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """What is kept with a run, so that a resume is of the same grid."""

    dictionary: DictionaryConfig
    sweep: Sweep
