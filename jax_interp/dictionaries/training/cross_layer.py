"""Training a cross-layer dictionary: the stream, the losses and the loop of all dictionaries, one code a source.

    config = CrossLayerConfig(
        address=tuple(f"blocks.{i}.ln2.normalized" for i in range(4)),
        writes=tuple(f"blocks.{i}.mlp_out" for i in range(4)),         # a cross-layer transcoder
        n_features=4096,
        steps=2000,
    )
    clt = train_cross_layer(config, model, batch_at, run="runs/clt")       # works on raw activations

Every value is read in one forward pass and scaled by itself to E‖x‖² = d. `n_features`, k and a target for L0 are those
of each source; the reconstruction is of all targets together, and the other terms are summed over sources, each with
the errors of the targets that it writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.core import optimizers as optimizer
from jax_interp.core.errors import UserError
from jax_interp.core.unit_rows import unit_rows, without_parallel
from jax_interp.data.harvest import Stream, advance, start_stream
from jax_interp.dictionaries.forms.cross_layer import CrossLayer, Source, n_targets
from jax_interp.dictionaries.forms.dictionary import init_sae, init_transcoder
from jax_interp.dictionaries.losses.forward import Forward
from jax_interp.dictionaries.losses.term import Term, snake, sse_unit
from jax_interp.dictionaries.training.config import CrossLayerConfig
from jax_interp.dictionaries.training.normalisation import fold_scale, for_inference
from jax_interp.dictionaries.training.train import (
    PRECISION,
    Learner,
    TrainState,
    adam,
    addresses,
    faster_offsets,
    offset_rate,
)
from jax_interp.training import Log, RunTarget, SaveTo, fit


def init_cross_layer(
    config: CrossLayerConfig, key: Key[Array, ""], widths: Sequence[int], mean: Float[Array, " d"]
) -> CrossLayer:
    """Fresh weights for (scaled) values of `widths`, those read and then those written, and their `mean`. Each source
    begins as the dictionary that has its own target alone, and writes nothing to later ones: decoder zero for a
    transcoder (its b_enc takes off the inputs' mean), transposed to the encoder for a crosscoder."""
    n = len(config.reads)
    d_in, d_out = widths[0], widths[-1]
    if set(widths[:n]) != {d_in} or set(widths[-n:]) != {d_out}:
        raise UserError(f"the values of a cross-layer dictionary have one width each side, not {tuple(widths)}")
    means_in, means_out = mean[: n * d_in].reshape(n, d_in), mean[-n * d_out :].reshape(n, d_out)
    activation, m = config.activation.init(config.n_features, mean.dtype), config.n_features
    sources = []
    for i in range(n):
        # The first begins as a dictionary alone does; 1 and 2 are folded in by its decoder and by the learner.
        of_source, targets = key if i == 0 else jax.random.fold_in(key, i + 2), n_targets(n, i, config.window)
        if config.writes is None:
            norm = 1.0 if config.decoder == "unit" else 0.1
            made = init_sae(of_source, d_in, m, activation, row_norm=norm, centred=False, dtype=mean.dtype)
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
) -> Learner:
    """The learner before its first step; `since_fired` is [source, feature]."""
    dictionary: Any = init_cross_layer(config, key, widths, mean)
    since_fired = jnp.zeros((len(config.reads), config.n_features), jnp.int32)
    opt = optimizer.init(adam(config.optimizer, config.steps), dictionary)
    return Learner(dictionary, opt, since_fired, jnp.zeros((), jnp.int32), jax.random.fold_in(key, 2))


