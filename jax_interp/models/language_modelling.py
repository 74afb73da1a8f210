"""Next-token prediction: the loss, the training step, and the evaluation of a trained language model.

A model is any pytree that maps tokens `[batch, pos]` to logits `[batch, pos, vocab]`. Losses are in nats per predicted
token, unless the name says bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from jax_interp.core import optimizers as optimization
from jax_interp.core.errors import UserError
from jax_interp.core.objectives import cross_entropy, masked_mean
from jax_interp.core.pytrees import register_dataclass
from jax_interp.models.sharding import rules_for
from jax_interp.surgery.remat import remat
from jax_interp.training import automatic_step
from jax_interp.training.accumulate import mean_over_parts
from jax_interp.training.planning.planned import PlannedStep

LanguageModel = Callable[..., Float[Array, "batch pos vocab"]]
"""Maps tokens `[batch, pos]` to logits. With padding it also takes `mask=`."""


@dataclass(frozen=True)
class Optimization:
    """AdamW with a linear warm-up, a cosine decay, and a bound on the global norm of the gradient.

    Weight decay does not apply to norms and biases. With `muon`, Muon (Jordan et al. 2024: orthogonalised momentum)
    trains the matrices of the blocks, each layer separately. AdamW then trains only embeddings, norms and biases.
    """

    learning_rate: float = 2.5e-3
    """The peak learning rate."""
    warmup: int = 100
    """The number of steps in which the learning rate rises from 0 to the peak."""
    final: float = 0.1
    """The learning rate at the last step, as a fraction of the peak."""
    decay: float = 1.0
    """The learning rate falls during this last fraction of all steps. Between warm-up and decay it is constant."""
    weight_decay: float = 0.1
    """The weight decay of AdamW (and of Muon)."""
    clip: float = 1.0
    """The largest global norm of the gradient."""
    b1: float = 0.9
    """AdamW's decay of the first moment."""
    b2: float = 0.98
    """AdamW's decay of the second moment."""
    muon: float | None = None
    """The peak learning rate of Muon for the matrices of the blocks, for example 0.02. None: AdamW for everything."""

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax optimizer for a run of `steps` steps. Raises `UserError` if the warm-up is as long as the run."""
        if not 0 <= self.warmup < steps:
            raise UserError(f"warmup={self.warmup} must be at least 0 and less than steps={steps}")
        if not 0 < self.decay <= 1:
            raise UserError(f"decay={self.decay} is the fraction of the steps over which the rate falls: in (0, 1]")
        fall = max(1, min(steps - self.warmup, round(self.decay * steps)))
        schedule = optax.join_schedules(
            [
                optax.linear_schedule(0.0, self.learning_rate, max(1, self.warmup)),
                optax.constant_schedule(self.learning_rate),
                optax.cosine_decay_schedule(self.learning_rate, fall, alpha=self.final),
            ],
            [self.warmup, steps - fall],
        )
        decayed = {"b1": self.b1, "b2": self.b2, "weight_decay": self.weight_decay, "mask": decays}
        step = optax.adamw(schedule, **decayed)
        if (peak := self.muon) is not None:
            scale = peak / self.learning_rate
            muon = optax.contrib.muon(
                lambda count: scale * schedule(count),
                weight_decay=self.weight_decay,
                muon_weight_dimension_numbers=block_matrices,
                adam_learning_rate=schedule,
            )
            step = optax.partition({"muon": muon, "adamw": step}, _by_muon_or_adamw)
        return optax.chain(optax.clip_by_global_norm(self.clip), step)


def block_matrices(params: PyTree) -> PyTree:
    """For each leaf that Muon trains, the axes of its matrices (the last two axes). None for other leaves."""

    def matrix(path: tuple, leaf: Array) -> optax.contrib.MuonDimensionNumbers | None:
        in_block = _is_matrix(path) and _names(path)[0] == "blocks"
        return optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1) if in_block else None

    return jax.tree_util.tree_map_with_path(matrix, params)


def _by_muon_or_adamw(params: PyTree) -> PyTree:
    kinds = block_matrices(params)
    is_kind = lambda x: x is None or isinstance(x, optax.contrib.MuonDimensionNumbers)
    return jax.tree.map(lambda kind: "adamw" if kind is None else "muon", kinds, is_leaf=is_kind)


def decays(params: PyTree) -> PyTree:
    """True for the leaves to which weight decay applies: all leaves except norms and biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _is_matrix(path), params)


def _is_matrix(path: tuple) -> bool:
    """Whether a leaf is neither a bias nor part of a norm (`ln1`, `ln_final`, `q_norm`).

    This is decided by name and not by rank, because the leaves of stacked layers have one more axis.
    """
    return not any(name.startswith("ln") or name.endswith("_norm") or name == "bias" for name in _names(path))


