"""Training a TopK dictionary on the activations of any model, in one jitted step that harvests and learns.

    config = DictionaryConfig(address="blocks.2.resid_post", n_features=4096, k=32, steps=800)
    sae = train_dictionary(config, model, batch_at, run="runs/sae")            # works on raw activations

`batch_at(i)` is any function from a number to (tokens [seq, pos], keep [seq, pos]). The pieces are pure functions of
one state: `learn` alone (rows in, learner out) is what a sweep maps over, `jax.vmap(partial(learn, config), (0, None,
None))` trains many learners on one stream of activations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from jax_interp.dictionaries.decoder_norm import unit_rows, without_parallel
from jax_interp.dictionaries.forms.sae import SAE, init_sae
from jax_interp.dictionaries.harvest import Stream, advance, start_stream
from jax_interp.dictionaries.losses.topk_aux import LossParts, default_k_aux, topk_aux_loss
from jax_interp.dictionaries.normalisation import fold_scale
from jax_interp.errors import UserError
from jax_interp.training import Run, fit, optimizer


@dataclasses.dataclass(frozen=True)
class DictionaryConfig:
    """What is trained where, and how long. Amounts of data are in tokens; one row of activations is one token.

    The defaults are for a small model on a laptop: steps · (tokens in a batch) rows are trained on.
    """

    address: str = "blocks.2.resid_post"
    n_features: int = 4096
    k: int = 32
    k_aux: int | None = None  # None: the power of two nearest d / 2 from below
    aux_coefficient: float = 1 / 32
    dead_after: int = 200_000  # tokens without firing; Gao et al. and most libraries use 10 million
    steps: int = 800
    learning_rate: float = 1e-3  # 2e-4 / sqrt(n_features / 2**14) is usual for runs of 10⁸ tokens and more
    warmup: int = 50  # steps of linear warm-up from 0
    decay: float = 0.2  # last part of the run, in which the rate falls linearly to 0
    buffer: int = 65_536  # rows shuffled among each other
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.k <= self.n_features:
            raise UserError(f"k={self.k} latents of n_features={self.n_features}: k must be from 1 to n_features")
        if self.k_aux is not None and not 0 < self.k_aux <= self.n_features:
            raise UserError(f"k_aux={self.k_aux} of n_features={self.n_features}: from 1 to n_features, or None")
        if not 0 <= self.decay <= 1 or self.warmup < 0 or self.steps < 1:
            raise UserError(f"steps={self.steps}, warmup={self.warmup}, decay={self.decay}: at least 1, 0 and 0 to 1")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Learner:
    """What one dictionary's training depends on. `since_fired` counts tokens (it stops at 2³⁰)."""

    sae: SAE
    opt: Any
    since_fired: Int[Array, " feature"]
    step: Int[Array, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    learner: Learner
    stream: Stream


def adam(config: DictionaryConfig) -> optax.GradientTransformation:
    """Adam(0.9, 0.999, eps 6.25e-10): warm-up, constant, linear decay. The eps is Gao et al.'s: gradients of a loss
    normalised by the variance are small."""
    decay = max(round(config.decay * config.steps), 1)

    def rate(count):
        step = count.astype(jnp.float32)
        up = (step + 1) / max(config.warmup, 1)
        down = (config.steps - step) / decay
        return config.learning_rate * jnp.clip(jnp.minimum(up, down), 0.0, 1.0)

    return optax.adam(rate, b1=0.9, b2=0.999, eps=6.25e-10)


def start_learner(config: DictionaryConfig, key: Key[Array, ""], mean: Float[Array, " d"]) -> Learner:
    """A fresh dictionary with `b_dec` at the mean of the (scaled) activations."""
    sae = init_sae(key, mean.shape[0], config.n_features, config.k, mean)
    since_fired = jnp.zeros((config.n_features,), jnp.int32)
    return Learner(sae, optimizer.init(adam(config), sae), since_fired, jnp.zeros((), jnp.int32))


def learn(
    config: DictionaryConfig, learner: Learner, x: Float[Array, "row d"], variance: Float[Array, ""]
) -> tuple[Learner, dict[str, Array]]:
    """One step on rows `x` (scaled): (learner, metrics).

    In this order: gradient; the part of it along decoder rows removed; Adam; rows back to norm 1; firing counters.
    """
    dead = learner.since_fired > config.dead_after
    k_aux = config.k_aux or default_k_aux(x.shape[1], config.n_features)
    loss_of = partial(topk_aux_loss, k_aux=k_aux, aux_coefficient=config.aux_coefficient)
    (loss, parts), grad = jax.value_and_grad(loss_of, has_aux=True)(learner.sae, x, dead, variance)
    grad = dataclasses.replace(grad, W_dec=without_parallel(grad.W_dec, learner.sae.W_dec))
    sae, opt = optimizer.update(adam(config), grad, learner.opt, learner.sae)
    sae = dataclasses.replace(sae, W_dec=unit_rows(sae.W_dec))
    fired = jnp.zeros(dead.shape, bool).at[parts.indices].max(parts.values > 0)
    since_fired = jnp.where(fired, 0, jnp.minimum(learner.since_fired, 2**30) + x.shape[0])
    step = learner.step + 1
    return Learner(sae, opt, since_fired, step), _metrics(loss, parts, x, dead, step)


def _metrics(loss: Array, parts: LossParts, x: Array, dead: Array, step: Array) -> dict[str, Array]:
    """Of one batch, before the update. `fvu` is centred on the batch's own mean; `dead` counts latents."""
    centred = x - jnp.mean(x, axis=0, keepdims=True)
    return {
        "loss": loss,
        "fvu": parts.sse / jnp.sum(centred * centred),
        "l0": jnp.mean(jnp.sum((parts.values > 0).astype(x.dtype), axis=1)),
        "aux": parts.aux,
        "dead": jnp.sum(dead),
        "tokens": step.astype(jnp.uint32) * jnp.uint32(x.shape[0]),  # wraps at 4.3 billion
    }


def train_step(
    config: DictionaryConfig, state: TrainState, batch: tuple[Array, Array], model: Any
) -> tuple[TrainState, dict[str, Array]]:
    """Harvest one token batch and learn from as many shuffled rows. Pure; `partial(train_step, config)` is a `fit` step
    with the model among `frozen`."""
    stream, x = advance(state.stream, model, config.address, *batch)
    learner, metrics = learn(config, state.learner, x, stream.variance)
    return TrainState(learner, stream), metrics


def start(config: DictionaryConfig, model: Any, batch_at: Callable[[int], tuple[Array, Array]]) -> TrainState:
    """The state before the first step: buffer full, inputs measured."""
    dictionary_key, stream_key = jax.random.split(jax.random.key(config.seed))
    stream = start_stream(stream_key, model, config.address, batch_at, config.buffer)
    return TrainState(start_learner(config, dictionary_key, stream.mean), stream)


def export(state: TrainState) -> SAE:
    """The dictionary as trained so far, for raw activations."""
    return fold_scale(state.learner.sae, state.stream.scale)


def train_dictionary(
    config: DictionaryConfig,
    model: Any,
    batch_at: Callable[[int], tuple[Array, Array]],
    *,
    run: Run | Path | str | None = None,
    **options: Any,
) -> SAE:
    """Train from the start, or from the last checkpoint of `run`, and export. `options` go to `training.fit`
    (checkpoint_every, log_every, evaluate, on_log, quiet, …).

    The same call after a kill ends with the same bits. `batch_at` must be a function of its number only.
    """
    state = start(config, model, batch_at)
    filled = int(state.stream.cursor)  # these batches went into the first buffer
    tokens = batch_at(0)[0].size
    options = {"shown": ("loss", "fvu", "l0", "dead"), "per_step": {"tokens": tokens}, "title": "dictionary"} | options
    state = fit(
        partial(train_step, config),
        state,
        lambda i: batch_at(filled + i),
        steps=config.steps,
        run=run,
        config=config,
        frozen=(model,),
        **options,
    )
    return export(state)