def learn_cross_layer(
    config: CrossLayerConfig, learner: Learner, rows: Float[Array, "row d"], variance: Float[Array, " value"]
) -> tuple[Learner, dict[str, Array]]:
    """One step on scaled `rows`, what is read and then what is written: (learner, metrics), in the order of `learn`."""
    dictionary: Any = learner.dictionary
    n = len(config.reads)
    d_in, d_out = dictionary.sources[0].W_enc.shape[0], dictionary.b_dec.shape[1]
    x = [rows[:, i * d_in : (i + 1) * d_in] for i in range(n)]
    y = rows[:, rows.shape[1] - n * d_out :]
    dead = learner.since_fired > config.dead_after
    key, term_key = jax.random.split(learner.key)
    progress = learner.step.astype(rows.dtype) / config.steps
    written = jnp.sum(variance[-n:])

    def loss_of(dictionary: CrossLayer):
        parts = [source.dictionary for source in dictionary.sources]
        codes = [part.training_code(of_source) for part, of_source in zip(parts, x, strict=True)]
        y_hat = jnp.concatenate(dictionary.reconstruct(codes, x), axis=1)
        whole = Forward(dictionary, rows, y, codes[0], y_hat, dead[0], written, progress, term_key)
        forwards = []
        for i, (part, code) in enumerate(zip(parts, codes, strict=True)):
            columns = slice(i * d_out, (i + part.write_sites) * d_out)
            of_targets = y[:, columns], y_hat[:, columns]
            forwards.append(
                Forward(part, x[i], of_targets[0], code, of_targets[1], dead[i], written, progress, term_key)
            )
        value, terms = total(config.loss, whole, forwards)
        return value, (terms, codes, whole.error)

    with jax.default_matmul_precision(PRECISION[config.matmul]) if config.matmul else contextlib.nullcontext():
        (value, (terms, codes, error)), grad = jax.value_and_grad(loss_of, has_aux=True)(dictionary)
    if config.decoder == "unit":
        grad = _each_decoder(without_parallel, grad, dictionary)
    updated: Any
    optimize = adam(config.optimizer, config.steps, unit=sse_unit(config.loss, written, n * d_out))
    updated, opt = optimizer.update(optimize, grad, learner.opt, dictionary)
    updated = faster_offsets(offset_rate(config.optimizer, config.activation, d_in), dictionary, updated)
    if config.decoder == "unit":
        updated = _each_decoder(unit_rows, updated)
    observed = [s.activation.observe(s.dictionary, code) for s, code in zip(dictionary.sources, codes, strict=True)]
    if None not in observed:
        sources = [dataclasses.replace(s, activation=a) for s, a in zip(updated.sources, observed, strict=True)]
        updated = dataclasses.replace(updated, sources=tuple(sources))
    fires = jnp.stack([code.firing_counts(config.n_features) for code in codes])
    since_fired = jnp.where(fires > 0, 0, jnp.minimum(learner.since_fired, 2**30) + rows.shape[0])
    step = learner.step + 1
    centred = y - jnp.mean(y, axis=0, keepdims=True)
    metrics = terms | {
        "loss": value,
        "fvu": jnp.sum(error * error) / jnp.sum(centred * centred),
        "l0": jnp.sum(fires).astype(y.dtype) / y.shape[0],  # of all sources together
        "dead": jnp.sum(dead),
        "tokens": step.astype(jnp.uint32) * jnp.uint32(y.shape[0]),
    }
    return dataclasses.replace(
        learner, dictionary=updated, opt=opt, since_fired=since_fired, step=step, key=key
    ), metrics