def _names(path: tuple) -> list[str]:
    return [str(getattr(key, "name", getattr(key, "key", ""))) for key in path]


@register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The state that a training step changes. The loop keeps the step number, which is also the data position."""

    model: PyTree
    opt: PyTree
    """The state of the optimizer."""


def next_token_loss(
    model: LanguageModel,
    tokens: Int[Array, "batch length"],
    mask: Bool[Array, "batch length-1"] | None = None,
    *,
    real: Bool[Array, "batch length"] | None = None,
) -> Float[Array, ""]:
    """The mean cross-entropy of each next token, given the tokens before it in its row.

    Args:
      model: a language model.
      tokens: `[batch, length]`.
      mask: True for the targets to average over, `[batch, length - 1]`. None: all targets.
      real: True for real tokens, False for padding on either side, `[batch, length]`. The model gets it as its `mask`.
        Predictions of padding, and from padding, are left out. None: all tokens are real.

    Raises:
      UserError: `mask` or `real` has another shape.
    """
    if mask is not None and mask.shape != tokens[:, 1:].shape:
        raise UserError(
            f"mask has shape {mask.shape}: it is over the targets, {tokens[:, 1:].shape}. Padding is real=, "
            f"over the tokens, {tokens.shape}"
        )
    if real is None:
        losses = cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])
        return jnp.mean(losses) if mask is None else masked_mean(losses, mask, empty_is_zero=True)
    if real.shape != tokens.shape:
        raise UserError(f"real has shape {real.shape}, the tokens have {tokens.shape}")
    real = real.astype(bool)
    losses = cross_entropy(model(tokens[:, :-1], mask=real[:, :-1]), tokens[:, 1:])
    kept = real[:, :-1] & real[:, 1:]
    return masked_mean(losses, kept if mask is None else kept & mask, empty_is_zero=True)


def init_state(model: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """The state at step 0."""
    return TrainState(model, optimization.init(optimizer, model))


def train_step(
    optimizer: optax.GradientTransformation, *, accumulate: int = 1, save: Sequence[str] | None = None
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """The pure training step `(state, tokens) -> (state, {"loss": ..., "grad_norm": ...})`.

    `tokens` is `[batch, context + 1]`. `loss` is the loss before the update. The step takes a `rate_scale` as well, a
    factor of the learning rate.

    Args:
      optimizer: the optax optimizer.
      accumulate: the gradient is computed for this many parts of the batch in turn. The step is the same up to
        rounding, and needs the activations of one part.
      save: the values that the backward pass keeps, as in `surgery.remat`. It recomputes the others. None: all.

    Example:
        optimizer = Optimization().build(steps)
        step, state = jax.jit(train_step(optimizer)), init_state(model, optimizer)
        state, metrics = step(state, tokens)
    """

    @automatic_step
    def step(
        state: TrainState, tokens: Int[Array, "batch length"], rate_scale: Array | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        loss_of = lambda model, tokens: next_token_loss(model if save is None else remat(model, save), tokens)
        of_part = lambda tokens: jax.value_and_grad(loss_of)(state.model, tokens)
        loss, grads = mean_over_parts(of_part, tokens, accumulate)
        model, opt = optimization.update(optimizer, grads, state.opt, state.model, rate_scale)
        return TrainState(model, opt), {"loss": loss, "grad_norm": optax.tree.norm(grads)}

    return step


def planned(
    model: PyTree,
    optimization: Optimization,
    steps: int,
    batch: int,
    context: int,
    *,
    accumulate: int = 1,
    save: Sequence[str] | None = None,
) -> PlannedStep:
    """The step of a run of `train_step`, from the shapes of a model (`training.planning`).

    Args:
      model: the model, or its shapes.
      optimization: the optimizer.
      steps: the number of steps of the run.
      batch: sequences in a step.
      context: predicted tokens in a sequence. A batch has one token more.
      accumulate: as in `train_step`.
      save: as in `train_step`.
    """
    optimizer = optimization.build(steps)
    state = jax.eval_shape(lambda model: init_state(model, optimizer), model)
    tokens = jax.ShapeDtypeStruct((batch, context + 1), jnp.int32)
    kind_of = lambda address: "optimizer" if address.startswith("opt.") else "trained"
    step = train_step(optimizer, accumulate=accumulate, save=save)
    return PlannedStep(step, state, tokens, (), rules_for(state), kind_of, steps, batch * context)


@jax.jit
def _losses(model: LanguageModel, tokens: Int[Array, "batch length"]) -> Float[Array, "batch length-1"]:
    return cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])


def per_token_losses(
    model: LanguageModel, tokens: Int[np.ndarray, "rows length"], *, batch: int = 16
) -> Float[np.ndarray, "rows length-1"]:
    """The loss of every next token of every row, as float32 on the host. It compiles once for each row length."""
    if not tokens.size or tokens.shape[1] < 2:
        raise UserError(f"tokens have shape {tokens.shape}: there is no next token to predict")
    rows = len(tokens)
    padded = np.concatenate([tokens, np.repeat(tokens[:1], -rows % batch, axis=0)])
    parts = [np.asarray(_losses(model, jnp.asarray(padded[i : i + batch]))) for i in range(0, len(padded), batch)]
    return np.concatenate(parts)[:rows]


def evaluate_text(
    model: LanguageModel,
    tokens: Int[np.ndarray, "rows length"],
    *,
    bos_id: int,
    text_bytes: int | None = None,
    skip: int = 0,
    batch: int = 16,
) -> dict[str, Any]:
    """The loss on windows of text.

    Args:
      model: a language model.
      tokens: windows `[rows, length]`. `bos_id` starts documents and pads rows on the right. It is not a target.
      bos_id: the document-start token.
      text_bytes: the UTF-8 length of the text of the used targets, for `bits_per_byte`.
      skip: in every row except the first, ignore this many targets at the start. Use it if windows overlap, to count
        each shared target only once.
      batch: the number of rows in a forward pass.

    Returns:
      `loss` (the mean over the used targets), `perplexity`, `tokens` (the number of used targets), `bits_per_byte`, and
      `loss_by_position` (the mean over rows for each length of the context, from 1).

    Raises:
      UserError: there is no token to predict, or `skip` is negative.
    """
    if skip < 0:
        raise UserError(f"skip={skip} must be at least 0")
    losses = per_token_losses(model, tokens, batch=batch).astype(np.float64)
    counted = tokens[:, 1:] != bos_id
    by_position = np.where(counted, losses, 0).sum(0) / np.maximum(counted.sum(0), 1)
    counted[1:, :skip] = False
    total, count = float(losses[counted].sum()), int(counted.sum())
    if not count:
        raise UserError(f"no target is left to evaluate: every token after the first {skip} of a row is {bos_id}")
    out = {"loss": total / count, "perplexity": float(np.exp(np.float64(total / count))), "tokens": count}
    if text_bytes is not None:
        out["bits_per_byte"] = total / math.log(2) / text_bytes
    return out | {"loss_by_position": [float(x) for x in by_position]}


def repeated_tokens(
    key: Array, *, vocab_size: int, bos_id: int | None, rows: int, length: int
) -> Int[np.ndarray, "rows 2*length(+1)"]:
    """Rows of `length` random tokens that are repeated once: `[BOS, a, b, c, a, b, c]`.

    The second half can be predicted only by copying the first half. Its loss therefore measures in-context copying
    (Olsson et al. 2022). The tokens are uniform over the vocabulary without BOS. With `bos_id=None` rows have no BOS.
    """
    drawn = np.asarray(jax.random.randint(key, (rows, length), 0, vocab_size - (bos_id is not None)))
    if bos_id is None:
        return np.concatenate([drawn, drawn], axis=1)
    drawn = drawn + (drawn >= bos_id)
    return np.concatenate([np.full((rows, 1), bos_id, drawn.dtype), drawn, drawn], axis=1)


def evaluate_induction(
    model: LanguageModel, key: Array, *, vocab_size: int, bos_id: int | None, rows: int = 64, length: int = 64
) -> dict[str, float]:
    """The loss on the two halves of repeated random tokens (`repeated_tokens`).

    Args:
      model: a language model.
      key: the random key of the tokens.
      vocab_size: the number of token ids.
      bos_id: the document-start token, or None.
      rows: the number of rows.
      length: the number of tokens in each half.

    Returns:
      `first_half`; `second_half`, without its first token, which cannot be predicted; and `score`, which is
      `first_half - second_half`. All are in nats per token.

    Raises:
      UserError: `length` is less than 2.
    """
    if length < 2:
        raise UserError(f"length={length}: a half needs at least 2 tokens, because the first one is not predictable")
    tokens = repeated_tokens(key, vocab_size=vocab_size, bos_id=bos_id, rows=rows, length=length)
    losses = per_token_losses(model, tokens).astype(np.float64)
    first, second = losses[:, : losses.shape[1] - length], losses[:, -(length - 1) :]
    return {
        "first_half": float(first.mean()),
        "second_half": float(second.mean()),
        "score": float(first.mean() - second.mean()),
    }


def summary(results: Mapping[str, Any]) -> dict[str, float]:
    """Flatten the numbers of a nested result: `{"text.loss": ..., "induction.score": ...}`. Lists are left out."""
    out = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            out |= {f"{name}.{inner}": number for inner, number in summary(value).items()}
        elif isinstance(value, (int, float)):
            out[name] = float(value)
    return out
