"""Train a dictionary on the activations of any model. One jitted step harvests activations and learns from them.

    config = DictionaryConfig("blocks.2.resid_post", n_features=4096, activation=TopK(32), steps=800)
    sae = train_dictionary(config, model, batch_at, run="runs/sae")            # works on raw activations

All steps are pure functions of one state. A sweep maps over `learn`, which needs only rows and a learner (sweep.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.data.activation_store import ActivationStore
from jax_interp.data.harvest import Stream, advance, columns, init_stream, long_means, stream_shapes
from jax_interp.dictionaries.codes import Code
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.losses.forward import Forward
from jax_interp.dictionaries.losses.term import Term, sse_unit, total
from jax_interp.dictionaries.sharding import rules
from jax_interp.dictionaries.training.apply_gradient import ALONE, StepResult, UpdateRule, apply_gradient, observe
from jax_interp.dictionaries.training.config import DictionaryConfig, HarvestedConfig
from jax_interp.dictionaries.training.gradient import loss_and_grad
from jax_interp.dictionaries.training.initialise import init_dictionary, new_learner
from jax_interp.dictionaries.training.learner import (
    BatchAt,
    Learner,
    Trained,
    TrainState,
    adam,
    kind_of,
    lowered_rate,
    matmul_precision,
    offset_rate,
    step_metrics,
    without_first,
)
from jax_interp.dictionaries.training.normalisation import fold_scale, fold_shift, for_inference
from jax_interp.dictionaries.training.resampling import resampler
from jax_interp.models.sharding import rules_for
from jax_interp.surgery.contract import Model
from jax_interp.training import Log, Place, RunTarget, SaveTo, automatic, automatic_step, fit, placed
from jax_interp.training.planning.planned import PlannedStep

SHOWN = ("loss", "fvu", "l0", "dead")


def init_learner(
    config: DictionaryConfig, key: Key[Array, ""], widths: Sequence[int], mean: Float[Array, " d"]
) -> Learner[Dictionary]:
    """The learner before its first step. For arguments, see `init_dictionary`."""
    dictionary = init_dictionary(config, key, widths, mean)
    return new_learner(dictionary, config.optimizer, config.steps, (config.n_features,), key)


@automatic_step
def learn(
    config: DictionaryConfig,
    learner: Learner[Dictionary],
    rows: Float[Array, "row d"],
    variance: Float[Array, " value"],
    loss: Sequence[Term] | None = None,
    learning_rate: Float[Array, ""] | None = None,
    ended: Bool[Array, ""] | None = None,
) -> tuple[Learner[Dictionary], dict[str, Array]]:
    """One training step on rows of activations: the loss and its gradient, then `apply_gradient`.

    Args:
      config: the config of the dictionary.
      learner: the learner before the step.
      rows: scaled activations at `config.addresses`, side by side.
      variance: E‖y - E y‖² of each scaled value.
      loss: loss terms that replace those of the config. Their coefficients may be traced.
      learning_rate: replaces that of the config. It may be traced.
      ended: as in `apply_gradient`. If it is given, the metrics include "ended".

    Returns:
      (the learner after the step, metrics of the batch before the update).
    """
    dictionary, terms = learner.dictionary, config.loss if loss is None else loss
    x, y = split_rows(config, dictionary, rows)
    written = jnp.sum(variance[-len(config.targets) :])
    dead = learner.since_fired > config.dead_after
    next_key, term_key, resample_key = jax.random.split(learner.key, 3)
    progress = learner.step.astype(rows.dtype) / config.steps

    def loss_of(dictionary: Dictionary, code: Code):
        y_hat = dictionary.reconstruct(code, x)
        forward = Forward(dictionary, x, y, code, y_hat, dead, written, progress, term_key)
        value, parts = total(terms, forward)
        return value, (parts, code.firing_counts(config.n_features), observe(forward), forward.error)

    with matmul_precision(config.matmul):
        (value, (parts, fires, observed, error)), gradient = loss_and_grad(config, terms, loss_of, dictionary, x)
    result = StepResult(value, gradient, fires, (observed,), rows.shape[0], x, error)
    unit = sse_unit(terms, written, y.shape[1])
    rule = UpdateRule(
        optimizer=adam(config.optimizer, config.steps, learning_rate, unit),
        where=ALONE,
        decoders=(config.decoder,),
        offset_rate=offset_rate(config.optimizer, config.activation, dictionary.d),
        resample=resampler(config, config.steps, resample_key, writes_input=config.writes is None),
    )
    after, ended = apply_gradient(rule, learner, result, next_key, ended)
    metrics = step_metrics(value, parts, y, error, fires, dead, learner.step + 1)
    return after, metrics if ended is None else metrics | {"ended": ended}


def split_rows(config: DictionaryConfig, dictionary: Dictionary, rows: Array) -> tuple[Array, Array]:
    """Split `rows` into (input, target)."""
    return (rows, rows) if config.writes is None else (rows[:, : dictionary.d], rows[:, dictionary.d :])


@automatic_step
def train_step(
    config: DictionaryConfig,
    state: TrainState[Dictionary],
    batch: tuple[Array, Array],
    model: Model,
    rate_scale: Array | None = None,
) -> tuple[TrainState[Dictionary], dict[str, Array]]:
    """Harvest one batch of tokens, and learn from an equal number of shuffled rows. A pure function.

    `partial(train_step, config)` is a step for `fit`, with the model in `frozen`. `rate_scale` is a factor of the
    learning rate.
    """
    stream, rows = advance(state.stream, model, config.addresses, *batch)
    rate = lowered_rate(config.optimizer, rate_scale)
    learner, metrics = learn(config, state.learner, rows, stream.variance, learning_rate=rate)
    return TrainState(learner, stream), metrics


def init_train_state(config: DictionaryConfig, model: Model, batch_at: BatchAt) -> TrainState[Dictionary]:
    """The state before the first step. The buffer is full, and scales, mean and variance are measured on it."""
    return start_on_stream(config, model, batch_at, partial(init_learner, config))


def start_on_stream(
    config: HarvestedConfig, model: Model, batch_at: BatchAt, init: Callable[..., Learner[Trained]]
) -> TrainState[Trained]:
    """The state before the first step. The learner is `init(key, widths, mean)`."""
    key, stream_key = jax.random.split(jax.random.key(config.seed))
    batch_at = without_first(batch_at, config.skip_first)
    stream = init_stream(stream_key, model, config.addresses, batch_at, config.buffer, config.max_norm)
    return TrainState(init(key, stream.widths, stream.mean - stream.centre), stream)


def state_shapes(
    config: HarvestedConfig, model: Model, batch: tuple[Any, Any], init: Callable[..., Learner[Trained]]
) -> TrainState[Trained]:
    """The shapes of the state that `start_on_stream` returns, from the shapes of a model and of a batch."""
    stream = stream_shapes(model, config.addresses, batch, config.buffer, config.max_norm)
    learner = jax.eval_shape(lambda mean: init(jax.random.key(0), stream.widths, mean), stream.mean)
    return TrainState(learner, stream)


def planned(config: DictionaryConfig, model: Model, batch: tuple[Any, Any]) -> PlannedStep:
    """The step of `train_dictionary`, from the shapes of a model and of a batch (`training.planning`)."""
    check_one_code(config)
    return planned_on_stream(config, model, batch, train_step, partial(init_learner, config))


def planned_on_stream(
    config: HarvestedConfig,
    model: Model,
    batch: tuple[Any, Any],
    step: Callable[..., Any],
    init: Callable[..., Learner[Trained]],
) -> PlannedStep:
    """`planned` for a trainer with this step and this first learner."""
    state = state_shapes(config, model, batch, init)
    frozen = ((model, rules_for(model)),)
    tokens = batch[0].size
    return PlannedStep(partial(step, config), state, batch, frozen, rules(state), kind_of, config.steps, tokens)


@partial(automatic, rules=rules)
def export(config: DictionaryConfig, state: TrainState[Dictionary]) -> Dictionary:
    """The dictionary in its current state, for raw activations."""
    return export_learner(config, state.learner, state.stream)


def export_learner(
    config: DictionaryConfig, learner: Learner[Dictionary], source: Stream | ActivationStore
) -> Dictionary:
    """`export` for a learner. The scale and the long mean of each value are taken from `source`."""
    scales, n = columns(jnp.asarray(source.scale), source.widths), learner.dictionary.d
    centre = long_means(jnp.asarray(source.mean), jnp.asarray(source.variance), source.widths)
    of_read, of_written = slice(None, n), slice(None if config.writes is None else n, None)
    shifted = fold_shift(learner.dictionary, centre[of_read], centre[of_written])
    # Latents are in the units of the written value, or of the first one if there are several.
    write = scales[of_written]
    return for_inference(fold_scale(shifted, scales[of_read], write, write[0]))


def train_dictionary(
    config: DictionaryConfig,
    model: Model,
    batch_at: BatchAt,
    *,
    run: RunTarget = None,
    place: Place = None,
    log: Log = Log(),
) -> Dictionary:
    """Train a dictionary of one code, from the start or from the last checkpoint of `run`.

    If a run is killed, the same call resumes it. The result has the same bits as that of an uninterrupted run. A run
    can also be resumed on another mesh; its numbers then agree up to rounding.

    Args:
      config: the config of the dictionary and of its training.
      model: any model that keeps the surgery contract. It is not changed.
      batch_at: a function from the index of a batch to (tokens [seq, pos], keep [seq, pos]). It must depend only on the
        index. Positions where `keep` is False are left out.
      run: where to save the run: a directory, or a `SaveTo` that also sets how often. None: nothing is saved.
      place: a mesh, on which the state, the model and the batches are placed. Or a function that shards the state
        (`shard(state, rules(state), mesh)`), for use inside `jax.set_mesh(mesh)`. None: one device.
      log: what is evaluated, logged and shown.

    Returns:
      The dictionary, for raw activations. BatchTopK is converted to JumpReLU, which it is at inference.

    Raises:
      UserError: an address is not in the model, `run` holds a run of another config, or the mesh does not divide the
        batch or the weights.

    Example:
        config = variants.topk("blocks.2.resid_post", k=32, n_features=4096, steps=800)
        sae = train_dictionary(config, model, batch_at, run=SaveTo("runs/sae", every=100))
        model_with = edit(model, at("blocks.2.resid_post", Splice(sae)))
    """
    check_one_code(config)
    step, saving = partial(train_step, config), SaveTo.of(run, config)
    with placed(place, rules) as there:
        model, batch_at = there.frozen(model, rules_for(model)), there.batches(batch_at)
        state = there.state(init_train_state(config, model, batch_at))
        return export(config, fit_on_stream(step, state, config, model, batch_at, saving, log, "dictionary"))


def fit_on_stream(
    step: Callable[..., tuple[TrainState[Trained], dict[str, Array]]],
    state: TrainState[Trained],
    config: HarvestedConfig,
    model: Model,
    batch_at: BatchAt,
    run: SaveTo,
    log: Log,
    title: str,
) -> TrainState[Trained]:
    """Train until the last step, and return the state. The batches that filled the buffer are not used again."""
    filled, batch_at = int(state.stream.cursor), without_first(batch_at, config.skip_first)
    log = log.with_defaults(shown=SHOWN, per_step={"tokens": batch_at(0)[0].size}, title=title)
    return fit(step, state, lambda i: batch_at(filled + i), steps=config.steps, run=run, frozen=(model,), log=log)


def check_one_code(config: object) -> None:
    """Raises UserError for a config that other trainers are for."""
    if not isinstance(config, DictionaryConfig):
        raise UserError(
            f"this trains a dictionary from a DictionaryConfig; a {type(config).__name__} is for "
            "train_cross_layer, train_joint or train_end_to_end"
        )
