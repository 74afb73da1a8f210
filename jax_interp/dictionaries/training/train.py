"""Training a dictionary on the activations of any model, in one jitted step that harvests and learns.

    config = DictionaryConfig("blocks.2.resid_post", n_features=4096, activation=TopK(32), steps=800)
    sae = train_dictionary(config, model, batch_at, run="runs/sae")            # works on raw activations

`batch_at(i)` is any function from a number to (tokens [seq, pos], keep [seq, pos]). The pieces are pure functions of
one state: `learn` alone (rows in, learner out) is what a sweep maps over (sweep.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from jax_interp.core import optimizers as optimizer
from jax_interp.core.errors import UserError
from jax_interp.core.unit_rows import unit_rows, without_parallel
from jax_interp.data.harvest import Stream, advance, columns, start_stream
from jax_interp.dictionaries.activations import Activation
from jax_interp.dictionaries.forms.dictionary import Dictionary, check_one_width, init_sae, init_transcoder
from jax_interp.dictionaries.losses.forward import Forward
from jax_interp.dictionaries.losses.term import Term, sse_unit, total
from jax_interp.dictionaries.training.config import Adam, CrossLayerConfig, DictionaryConfig
from jax_interp.dictionaries.training.gradient import loss_and_grad
from jax_interp.dictionaries.training.normalisation import fold_scale, for_inference
from jax_interp.dictionaries.training.resampling import resample
from jax_interp.training import Log, RunTarget, SaveTo, fit

BatchAt = Callable[[int], tuple[Array, Array]]
"""The number of a batch, from 0 -> (tokens [seq, pos], keep [seq, pos])."""

PRECISION = {"float32": "F32_F32_F32", "bfloat16": "BF16_BF16_F32"}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Learner:
    """What one dictionary's training depends on. `since_fired` counts tokens (it stops at 2³⁰)."""

    dictionary: Dictionary
    opt: Any
    since_fired: Int[Array, " feature"]
    step: Int[Array, ""]
    key: Key[Array, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    learner: Learner
    stream: Stream


def adam(config: Adam, steps: int, learning_rate: Any = None, unit: Any = 1.0) -> optax.GradientTransformation:
    """Clipping, then Adam with its schedule. `learning_rate` in place of the config's may be traced, and `unit`, what
    the loss was divided by (`sse_unit`)."""
    decay = max(round(config.decay * steps), 1)
    peak = config.learning_rate if learning_rate is None else learning_rate

    def rate(count):
        step = count.astype(jnp.float32)
        up = (step + 1) / max(config.warmup, 1)
        down = (steps - step) / decay
        return peak * jnp.clip(jnp.minimum(up, down), 0.0, 1.0)

    clip = optax.identity() if config.clip is None else optax.clip_by_global_norm(config.clip / unit)
    return optax.chain(clip, optax.adam(rate, b1=config.b1, b2=config.b2, eps=config.eps))


def init_dictionary(config: DictionaryConfig, key: Key[Array, ""], widths: Sequence[int], mean: Array) -> Dictionary:
    """A fresh dictionary for (scaled) values of `widths`, those read and then those written, and their `mean`.
    UserError where several values are written and differ in width."""
    activation = config.activation.init(config.n_features, mean.dtype)
    n, written = len(config.targets), tuple(widths)[-len(config.targets) :]
    check_one_width(config.targets, written)
    if config.writes is None:
        d, m, unit = sum(widths), config.n_features, config.decoder == "unit"
        # Where every positive pre-activation is on, m unit rows give m / 2d of x back: the encoder makes up for it, or
        # the first thousands of steps go into unlearning it. TopK and its kin choose few and need none of that.
        dense = unit and config.activation.k is None
        return init_sae(
            key, d, m, activation, mean, row_norm=1.0 if unit else 0.1, centred=config.centred, sites=n,
            encoder_scale=min(1.0, 2 * d / m) if dense else 1.0,
        )  # fmt: skip
    d_out = sum(written)
    mean_in, mean_out = mean[:-d_out], mean[-d_out:]
    made = init_transcoder(
        key, len(mean_in), d_out, config.n_features, activation, mean_in, mean_out, skip=config.skip, write_sites=n
    )
    if config.decoder == "free":
        return made
    rows = jax.random.normal(jax.random.fold_in(key, 1), made.W_dec.shape, mean.dtype)
    return dataclasses.replace(made, W_dec=unit_rows(rows))


def init_learner(config: DictionaryConfig, key: Key[Array, ""], widths: Sequence[int], mean: Array) -> Learner:
    """The learner before its first step. `mean` is of the scaled values, those read and then those written."""
    if isinstance(config, CrossLayerConfig):
        raise UserError("this trains a dictionary of one code; a CrossLayerConfig is for train_cross_layer")
    dictionary = init_dictionary(config, key, widths, mean)
    since_fired = jnp.zeros((config.n_features,), jnp.int32)
    opt = optimizer.init(adam(config.optimizer, config.steps), dictionary)
    return Learner(dictionary, opt, since_fired, jnp.zeros((), jnp.int32), jax.random.fold_in(key, 2))


def learn(
    config: DictionaryConfig,
    learner: Learner,
    rows: Float[Array, "row d"],
    variance: Float[Array, " value"],
    loss: Sequence[Term] | None = None,
    learning_rate: Any = None,
    tokens: Int[Array, ""] | None = None,
    ended: Bool[Array, ""] | None = None,
) -> tuple[Learner, dict[str, Array]]:
    """One step on scaled `rows`, what is read and then what is written: (learner, metrics). `loss` and `learning_rate`
    in place of the config's may hold traced numbers. `tokens`: how many the rows are, where some stand there again.
    Given `ended`, the learner stays as it is where that is True and where its gradient is not finite: metrics say.

    In this order: gradient; the part of it along decoder rows removed, where they are held at norm 1; Adam; rows back
    to norm 1; running threshold; firing counters; resampling.
    """
    dictionary, terms = learner.dictionary, config.loss if loss is None else loss
    seen = rows.shape[0] if tokens is None else tokens
    x, y = split_rows(config, dictionary, rows)
    dead = learner.since_fired > config.dead_after
    key, term_key, resample_key = jax.random.split(learner.key, 3)
    progress = learner.step.astype(rows.dtype) / config.steps

    def loss_of(dictionary, code):
        y_hat = dictionary.reconstruct(code, x)
        written = jnp.sum(variance[-len(config.targets) :])
        forward = Forward(dictionary, x, y, code, y_hat, dead, written, progress, term_key)
        value, parts = total(terms, forward)
        observed = dictionary.activation.observe(dictionary, code)
        return value, (parts, code.firing_counts(config.n_features), observed, forward.error)

    with jax.default_matmul_precision(PRECISION[config.matmul]) if config.matmul else contextlib.nullcontext():
        (value, (parts, fires, observed, error)), grad = loss_and_grad(config, terms, loss_of, dictionary, x)
    if config.decoder == "unit":
        grad = dataclasses.replace(grad, W_dec=_by_site(without_parallel, dictionary, grad.W_dec, dictionary.W_dec))
    unit = sse_unit(terms, jnp.sum(variance[-len(config.targets) :]), y.shape[1])
    optimize = adam(config.optimizer, config.steps, learning_rate, unit)
    updated, opt = optimizer.update(optimize, grad, learner.opt, dictionary)
    rate = offset_rate(config.optimizer, config.activation, dictionary.d)
    updated = faster_offsets(rate, dictionary, updated)
    if config.decoder == "unit":
        updated = dataclasses.replace(updated, W_dec=_by_site(unit_rows, dictionary, updated.W_dec))
    if observed is not None:
        updated = dataclasses.replace(updated, activation=observed)
    since_fired = jnp.where(fires > 0, 0, jnp.minimum(learner.since_fired, 2**30) + seen)
    step = learner.step + 1
    if config.resampling is not None:
        updated, opt, since_fired = _resampled(config, updated, opt, since_fired, seen, x, error, step, resample_key)
    metrics = _metrics(value, parts, y, error, fires, dead, step)
    after = Learner(updated, opt, since_fired, step, key)
    if ended is not None:
        finite = [jnp.isfinite(a).all() for a in jax.tree.leaves((value, grad))]
        ended = metrics["ended"] = ended | ~jnp.stack(finite).all()
        after = jax.tree.map(lambda old, new: jnp.where(ended, old, new), learner, after)
    return after, metrics


def split_rows(config: DictionaryConfig, dictionary: Dictionary, rows: Array) -> tuple[Array, Array]:
    """(what is read, what should be written)."""
    return (rows, rows) if config.writes is None else (rows[:, : dictionary.d], rows[:, dictionary.d :])


def offset_rate(optimizer: Adam, activation: Activation, d: int) -> float:
    """How many times longer the steps of offsets are, `Adam.offset_rate`, for values of width d."""
    if optimizer.offset_rate is not None:
        return optimizer.offset_rate
    return d**0.5 if activation.k is None else 1.0


def faster_offsets(rate: float, before: Any, after: Any) -> Any:
    """A dictionary `after` a step, with the steps of biases and of activations' parameters `rate` times as long."""
    if rate == 1:
        return after

    def longer(path: Any, old: Array, new: Array) -> Array:
        is_offset = any(getattr(key, "name", None) in ("b_enc", "b_dec", "activation") for key in path)
        return old + rate * (new - old) if is_offset else new

    return jax.tree_util.tree_map_with_path(longer, before, after)


def _by_site(act: Callable, dictionary: Dictionary, *matrices: Array) -> Array:
    """`act` on decoder rows, each written value's part of a row by itself."""
    if dictionary.write_sites == 1:
        return act(*matrices)
    apart = [a.reshape(a.shape[0], dictionary.write_sites, -1) for a in matrices]
    return act(*apart).reshape(matrices[0].shape)


def _resampled(config, dictionary, opt, since_fired, seen, x, error, step, key):
    rule, every = config.resampling, config.resampling.period(config.steps)
    dead = since_fired > every * seen // 2
    due = (step % every == 0) & (step <= round(rule.until * config.steps))
    anew = lambda dictionary, opt: resample(config, dictionary, opt, dead, x, error, key, rule.encoder_scale)
    dictionary, opt = jax.lax.cond(due, anew, lambda dictionary, opt: (dictionary, opt), dictionary, opt)
    return dictionary, opt, jnp.where(due & dead, 0, since_fired)


def _metrics(value, parts, y, error, fires, dead, step) -> dict[str, Array]:
    """Of one batch, before the update: the loss, its terms, `fvu` centred on the batch's mean, `dead` latents."""
    centred = y - jnp.mean(y, axis=0, keepdims=True)
    return parts | {
        "loss": value,
        "fvu": jnp.sum(error * error) / jnp.sum(centred * centred),
        "l0": jnp.sum(fires).astype(y.dtype) / y.shape[0],
        "dead": jnp.sum(dead),
        "tokens": step.astype(jnp.uint32) * jnp.uint32(y.shape[0]),  # wraps at 4.3 billion
    }


def addresses(config: DictionaryConfig) -> tuple[str, ...]:
    """What is harvested: what is read, then what is written where it is something else."""
    return config.reads if config.writes is None else config.reads + config.targets


def train_step(
    config: DictionaryConfig, state: TrainState, batch: tuple[Array, Array], model: Any
) -> tuple[TrainState, dict[str, Array]]:
    """Harvest one token batch and learn from as many shuffled rows. Pure; `partial(train_step, config)` is a `fit` step
    with the model among `frozen`."""
    stream, rows = advance(state.stream, model, addresses(config), *batch)
    learner, metrics = learn(config, state.learner, rows, stream.variance)
    return TrainState(learner, stream), metrics


def init_train_state(
    config: DictionaryConfig, model: Any, batch_at: Callable[[int], tuple[Array, Array]]
) -> TrainState:
    """The state before the first step: buffer full, inputs measured."""
    dictionary_key, stream_key = jax.random.split(jax.random.key(config.seed))
    stream = start_stream(stream_key, model, addresses(config), batch_at, config.buffer)
    return TrainState(init_learner(config, dictionary_key, stream.widths, stream.mean), stream)


def export(config: DictionaryConfig, state: TrainState) -> Dictionary:
    """The dictionary as trained so far, for raw activations."""
    return export_learner(config, state.learner, state.stream)


def export_learner(config: DictionaryConfig, learner: Learner, source: Any) -> Dictionary:
    """`source`: what has the `scale` of each value, and their `widths`: a stream or a store."""
    scales, n = columns(jnp.asarray(source.scale), source.widths), learner.dictionary.d
    read, write = scales[:n], scales if config.writes is None else scales[n:]
    # Latents are in the units of what is written; of several values, in the units of the first.
    return for_inference(fold_scale(learner.dictionary, read, write, write[0]))


def train_dictionary(
    config: DictionaryConfig,
    model: Any,
    batch_at: Callable[[int], tuple[Array, Array]],
    *,
    run: RunTarget = None,
    log: Log = Log(),
) -> Dictionary:
    """Train from the start, or from the last checkpoint of `run`, and export. `run` and `log` are as in
    `training.fit`.

    The same call after a kill ends with the same bits. `batch_at` must be a function of its number only.
    """
    state = init_train_state(config, model, batch_at)
    filled = int(state.stream.cursor)  # these batches went into the first buffer
    tokens = batch_at(0)[0].size
    shown = ("loss", "fvu", "l0", "dead")
    state = fit(
        partial(train_step, config),
        state,
        lambda i: batch_at(filled + i),
        steps=config.steps,
        run=SaveTo.of(run, config),
        frozen=(model,),
        log=log.with_defaults(shown=shown, per_step={"tokens": tokens}, title="dictionary"),
    )
    return export(config, state)


@dataclasses.dataclass(frozen=True)
class StoreRun:
    """What is kept with a run on a store, so that a resume is of the same rows in the same batches."""

    dictionary: DictionaryConfig
    batch: int
    shards: tuple[str, ...]
    """Their SHA-256."""


def train_from_store(
    config: DictionaryConfig, store: Any, *, batch: int = 2048, run: RunTarget = None, log: Log = Log()
) -> Dictionary:
    """`train_dictionary` on the rows of an `ActivationStore`, `batch` of them a step, no model needed. The store holds
    what the config reads and then what it writes, in that order; UserError otherwise."""
    if store.addresses != addresses(config):
        raise UserError(
            f"the store holds {', '.join(store.addresses)}; the config asks for {', '.join(addresses(config))}"
        )
    if batch < 1:
        raise UserError(f"batch={batch}: at least 1 row a step")
    key = jax.random.split(jax.random.key(config.seed))[0]
    kept = StoreRun(config, batch, tuple(shard["sha256"] for shard in store.manifest["shards"]))
    mean, variance = jnp.asarray(store.mean), jnp.asarray(store.variance)
    scale = columns(jnp.asarray(store.scale), store.widths)

    def step(learner, rows, scale, variance):
        return learn(config, learner, rows * scale[None, :], variance)

    shown = ("loss", "fvu", "l0", "dead")
    learner = fit(
        step,
        init_learner(config, key, store.widths, mean),
        lambda i: store.batch_at(i, batch, config.seed),
        steps=config.steps,
        run=SaveTo.of(run, kept),
        frozen=(scale, variance),
        log=log.with_defaults(shown=shown, per_step={"tokens": batch}, title="dictionary"),
    )
    return export_learner(config, learner, store)
