"""Train a cross-layer dictionary.

    config = CrossLayerConfig(
        address=tuple(f"blocks.{i}.ln2.normalized" for i in range(4)),
        writes=tuple(f"blocks.{i}.mlp_out" for i in range(4)),         # a cross-layer transcoder
        n_features=4096,
        steps=2000,
    )
    clt = train_cross_layer(config, model, batch_at, run="runs/clt")       # works on raw activations

All values are read in one forward pass, and each value is scaled separately to E‖x‖² = d. `n_features`, k and a target
L0 apply to each source. The reconstruction term applies to all targets together. The other terms are computed for each
source, with the errors of the targets that it writes, and then summed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.core.optimizers import unit_rows
from jax_interp.data.harvest import Stream, advance
from jax_interp.dictionaries.forms.cross_layer import CrossLayer, Source, n_targets
from jax_interp.dictionaries.forms.dictionary import init_sae, init_transcoder
from jax_interp.dictionaries.losses.forward import Forward
from jax_interp.dictionaries.losses.term import Term, snake, sse_unit
from jax_interp.dictionaries.sharding import rules
from jax_interp.dictionaries.training.apply_gradient import SOURCES, StepResult, UpdateRule, apply_gradient, observe
from jax_interp.dictionaries.training.config import CrossLayerConfig
from jax_interp.dictionaries.training.initialise import new_learner
from jax_interp.dictionaries.training.learner import (
    BatchAt,
    Learner,
    TrainState,
    adam,
    lowered_rate,
    matmul_precision,
    offset_rate,
    step_metrics,
)
from jax_interp.dictionaries.training.normalisation import fold_scale, fold_shift, for_inference
from jax_interp.dictionaries.training.train import fit_on_stream, planned_on_stream, start_on_stream
from jax_interp.models.sharding import rules_for
from jax_interp.surgery.contract import Model
from jax_interp.training import Log, Place, RunTarget, SaveTo, automatic, automatic_step, placed
from jax_interp.training.planning.planned import PlannedStep


def init_cross_layer(
    config: CrossLayerConfig, key: Key[Array, ""], widths: Sequence[int], mean: Float[Array, " d"]
) -> CrossLayer:
    """A new cross-layer dictionary.

    At first, each source writes nothing to later targets, and `b_enc` cancels the mean input. For a crosscoder, the
    decoder to its own target is the transposed encoder. For a transcoder, it is zero.

    Args:
      config: the config of the dictionary.
      key: the random key for the weights.
      widths: the widths of the values at `config.addresses`.
      mean: the mean of these (scaled) values, side by side.

    Raises:
      UserError: the values that are read, or those that are written, differ in width.
    """
    n = len(config.reads)
    d_in, d_out = widths[0], widths[-1]
    if set(widths[:n]) != {d_in} or set(widths[-n:]) != {d_out}:
        raise UserError(
            f"the values that a cross-layer dictionary reads must have one width, and so must those that it writes; "
            f"the widths are {tuple(widths)}"
        )
    means_in, means_out = mean[: n * d_in].reshape(n, d_in), mean[-n * d_out :].reshape(n, d_out)
    activation, m = config.activation.init(config.n_features, mean.dtype), config.n_features
    sources = []
    for i in range(n):
        # The first source gets the same weights as a single dictionary. 1 and 2 are folded into the key elsewhere.
        of_source, targets = key if i == 0 else jax.random.fold_in(key, i + 2), n_targets(n, i, config.window)
        if config.writes is None:
            norm = 1.0 if config.decoder == "unit" else 0.1
            made = init_sae(of_source, d_in, m, activation, means_in[i], row_norm=norm, centred=False, dtype=mean.dtype)
            W_dec = jnp.pad(made.W_dec[:, None], ((0, 0), (0, targets - 1), (0, 0)))
        else:
            made = init_transcoder(
                of_source, d_in, targets * d_out, m, activation, means_in[i], jnp.zeros((targets * d_out,), mean.dtype)
            )
            W_dec = made.W_dec
            if config.decoder == "unit":
                W_dec = unit_rows(jax.random.normal(jax.random.fold_in(of_source, 1), W_dec.shape, mean.dtype))
            W_dec = W_dec.reshape(m, targets, d_out)
        skip = jnp.zeros((d_in, d_out), mean.dtype) if config.skip else None
        sources.append(Source(made.W_enc, made.b_enc, W_dec, made.activation, skip))
    return CrossLayer(tuple(sources), means_out)


def init_cross_layer_learner(
    config: CrossLayerConfig, key: Key[Array, ""], widths: Sequence[int], mean: Float[Array, " d"]
) -> Learner[CrossLayer]:
    """The learner before its first step. Its `since_fired` is [source, feature]. For arguments, see
    `init_cross_layer`."""
    dictionary = init_cross_layer(config, key, widths, mean)
    return new_learner(dictionary, config.optimizer, config.steps, (len(config.reads), config.n_features), key)


@automatic_step
def learn_cross_layer(
    config: CrossLayerConfig,
    learner: Learner[CrossLayer],
    rows: Float[Array, "row d"],
    variance: Float[Array, " value"],
    learning_rate: Float[Array, ""] | None = None,
) -> tuple[Learner[CrossLayer], dict[str, Array]]:
    """One training step on rows of activations: the loss and its gradient, then `apply_gradient`.

    Args:
      config: the config of the dictionary.
      learner: the learner before the step.
      rows: scaled activations at `config.addresses`, side by side.
      variance: E‖y - E y‖² of each scaled value.
      learning_rate: replaces that of the config. It may be traced.

    Returns:
      (the learner after the step, metrics of the batch before the update). `l0` counts all sources together.
    """
    dictionary, n = learner.dictionary, len(config.reads)
    d_in, d_out = dictionary.sources[0].W_enc.shape[0], dictionary.b_dec.shape[1]
    x = [rows[:, i * d_in : (i + 1) * d_in] for i in range(n)]
    y = rows[:, rows.shape[1] - n * d_out :]
    dead = learner.since_fired > config.dead_after
    next_key, term_key = jax.random.split(learner.key)
    progress = learner.step.astype(rows.dtype) / config.steps
    written = jnp.sum(variance[-n:])

    def loss_of(dictionary: CrossLayer):
        parts = [source.dictionary for source in dictionary.sources]
        codes = [part.training_code(of_source) for part, of_source in zip(parts, x, strict=True)]
        y_hat = jnp.concatenate(dictionary.reconstruct(codes, x), axis=1)
        whole = Forward(
            dictionary,  # type: ignore[arg-type]  (a term on all targets uses no weights)
            rows, y, codes[0], y_hat, dead[0], written, progress, term_key,
        )  # fmt: skip
        forwards = []
        for i, (part, code) in enumerate(zip(parts, codes, strict=True)):
            columns = slice(i * d_out, (i + part.write_sites) * d_out)
            of_targets = y[:, columns], y_hat[:, columns]
            forwards.append(
                Forward(part, x[i], of_targets[0], code, of_targets[1], dead[i], written, progress, term_key)
            )
        value, terms = total(config.loss, whole, forwards)
        return value, (terms, forwards, whole.error)

    with matmul_precision(config.matmul):
        (value, (terms, forwards, error)), gradient = jax.value_and_grad(loss_of, has_aux=True)(dictionary)
    fires = jnp.stack([forward.code.firing_counts(config.n_features) for forward in forwards])
    observed = tuple(observe(forward) for forward in forwards)
    result = StepResult(value, gradient, fires, observed, rows.shape[0])
    rule = UpdateRule(
        optimizer=adam(config.optimizer, config.steps, learning_rate, sse_unit(config.loss, written, n * d_out)),
        where=SOURCES,
        decoders=(config.decoder,) * n,
        offset_rate=offset_rate(config.optimizer, config.activation, d_in),
    )
    after, _ = apply_gradient(rule, learner, result, next_key)
    return after, step_metrics(value, terms, y, error, fires, dead, learner.step + 1)


def total(
    terms: Sequence[Term], whole: Forward, sources: Sequence[Forward]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """(sum of the terms, value of each term by name). Terms on targets are computed once, others summed over
    `sources`."""
    parts: dict[str, Array] = {}
    for term in terms:
        values = [term(whole)] if term.cross_layer == "targets" else [term(forward) for forward in sources]
        name = snake(type(term).__name__)
        parts[name] = sum(values, parts.get(name, jnp.zeros((), whole.x.dtype)))
    return sum(parts.values(), jnp.zeros((), whole.x.dtype)), parts


@automatic_step
def cross_layer_step(
    config: CrossLayerConfig,
    state: TrainState[CrossLayer],
    batch: tuple[Array, Array],
    model: Model,
    rate_scale: Array | None = None,
) -> tuple[TrainState[CrossLayer], dict[str, Array]]:
    """Harvest one batch of tokens, and learn from an equal number of shuffled rows. A pure function.

    `rate_scale` is a factor of the learning rate.
    """
    stream, rows = advance(state.stream, model, config.addresses, *batch)
    learner, metrics = learn_cross_layer(
        config, state.learner, rows, stream.variance, lowered_rate(config.optimizer, rate_scale)
    )
    return TrainState(learner, stream), metrics


def fold_scales(dictionary: CrossLayer, read: Float[Array, " source"], write: Float[Array, " target"]) -> CrossLayer:
    """The dictionary whose target t for the input x is `dictionary(read · x)[t] / write[t]`.

    Latents of source l are divided by write[l], so that they are in the units of the raw target l.
    """
    sources = []
    for i, source in enumerate(dictionary.sources):
        d_in, (_, n, d_out) = source.W_enc.shape[0], source.W_dec.shape
        columns = jnp.repeat(write[i : i + n], d_out, total_repeat_length=n * d_out)
        folded = fold_scale(source.dictionary, jnp.broadcast_to(read[i], (d_in,)), columns, write[i])
        skip = None if source.W_skip is None else source.W_skip * (read[i] / write[i])
        sources.append(dataclasses.replace(source.with_dictionary(folded), W_skip=skip))
    return CrossLayer(tuple(sources), dictionary.b_dec / write[:, None])


def _fold_shifts(
    dictionary: CrossLayer, read: Float[Array, "source d_in"], write: Float[Array, "target d_out"]
) -> CrossLayer:
    """The dictionary whose target t for the input x is `dictionary(x - read)[t] + write[t]`."""
    sources, b_dec = [], dictionary.b_dec + write
    for i, source in enumerate(dictionary.sources):
        alone = source.dictionary
        sources.append(source.with_dictionary(fold_shift(alone, read[i], jnp.zeros_like(alone.b_dec))))
        if source.W_skip is not None:
            b_dec = b_dec.at[i].add(-(read[i] @ source.W_skip))
    return CrossLayer(tuple(sources), b_dec)


@partial(automatic, rules=rules)
def export(config: CrossLayerConfig, state: TrainState[CrossLayer]) -> CrossLayer:
    """The dictionary in its current state, for raw activations. BatchTopK is converted to JumpReLU."""
    return export_learner(config, state.learner, state.stream)


def export_learner(config: CrossLayerConfig, learner: Learner[CrossLayer], stream: Stream) -> CrossLayer:
    """`export` for a learner. The scale and the long mean of each value are taken from `stream`."""
    n, d_in, d_out = len(config.reads), stream.widths[0], stream.widths[-1]
    centre = stream.centre
    read, write = centre[: n * d_in].reshape(n, d_in), centre[-n * d_out :].reshape(n, d_out)
    folded = fold_scales(_fold_shifts(learner.dictionary, read, write), stream.scale[:n], stream.scale[-n:])
    sources = [source.with_dictionary(for_inference(source.dictionary)) for source in folded.sources]
    return dataclasses.replace(folded, sources=tuple(sources))


def init_cross_layer_state(config: CrossLayerConfig, model: Model, batch_at: BatchAt) -> TrainState[CrossLayer]:
    """The state before the first step. The buffer is full, and scales, mean and variance are measured on it."""
    return start_on_stream(config, model, batch_at, partial(init_cross_layer_learner, config))


def planned(config: CrossLayerConfig, model: Model, batch: tuple[Any, Any]) -> PlannedStep:
    """The step of `train_cross_layer`, from the shapes of a model and of a batch (`training.planning`)."""
    return planned_on_stream(config, model, batch, cross_layer_step, partial(init_cross_layer_learner, config))


def train_cross_layer(
    config: CrossLayerConfig,
    model: Model,
    batch_at: BatchAt,
    *,
    run: RunTarget = None,
    place: Place = None,
    log: Log = Log(),
) -> CrossLayer:
    """Train a cross-layer dictionary, from the start or from the last checkpoint of `run`.

    If a run is killed, the same call resumes it. The result has the same bits as that of an uninterrupted run.

    Args:
      config: the config of the dictionary and of its training.
      model: any model that keeps the surgery contract. It is not changed.
      batch_at: a function from the index of a batch to (tokens [seq, pos], keep [seq, pos]), as in `train_dictionary`.
      run: where to save the run: a directory, or a `SaveTo` that also sets how often. None: nothing is saved.
      place: as in `train_dictionary`.
      log: what is evaluated, logged and shown.

    Returns:
      The dictionary, for raw activations. BatchTopK is converted to JumpReLU.

    Raises:
      UserError: an address is not in the model, widths of values differ, or `run` holds a run of another config.

    Example:
        layers = range(4)
        config = variants.batch_topk_cross_layer(
            tuple(f"blocks.{i}.ln2.normalized" for i in layers), tuple(f"blocks.{i}.mlp_out" for i in layers), k=16
        )
        clt = train_cross_layer(config, model, batch_at, run="runs/clt")
    """
    step, saving, title = partial(cross_layer_step, config), SaveTo.of(run, config), "cross-layer dictionary"
    with placed(place, rules) as there:
        model, batch_at = there.frozen(model, rules_for(model)), there.batches(batch_at)
        state = there.state(init_cross_layer_state(config, model, batch_at))
        return export(config, fit_on_stream(step, state, config, model, batch_at, saving, log, title))
