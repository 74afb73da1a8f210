"""`stream_logistic`: logistic regression at all sites from one pass over tokens, without keeping activations.

fitted = stream_logistic(StreamedLogistic(C=(0.01, 1.0)), model, "blocks.*.resid_post", stream, run="runs/probes")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jax_interp.core import optimizers
from jax_interp.core.errors import UserError
from jax_interp.core.processes import to_host
from jax_interp.core.pytrees import register_dataclass
from jax_interp.models.sharding import rules_for
from jax_interp.probes.class_moments import HIGH
from jax_interp.probes.fit import OWN, FittedProbes
from jax_interp.probes.kinds.streamed_logistic import (
    StreamedLogistic,
    column_scale,
    log_losses,
    penalties,
    raw_probes,
)
from jax_interp.probes.streamed_moments import QUIET_LOG, sites_of_stream, used_and_columns
from jax_interp.probes.text_reader import mesh_of_leaves, wide_values
from jax_interp.probes.token_streams import TokenRows, TokenStream
from jax_interp.surgery import Model
from jax_interp.training import Log, Place, RunTarget, SaveTo, automatic, automatic_step, fit, placed
from jax_interp.training.placement import replicated

Params = dict[str, tuple[Float[Array, "strength seed d"], Float[Array, "strength seed"]]]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class LogisticState:
    """Probes for columns of variance 1, and how the columns are scaled."""

    params: Params
    optimizer: optax.OptState
    mean: dict[str, Float[Array, " d"]]
    scale: dict[str, Float[Array, " d"]]
    rows: Float[Array, ""]
    """The number of labelled tokens in a batch, on the measured batches."""
    seen: Float[Array, "2"]
    """The number of labelled tokens of each class so far."""
    step: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class LogisticSettings:
    """What a step is compiled for."""

    names: tuple[str, ...]
    bootstrap: bool
    optimizer: optax.GradientTransformation
    steps: int


@dataclasses.dataclass(frozen=True)
class LogisticRun:
    """The stored config of a run. It can be resumed only with the same kind, sites, seeds and stream."""

    kind: StreamedLogistic
    sites: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    first_batch: str
    """`TokenStream.digest`."""


def stream_logistic(
    kind: StreamedLogistic,
    model: Model,
    at: str | Sequence[str],
    stream: TokenStream,
    *,
    seeds: Sequence[int] = (0,),
    run: RunTarget = None,
    place: Place = None,
    log: Log = QUIET_LOG,
) -> FittedProbes:
    """Fit a logistic regression for each site, C and seed on the tokens of a stream.

    The forward pass and one step of Adam on all probes are one compiled program. The result is near to the optimum, not
    at it: if columns are strongly correlated, give more epochs, or gather the activations.

    Args:
      kind: the strengths, and how the gradient is followed.
      model: any model that names its values, with or without edits.
      at: addresses of values `[batch, pos, ...]` of one width.
      stream: the tokens and their labels, of two classes, in random order.
      seeds: a probe is fitted for each seed. Several seeds need `bootstrap`.
      run: where the run is saved. If it is killed, the same call goes on and gives the same bits.
      place: a mesh, as in `gather`. The rows of a batch are split over its row axes.
      log: what is shown.

    Returns:
      Probes for raw activations, with the axes site, strength and seed.

    Raises:
      NonFinite: a value at a token with a label is not finite.
      UserError: there are not two classes, a class has no token, the widths differ, or several seeds have one optimum.
    """
    widths = sites_of_stream(model, at, stream)
    _check(kind, widths, stream, seeds)
    C, keys = jnp.asarray(kind.C, jnp.float32), jax.vmap(jax.random.key)(jnp.asarray(list(seeds), jnp.uint32))
    rate = optax.linear_schedule(kind.learning_rate, 0.0, stream.steps)
    settings = LogisticSettings(tuple(widths), kind.bootstrap, optax.adam(rate, b2=0.99), stream.steps)
    place = mesh_of_leaves(model) if place is None else place
    saving = SaveTo.of(run, LogisticRun(kind, tuple(widths), tuple(seeds), stream.steps, stream.digest))
    log = log.with_defaults(shown=("loss",), per_step={"tokens": stream.batch_at(0)[0].size}, title="probes")
    with placed(place, replicated) as there:
        model, batch_at = there.frozen(model, () if place is None else rules_for(model)), there.batches(stream.batch_at)
        first = [batch_at(number) for number in range(min(kind.measured, stream.steps))]
        state = there.state(begin_logistic(settings, len(kind.C), len(seeds), first, model))
        end = fit(
            partial(logistic_step, settings),
            state,
            batch_at,
            steps=stream.steps,
            frozen=(model, C, keys),
            run=saving,
            log=log,
        )
        seen = np.asarray(end.seen)
        probes = {name: raw_probes(end.params[name], end.mean[name], end.scale[name]) for name in widths}
        probes = to_host(jax.tree.map(lambda *a: jnp.stack(a)[:, None, None, None], *probes.values()))
    if not seen.all():
        raise UserError(f"no token of the stream has the class {stream.classes[int(np.argmin(seen))]!r}")
    axes = {"site": tuple(widths), "rule": (stream.rule,), "labels": (OWN,), "split": (0,), "strength": kind.C}
    return FittedProbes(kind, jax.tree.map(jnp.asarray, probes), {**axes, "seed": tuple(seeds)}, stream.classes)


def _check(kind: StreamedLogistic, widths: dict[str, int], stream: TokenStream, seeds: Sequence[int]) -> None:
    if len(stream.classes) != 2:
        raise UserError(f"a logistic regression tells two classes apart; the stream has {len(stream.classes)}")
    if len(set(widths.values())) > 1:
        raise UserError(f"the sites have different widths, {widths}: give one call for each width")
    if not seeds or (len(seeds) > 1 and not kind.bootstrap):
        raise UserError("give one seed, or several and bootstrap=True: the optimum does not depend on the seed")


def begin_logistic(
    settings: LogisticSettings, strengths: int, seeds: int, batches: list[TokenRows], model: Model
) -> LogisticState:  # fmt: skip
    """The state before the first step, with the means and variances of the first batches."""
    measure = jax.jit(partial(_measured, settings.names))
    found = to_host([measure(model, batch) for batch in batches])
    rows = sum(float(n) for n, _ in found)
    if not rows:
        raise UserError(f"no token of the first {len(batches)} batches has a label: give larger batches or `measured`")
    mean, scale = {}, {}
    for name in settings.names:
        n, means, squares = (np.stack(part).astype(np.float64) for part in zip(*((n, *of[name]) for n, of in found)))
        whole = n @ means / rows
        variance = (squares.sum(axis=0) + n @ (means - whole[None]) ** 2) / rows
        mean[name] = jnp.asarray(whole, jnp.float32)
        scale[name] = column_scale(mean[name], jnp.asarray(variance, jnp.float32))
    params = {
        name: (jnp.zeros((strengths, seeds, len(of))), jnp.zeros((strengths, seeds))) for name, of in mean.items()
    }
    optimizer = optimizers.init(settings.optimizer, params)
    in_batch = jnp.asarray(rows / len(batches), jnp.float32)
    return LogisticState(params, optimizer, mean, scale, in_batch, jnp.zeros(2), jnp.zeros((), jnp.int32))


@automatic
def _measured(names: tuple[str, ...], model: Model, batch: tuple) -> tuple[Array, dict[str, tuple[Array, Array]]]:
    """(the number of labelled tokens; for each site the mean of each column, and the sum of squares around it)."""
    tokens, mask, y = batch
    used, _ = used_and_columns(y, 2)
    n, found = jnp.sum(used), {}
    for name, x in zip(names, wide_values(names, model, tokens, mask), strict=True):
        x = jnp.where((used > 0)[:, None], x.reshape(-1, x.shape[-1]), 0.0)
        mean = jnp.matmul(used, x, precision=HIGH) / jnp.maximum(n, 1)
        found[name] = (mean, jnp.matmul(used, (x - mean[None, :]) ** 2, precision=HIGH))
    return n, found


@automatic_step
def logistic_step(
    settings: LogisticSettings, state: LogisticState, batch: tuple, model: Model, C: Array, keys: Array
) -> tuple[LogisticState, dict[str, Array]]:
    """Read one batch, and take a step of Adam on all probes: a pure function, a step for `training.fit`.

    Args:
      settings: the sites, the optimizer and the number of steps.
      state: the probes.
      batch: tokens, mask and labels, as in `TokenStream`.
      model: the model.
      C: the inverse strengths.
      keys: the key of each seed.
    """
    tokens, mask, y = batch
    used, positive = used_and_columns(y, 2)
    weight = jnp.broadcast_to(used[:, None], (used.shape[0], keys.shape[0]))
    if settings.bootstrap:
        draw = lambda key: jax.random.exponential(jax.random.fold_in(key, state.step), used.shape)
        weight = weight * jax.vmap(draw, out_axes=1)(keys)
    z: dict[str, Array] = {}
    for name, x in zip(settings.names, wide_values(settings.names, model, tokens, mask), strict=True):
        x = jnp.where((used > 0)[:, None], x.reshape(used.shape[0], -1), 0.0)
        z[name] = (x - state.mean[name][None, :]) / state.scale[name][None, :]

    def objective(params: Params) -> tuple[Array, Array]:
        total, mean = jnp.zeros(()), jnp.zeros(())
        for name, of in params.items():
            losses = log_losses(of, z[name], positive[:, 0], weight) / state.rows
            total = total + jnp.sum(losses + penalties(of[0], state.scale[name], C) / (state.rows * settings.steps))
            mean = mean + jnp.mean(losses) / len(params)
        return total, mean

    (_, loss), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
    params, optimizer = optimizers.update(settings.optimizer, gradient, state.optimizer, state.params)
    ones = jnp.sum(used * positive[:, 0])
    seen = state.seen + jnp.stack([jnp.sum(used) - ones, ones])
    after = dataclasses.replace(state, params=params, optimizer=optimizer, seen=seen, step=state.step + 1)
    return after, {"loss": loss, "rows": jnp.sum(seen)}
