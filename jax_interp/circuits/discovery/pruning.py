"""Pruning with trained masks: one gradient descent over all units at once.

Edge pruning (Bhaskar et al. 2024, arXiv:2406.16778): hard-concrete masks minimise the KL to the whole model, and a
Lagrangian term λ₁ (t - s) + λ₂ (t - s)², whose λ ascend, brings the sparsity s to a target t that grows during the run.
Masks can start from scores (the best entry of the BlackboxNLP 2025 shared task starts from EAP-IG, arXiv:2510.06811).

With a fixed price for each unit instead of a target, this is subnetwork probing (Cao et al. 2021, arXiv:2104.03514),
and on `NodeUnits` it is node pruning.

    found = prune_by_masks(model, contrast, units, [0.02, 0.1], PruningConfig(steps=200), start=eap_ig_scores)
    found.keep                          [target, unit]: as many units as each target says
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from jax_interp.circuits.contrast import Contrast
from jax_interp.circuits.discovery.hard_concrete import kept, sample
from jax_interp.circuits.discovery.loss import Loss, loss_contrast
from jax_interp.circuits.discovery.selection import checked_scores, first, ranked
from jax_interp.circuits.discovery.units import Units
from jax_interp.core import optimizers
from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.core.processes import on_host
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery.contract import Model

STEPS_A_CALL = 50
"""Steps of one call of the compiled program. Ctrl-C acts between two calls."""


@dataclasses.dataclass(frozen=True)
class PruningConfig:
    """How masks are trained. The defaults suit graphs of some thousand units.

    Bhaskar et al. take 3,000 steps, learning rates of 0.8, batches of 32 and a target that grows over 2,500 steps.
    """

    steps: int = 200
    learning_rate: float = 0.3
    """Adam's learning rate of the masks."""
    multiplier_rate: float = 0.3
    """Adam's learning rate of λ₁ and λ₂, which ascend."""
    warm_up: float = 0.6
    """The share of the steps in which the target grows from 0 to its value."""
    batch: int = 16
    """Prompts of one step; all, if there are fewer."""
    initial: float = 3.0
    """log α at the start. With a warm start, the largest one."""
    spread: float = 4.0
    """With a warm start, log α goes from `initial` for the highest score to `initial - spread` for the lowest one."""
    loss: Literal["kl", "metric"] = "kl"
    price: Literal["target", "fixed"] = "target"
    """target: the Lagrangian. fixed: each "target" is a price λ of the kept share (subnetwork probing)."""


@register_dataclass
@dataclasses.dataclass(frozen=True)
class MaskState:
    """The state of a run. A run that continues from it goes the same way as one that never stopped.

    Args:
      log_alpha: [target, unit].
      multipliers: [target, 2], λ₁ and λ₂.
      optimizer: the state of Adam.
      step: the number of steps done.
      key: the random key of the run.
    """

    log_alpha: Float[Array, "target unit"]
    multipliers: Float[Array, "target 2"]
    optimizer: Any
    step: Int[Array, ""]
    key: Key[Array, ""]


@dataclasses.dataclass(frozen=True, eq=False)
class PrunedMasks:
    """Trained masks.

    Args:
      targets: the share of the units to keep, or the price.
      keep: [target, unit], the circuits. With targets: exactly the number of units that the target says, those of the
        largest log α. With prices: the units whose mask is more likely than not to be kept.
      scores: [target, unit], log α.
      history: [target, step, (loss, kept)]: the loss of the sampled circuits and the expected share of kept units.
      state: what a longer run continues from.
    """

    targets: tuple[float, ...]
    keep: Bool[np.ndarray, "target unit"]
    scores: Float[np.ndarray, "target unit"]
    history: Labelled
    state: MaskState


