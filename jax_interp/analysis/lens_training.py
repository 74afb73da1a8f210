"""Train a tuned lens, save it, and load it.

On disk a lens is two files in one directory, `tuned_lens.safetensors` and `tuned_lens.json`. The JSON says which model
the lens is for and how it was trained. It is written last, and it has a digest of the tensors. Each file appears by one
rename. An incomplete or damaged lens is therefore detected when it is loaded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int

from jax_interp.analysis.lens import TunedLens, init_tuned_lens, kl_by_layer
from jax_interp.core import config_json, optimizers
from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.core.tensor_files import FLOATS, read_described, write_described
from jax_interp.models.sharding import rules_for
from jax_interp.surgery import Model
from jax_interp.training import Log, Place, RunTarget, SaveTo, automatic_step, fit, placed
from jax_interp.training.placement import replicated

FORMAT = 1

Batch = Int[Array, "batch pos"] | tuple[Int[Array, "batch pos"], Bool[Array, "batch pos"]]
"""Tokens, or (tokens, keep) where only some positions count."""


@dataclasses.dataclass(frozen=True)
class TunedLensConfig:
    """How a tuned lens is trained: by AdamW with weight decay to the identity map, and a rate that falls linearly to 0.

    Belrose et al. use SGD with Nesterov momentum, 250 steps of 2¹⁸ tokens. Adam works with batches of any size.
    """

    steps: int = 400
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.learning_rate < math.inf or not 0 <= self.weight_decay < math.inf:
            raise UserError(
                f"steps={self.steps}, learning_rate={self.learning_rate}, weight_decay="
                f"{self.weight_decay}: at least 1, above 0, not negative"
            )


@register_dataclass
@dataclasses.dataclass(frozen=True)
class TunedLensState:
    """The state of a training run."""

    lens: TunedLens
    opt: optax.OptState


@automatic_step
def train_step(
    config: TunedLensConfig, state: TunedLensState, batch: Batch, model: Model
) -> tuple[TunedLensState, dict[str, Any]]:
    """One step. The losses of the layers are summed, so each map learns independently.

    Args:
      config: the optimizer's settings.
      state: the lens and the optimizer's state.
      batch: tokens, or (tokens, keep).
      model: the model that the lens reads.

    Returns:
      The next state, and the metrics `kl` and `kl_by_layer` in nats.
    """
    tokens, keep = batch if isinstance(batch, tuple) else (batch, None)

    def loss(lens: TunedLens) -> tuple[Array, Array]:
        kl = kl_by_layer(model, lens, tokens, keep)
        return jnp.sum(kl), kl

    grad, kl = jax.grad(loss, has_aux=True)(state.lens)
    lens, opt = optimizers.update(_optimizer(config), grad, state.opt, state.lens)
    return TunedLensState(lens, opt), {"kl": jnp.mean(kl), "kl_by_layer": {f"{i}": value for i, value in enumerate(kl)}}


def train_tuned_lens(
    config: TunedLensConfig,
    model: Model,
    batch_at: Callable[[int], Batch],
    *,
    run: RunTarget = None,
    place: Place = None,
    log: Log = Log(),
) -> TunedLens:
    """Train a tuned lens for a model, starting from the identity (Belrose et al. 2023, §2).

    Args:
      config: steps and optimizer.
      model: a decoder, with or without surgery.
      batch_at: `batch_at(0)`, `batch_at(1)`, ... are the batches: tokens `[batch, pos]`, or (tokens, keep).
      run: where the run is saved, as in `training.fit`. A run that was killed resumes from its last checkpoint.
      place: a mesh, on which the model and the batches are placed; the lens is replicated. Or a function that shards
        the state, for use inside `jax.set_mesh(mesh)`. None: one device.
      log: what is shown and logged, as in `training.fit`.

    Returns:
      The trained lens.

    Example:

        lens = train_tuned_lens(TunedLensConfig(steps=400), model, batch_at, run="runs/lens")
        save_tuned_lens("runs/lens", lens, model="gpt2")
    """
    log = log.with_defaults(shown=("kl",), title="tuned lens")
    step, saving = partial(train_step, config), SaveTo.of(run, config)
    with placed(place, replicated) as there:
        model, batch_at = there.frozen(model, rules_for(model)), there.batches(batch_at)
        lens = init_tuned_lens(model)
        state = there.state(TunedLensState(lens, optimizers.init(_optimizer(config), lens)))
        return fit(step, state, batch_at, steps=config.steps, run=saving, frozen=(model,), log=log).lens


def _optimizer(config: TunedLensConfig) -> optax.GradientTransformation:
    rate = optax.linear_schedule(config.learning_rate, 0.0, config.steps)
    return optax.adamw(rate, weight_decay=config.weight_decay)


def save_tuned_lens(directory: Path | str, lens: TunedLens, *, model: str, config: Any = None) -> Path:
    """Write a tuned lens. An existing lens is replaced.

    Args:
      directory: the directory for the lens. It is made if it does not exist.
      lens: the lens.
      model: the name of the model that it was trained for.
      config: any dataclass or JSON value to keep with it, its training config.

    Returns:
      The directory.

    Raises:
      UserError: the directory cannot be made.
    """
    description = {
        "format": FORMAT,
        "model": model,
        "n_layers": lens.bias.shape[0],
        "d_model": lens.bias.shape[1],
        "config": None if config is None else config_json.to_json(config),
    }
    return write_described(directory, "tuned_lens", {"weight": lens.weight, "bias": lens.bias}, description)


def load_tuned_lens(directory: Path | str, *, model: str | None = None) -> TunedLens:
    """Load the tuned lens that `save_tuned_lens` wrote. It is the same bit for bit.

    Args:
      directory: the directory of the lens.
      model: the name of the model that the lens should be for; None: do not check.

    Raises:
      UserError: there is no lens, it is for another model or in a later format, or its files are damaged.
    """
    description, arrays = read_described(directory, "tuned_lens", formats=(FORMAT,), what="tuned lens", dtypes=FLOATS)
    if model is not None and model != description.get("model"):
        raise UserError(f"the lens in {directory} is of {description.get('model')!r}, not of {model!r}")
    if set(arrays) != {"weight", "bias"}:
        raise UserError(f"the tuned lens in {directory} has {', '.join(arrays)} in place of weight and bias")
    weight, bias = jnp.asarray(arrays["weight"]), jnp.asarray(arrays["bias"])
    n, d = description.get("n_layers"), description.get("d_model")
    if weight.shape != (n, d, d) or bias.shape != (n, d):
        raise UserError(f"{directory}: {weight.shape} and {bias.shape} are not maps of {n} layers of {d}")
    return TunedLens(weight, bias)
