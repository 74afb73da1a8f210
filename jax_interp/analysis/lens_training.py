"""The tuned lens: the logit lens with an affine map learned for each layer (Belrose et al. 2023).

lens = train_tuned_lens(TunedLensConfig(steps=400), model, batch_at)
parts = tuned_lens(model, lens, acts)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jax_interp.analysis.addresses import reads_activations
from jax_interp.analysis.parts import Parts, Pos
from jax_interp.analysis.readout import readout
from jax_interp.analysis.residual import accumulated_resid
from jax_interp.analysis.weights import decoder
from jax_interp.core import optimizers as optimizer
from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.objectives import kl_divergence, log_probabilities
from jax_interp.surgery import Activations, read
from jax_interp.training import Log, RunTarget, SaveTo, fit


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class TunedLens:
    """For each layer's input `x`, `x + x W + b` in the basis of the last layer's output."""

    weight: Float[Array, "layer d_model d_model"]
    bias: Float[Array, "layer d_model"]

    def __call__(self, stack: Float[Array, "layer *batch_pos d_model"]) -> Float[Array, "layer *batch_pos d_model"]:
        """Each layer's input, translated."""
        return jax.vmap(translate)(self, stack)


def translate(one: TunedLens, x: Float[Array, "*batch_pos d_model"]) -> Float[Array, "*batch_pos d_model"]:
    """`x` through the translator of one layer (a lens without its layer axis)."""
    return x + x @ one.weight + jnp.expand_dims(one.bias, range(x.ndim - 1))


def init_tuned_lens(model: Any) -> TunedLens:
    """All maps the identity: the logit lens. float32, or float64 for a model that is."""
    config = decoder(model).config
    n, d = config.n_layers, config.d_model
    dtype = upcast(decoder(model).embed.weight[...]).dtype
    return TunedLens(jnp.zeros((n, d, d), dtype), jnp.zeros((n, d), dtype))


@reads_activations("blocks.*.resid_pre", "blocks.-1.resid_post")
def tuned_lens(
    model: Any,
    lens: TunedLens,
    acts: Activations,
    *,
    pos: Pos = None,
    keep: Callable[[Float[Array, "batch *pos vocab"]], Any] = lambda logits: logits,
) -> Parts:
    """The logits that the lens reads at each layer, `0_pre` to `final_post` (the model's own). As `logit_lens`.

    Reads `blocks.*.resid_pre` and `blocks.-1.resid_post`.
    """
    stack = accumulated_resid(model, acts, pos=pos)
    if lens.bias.shape[0] != len(stack) - 1 or lens.bias.shape[1] != stack.values.shape[-1]:
        raise UserError(
            f"this lens has maps {lens.weight.shape}, the model {len(stack) - 1} layers of "
            f"{stack.values.shape[-1]}: it was trained for another"
        )
    rows = jnp.concatenate([lens(stack.values[:-1]), stack.values[-1:]])
    return Parts(jax.lax.map(lambda resid: keep(readout(model, resid)), rows), stack.labels)


@dataclasses.dataclass(frozen=True)
class TunedLensConfig:
    """How a lens is trained: AdamW (decay pulls a map to the identity), the rate falling linearly to 0.

    Belrose et al. take SGD with Nesterov momentum, 250 steps of 2¹⁸ tokens; Adam gets there on batches of any size.
    """

    steps: int = 400
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3

    def __post_init__(self) -> None:
        if self.steps < 1 or self.learning_rate <= 0 or self.weight_decay < 0:
            raise UserError(
                f"steps={self.steps}, learning_rate={self.learning_rate}, weight_decay="
                f"{self.weight_decay}: at least 1, above 0, not negative"
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TunedLensState:
    lens: TunedLens
    opt: Any


def kl_by_layer(
    model: Any,
    lens: TunedLens,
    tokens: Int[Array, "batch pos"],
    keep: Bool[Array, "batch pos"] | None = None,
) -> Float[Array, "layer"]:
    """`KL(model ‖ lens)` of each layer's prediction in nats, the mean over tokens (where `keep`).

    `init_tuned_lens(model)` has it for the logit lens. One layer's logits are in memory at a time, in the backward pass
    too. Runs the model; surgeries on it act.
    """
    logits, acts = read(model, "blocks.*.resid_pre")(tokens)
    target = jax.lax.stop_gradient(log_probabilities(logits))
    weight = jnp.ones(tokens.shape, target.dtype) if keep is None else keep.astype(target.dtype)
    weight = weight / jnp.sum(weight)

    @jax.checkpoint
    def of_layer(one: TunedLens, resid: Float[Array, "batch pos d_model"]) -> Float[Array, ""]:
        guess = log_probabilities(readout(model, translate(one, resid)))
        return jnp.sum(kl_divergence(target, guess) * weight)

    stack = jax.lax.stop_gradient(upcast(acts["blocks.*.resid_pre"]))
    return jax.lax.map(lambda row: of_layer(*row), (lens, stack))


def train_step(
    config: TunedLensConfig, state: TunedLensState, batch: Any, model: Any
) -> tuple[TunedLensState, dict[str, Any]]:
    """One step on `tokens` or `(tokens, keep)`. The layers' losses are summed: each map learns by itself."""
    tokens, keep = batch if isinstance(batch, tuple) else (batch, None)

    def loss(lens: TunedLens) -> tuple[Array, Array]:
        kl = kl_by_layer(model, lens, tokens, keep)
        return jnp.sum(kl), kl

    grad, kl = jax.grad(loss, has_aux=True)(state.lens)
    lens, opt = optimizer.update(_optimizer(config), grad, state.opt, state.lens)
    return TunedLensState(lens, opt), {"kl": jnp.mean(kl), "kl_by_layer": {f"{i}": value for i, value in enumerate(kl)}}


def train_tuned_lens(
    config: TunedLensConfig,
    model: Any,
    batch_at: Callable[[int], Any],
    *,
    run: RunTarget = None,
    log: Log = Log(),
) -> TunedLens:
    """A lens for `model`, trained from the identity on `batch_at(0)`, `batch_at(1)`, ...: tokens `[batch, pos]`, or
    (tokens, keep) where only some positions count.

    `run` and `log` are those of `training.fit`: a run that was killed goes on from its last checkpoint.
    """
    lens = init_tuned_lens(model)
    state = TunedLensState(lens, optimizer.init(_optimizer(config), lens))
    log = log.with_defaults(shown=("kl",), title="tuned lens")
    step = partial(train_step, config)
    saving = SaveTo.of(run, config)
    return fit(step, state, batch_at, steps=config.steps, run=saving, frozen=(model,), log=log).lens


def _optimizer(config: TunedLensConfig) -> optax.GradientTransformation:
    rate = optax.linear_schedule(config.learning_rate, 0.0, config.steps)
    return optax.adamw(rate, weight_decay=config.weight_decay)