def total(
    terms: Sequence[Term], whole: Forward, sources: Sequence[Forward]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """(sum of the terms, each by name): those on all targets together once, the others summed over `sources`."""
    parts: dict[str, Array] = {}
    for term in terms:
        values = [term(whole)] if term.cross_layer == "targets" else [term(forward) for forward in sources]
        name = snake(type(term).__name__)
        parts[name] = sum(values, parts.get(name, jnp.zeros((), whole.x.dtype)))
    return sum(parts.values(), jnp.zeros((), whole.x.dtype)), parts


def _each_decoder(act: Callable, *dictionaries: CrossLayer) -> CrossLayer:
    """`act` on the decoder rows of each source, all its targets side by side."""
    sources = []
    for of_source in zip(*(one.sources for one in dictionaries), strict=True):
        shape = of_source[0].W_dec.shape
        W_dec = act(*(source.W_dec.reshape(shape[0], -1) for source in of_source)).reshape(shape)
        sources.append(dataclasses.replace(of_source[0], W_dec=W_dec))
    return dataclasses.replace(dictionaries[0], sources=tuple(sources))


def cross_layer_step(
    config: CrossLayerConfig, state: TrainState, batch: tuple[Array, Array], model: Any
) -> tuple[TrainState, dict[str, Array]]:
    """Harvest one token batch and learn from as many shuffled rows. Pure."""
    stream, rows = advance(state.stream, model, addresses(config), *batch)
    learner, metrics = learn_cross_layer(config, state.learner, rows, stream.variance)
    return TrainState(learner, stream), metrics


def fold_scales(dictionary: CrossLayer, read: Float[Array, " source"], write: Float[Array, " target"]) -> CrossLayer:
    """The dictionary whose target t for x is `dictionary(read · x)[t] / write[t]`. Latents of source l get the raw
    units of target l: 1 / write[l] times as large."""
    sources = []
    for i, source in enumerate(dictionary.sources):
        d_in, (_, n, d_out) = source.W_enc.shape[0], source.W_dec.shape
        columns = jnp.repeat(write[i : i + n], d_out, total_repeat_length=n * d_out)
        folded = fold_scale(source.dictionary, jnp.broadcast_to(read[i], (d_in,)), columns, write[i])
        skip = None if source.W_skip is None else source.W_skip * (read[i] / write[i])
        sources.append(dataclasses.replace(source.with_dictionary(folded), W_skip=skip))
    return CrossLayer(tuple(sources), dictionary.b_dec / write[:, None])


def export(config: CrossLayerConfig, state: TrainState) -> CrossLayer:
    """The dictionary as trained so far, for raw activations; BatchTopK as the JumpReLU that it is at inference."""
    return export_learner(config, state.learner, state.stream)


def export_learner(config: CrossLayerConfig, learner: Learner, stream: Stream) -> CrossLayer:
    n, dictionary = len(config.reads), learner.dictionary
    folded = fold_scales(dictionary, stream.scale[:n], stream.scale[-n:])  # type: ignore[arg-type]
    sources = [source.with_dictionary(for_inference(source.dictionary)) for source in folded.sources]
    return dataclasses.replace(folded, sources=tuple(sources))


def init_cross_layer_state(
    config: CrossLayerConfig, model: Any, batch_at: Callable[[int], tuple[Array, Array]]
) -> TrainState:
    """The state before the first step: buffer full, inputs measured."""
    key, stream_key = jax.random.split(jax.random.key(config.seed))
    stream = start_stream(stream_key, model, addresses(config), batch_at, config.buffer)
    return TrainState(init_cross_layer_learner(config, key, stream.widths, stream.mean), stream)


def train_cross_layer(
    config: CrossLayerConfig,
    model: Any,
    batch_at: Callable[[int], tuple[Array, Array]],
    *,
    run: RunTarget = None,
    log: Log = Log(),
) -> CrossLayer:
    """Train from the start, or from the last checkpoint of `run`, and export: as `train_dictionary`, with the same
    options and the same law of resuming to the bit."""
    state = init_cross_layer_state(config, model, batch_at)
    filled = int(state.stream.cursor)  # these batches went into the first buffer
    per_step = {"tokens": batch_at(0)[0].size}
    shown = ("loss", "fvu", "l0", "dead")
    state = fit(
        partial(cross_layer_step, config),
        state,
        lambda i: batch_at(filled + i),
        steps=config.steps,
        run=SaveTo.of(run, config),
        frozen=(model,),
        log=log.with_defaults(shown=shown, per_step=per_step, title="cross-layer dictionary"),
    )
    return export(config, state)