def prune_by_masks(
    model: Model,
    contrast: Contrast,
    units: Units,
    targets: Sequence[float],
    config: PruningConfig = PruningConfig(),
    *,
    start: Float[np.ndarray | Array, " unit"] | None = None,
    seed: int = 0,
    state: MaskState | None = None,
) -> PrunedMasks:
    """Train one mask for each target, all in one compiled program.

    Args:
      model: the model.
      contrast: the prompts and the metric.
      units: what is pruned.
      targets: the shares of the units to keep, in (0, 1]; or prices, see `PruningConfig.price`.
      config: the training.
      start: scores for a warm start. Their order decides: the ranks of |score| are spread evenly over log α.
      seed: the seed of the masks and batches.
      state: the state of an earlier run, which is continued to `config.steps`.

    Raises:
      UserError: a target is out of range, the scores do not fit, or the loss became NaN.
    """
    given = np.asarray(targets, float)
    good = (given > 0) & ((given <= 1) | (config.price == "fixed")) & np.isfinite(given)
    if given.ndim != 1 or not given.size or not good.all():
        raise UserError(f"targets={targets!r}: give shares of units in (0, 1], or prices above 0 with price='fixed'")
    if config.steps < 1 or config.batch < 1 or not 0 <= config.warm_up <= 1 or config.price not in ("target", "fixed"):
        raise UserError(f"{config}: needs at least one step and prompt, 0 <= warm_up <= 1, price target or fixed")
    judged, sign = loss_contrast(model, contrast, config.loss)
    now = _first_state(units, len(given), config, start, seed) if state is None else state
    if now.log_alpha.shape != (len(given), len(units)):
        raise UserError(f"the state has masks of shape {now.log_alpha.shape}, wanted {(len(given), len(units))}")
    history = []
    while (left := config.steps - int(now.step)) > 0:
        ends = min(STEPS_A_CALL, left)
        now, trace = _train(model, judged, now, jnp.asarray(given, jnp.float32), units=units, config=config,
                              sign=sign, steps=ends)  # fmt: skip
        history.append(on_host(trace))
        if not np.isfinite(history[-1]).all():
            raise UserError("the loss or a mask became NaN: lower the learning rates")
    scores = np.asarray(on_host(now.log_alpha), float)
    if config.price == "target":
        sizes = np.maximum(1, np.round(given * len(units)).astype(int))
        keep = np.stack([first(ranked(units, s, "signed"), [n])[0] for s, n in zip(scores, sizes)])
    else:
        keep = on_host(kept(now.log_alpha)) > 0.5
    steps = np.concatenate(history, axis=1) if history else np.zeros((len(given), 0, 2))
    axes = {"target": given.tolist(), "step": range(steps.shape[1]), "figure": ("loss", "kept")}
    return PrunedMasks(tuple(given.tolist()), keep, scores, Labelled(steps, axes, "training"), now)


def _first_state(units: Units, n: int, config: PruningConfig, start: Any, seed: int) -> MaskState:
    log_alpha = np.full(len(units), config.initial)
    if start is not None:
        ranks = ranked(units, checked_scores(units, start), "absolute")
        log_alpha = config.initial - config.spread * ranks / max(1, len(units) - 1)
    masks = jnp.broadcast_to(jnp.asarray(log_alpha, jnp.float32), (n, len(units)))
    multipliers = jnp.zeros((n, 2), jnp.float32)
    optimizer = jax.vmap(lambda *trained: optimizers.init(_optimizer(config), trained))(masks, multipliers)
    return MaskState(masks, multipliers, optimizer, jnp.zeros((), jnp.int32), jax.random.key(seed))


def _optimizer(config: PruningConfig) -> optax.GradientTransformation:
    ascend = optax.chain(optax.adam(config.multiplier_rate), optax.scale(-1.0))
    return optax.multi_transform({"masks": optax.adam(config.learning_rate), "multipliers": ascend},
                                 ("masks", "multipliers"))  # fmt: skip


@partial(jax.jit, static_argnames=("units", "config", "sign", "steps"))
def _train(
    model: Model, contrast: Contrast, state: MaskState, targets: Array,
    *, units: Units, config: PruningConfig, sign: Loss, steps: int,
) -> tuple[MaskState, Float[Array, "target step figure"]]:  # fmt: skip
    optimizer, prompts = _optimizer(config), contrast.clean.shape[0]
    in_batches = config.batch < prompts
    all_ablated = None if in_batches else units.ablated(model, contrast)

    def loss(trained: Any, target: Array, key: Array, rows: Contrast, values: Any, progress: Array) -> Any:
        log_alpha, (linear, square) = trained
        share = jnp.mean(kept(log_alpha))
        value = sign * jnp.mean(units.metric(model, rows, sample(key, log_alpha), values))
        gap = 1 - (1 - target) * progress - share  # t - s of the paper, with the opposite sign: s = 1 - share
        penalty = target * share if config.price == "fixed" else -linear * gap + square * gap**2
        return value + penalty, jnp.stack([value, share])

    def step(state: MaskState, _: None) -> tuple[MaskState, Array]:
        key = jax.random.fold_in(state.key, state.step)
        rows, values = contrast, all_ablated
        if in_batches:
            rows = contrast.rows(jax.random.choice(key, prompts, (config.batch,), replace=False))
            values = units.ablated(model, rows)
        progress = optimizers.linear_warmup(state.step, round(config.warm_up * config.steps))

        def one(log_alpha: Array, multipliers: Array, opt: Any, target: Array, key: Array) -> Any:
            trained = (log_alpha, multipliers)
            slopes, seen = jax.grad(loss, has_aux=True)(trained, target, key, rows, values, progress)
            trained, opt = optimizers.update(optimizer, slopes, opt, trained)
            return (*trained, opt), seen

        keys = jax.random.split(jax.random.fold_in(key, 1), targets.shape[0])
        (masks, multipliers, opt), seen = jax.vmap(one)(
            state.log_alpha, state.multipliers, state.optimizer, targets, keys
        )
        return MaskState(masks, multipliers, opt, state.step + 1, state.key), seen

    state, trace = jax.lax.scan(step, state, None, length=steps)
    return state, jnp.moveaxis(trace, 0, 1)
