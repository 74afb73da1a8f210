"""Next-token prediction: the objective, the training step, and what a trained language model is judged by.

Everything takes a model that maps tokens `[batch, pos]` to logits `[batch, pos, vocab]`; nothing here knows the class.
Losses are in nats per predicted token unless a name says bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core import optimizers as optimization
from jax_interp.core.errors import UserError
from jax_interp.core.objectives import cross_entropy, masked_mean

Model = Callable[[Int[Array, "batch pos"]], Float[Array, "batch pos vocab"]]


@dataclass(frozen=True)
class Optimization:
    """AdamW with a linear warm-up and a decay to `final` times the peak, the gradient's global norm clipped.

    Norm weights and biases are not decayed. With `muon`, the blocks' matrices are stepped by Muon instead (Jordan et
    al. 2024: momentum, orthogonalised), each layer's on its own; embeddings, norms and biases stay with AdamW.
    """

    learning_rate: float = 2.5e-3
    warmup: int = 100
    """Steps from 0 to the peak."""
    final: float = 0.1
    """The learning rate at the last step, as a fraction of the peak."""
    decay: float = 1.0
    """The fraction of all steps over which the learning rate falls (cosine), at the end; until then it stays."""
    weight_decay: float = 0.1
    clip: float = 1.0
    b1: float = 0.9
    b2: float = 0.98
    muon: float | None = None
    """Muon's peak learning rate for the blocks' matrices, 0.02 say; None: AdamW for everything."""

    def build(self, steps: int) -> optax.GradientTransformation:
        """The optax transformation for a run of `steps`. Raises `UserError` where the warm-up leaves nothing over."""
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


def block_matrices(params: Any) -> Any:
    """For each leaf that Muon steps, which of its axes are the matrix's (a stacked leaf has a layer axis before them);
    None for every other leaf: embeddings, norms, biases.
    """

    def matrix(path: tuple, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        of_a_linear = _is_matrix(path) and _names(path)[0] == "blocks"
        return optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1) if of_a_linear else None

    return jax.tree_util.tree_map_with_path(matrix, params)


def _by_muon_or_adamw(params: Any) -> Any:
    kinds = block_matrices(params)
    is_kind = lambda x: x is None or isinstance(x, optax.contrib.MuonDimensionNumbers)
    return jax.tree.map(lambda kind: "adamw" if kind is None else "muon", kinds, is_leaf=is_kind)


def decays(params: Any) -> Any:
    """True for the leaves that weight decay applies to: all but norms and biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _is_matrix(path), params)


def _is_matrix(path: tuple) -> bool:
    """Whether a leaf is no norm's (`ln1`, `ln_final`, `q_norm`) and no bias. By name and not by rank, since the leaves
    of stacked layers have an axis more."""
    return not any(name.startswith("ln") or name.endswith("_norm") or name == "bias" for name in _names(path))


def _names(path: tuple) -> list[str]:
    return [str(getattr(key, "name", getattr(key, "key", ""))) for key in path]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """What a step changes: the model and its optimizer's state. The data cursor is the step number itself."""

    model: Any
    opt: Any


def next_token_loss(
    model: Model, tokens: Int[Array, "batch length"], mask: Bool[Array, "batch length-1"] | None = None
) -> Float[Array, ""]:
    """The mean loss of predicting each token from those before it in its row; `mask` marks the targets that count."""
    losses = cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])
    return jnp.mean(losses) if mask is None else masked_mean(losses, mask, empty_is_zero=True)


def init_state(model: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state at step 0."""
    return TrainState(model, optimization.init(optimizer, model))


def train_step(optimizer: optax.GradientTransformation) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """`(state, tokens [batch, context + 1]) -> (state, {"loss", "grad_norm"})`, pure; the loss is before the update."""

    def step(state: TrainState, tokens: Int[Array, "batch length"]) -> tuple[TrainState, dict[str, Array]]:
        loss, grads = jax.value_and_grad(next_token_loss)(state.model, tokens)
        model, opt = optimization.update(optimizer, grads, state.opt, state.model)
        return TrainState(model, opt), {"loss": loss, "grad_norm": optax.tree.norm(grads)}

    return step


@jax.jit
def _losses(model: Model, tokens: Int[Array, "batch length"]) -> Float[Array, "batch length-1"]:
    return cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])


def per_token_losses(
    model: Model, tokens: Int[np.ndarray, "rows length"], *, batch: int = 16
) -> Float[np.ndarray, "rows length-1"]:
    """The loss of every next token of every row, float32 on the host; compiled once per row length."""
    rows = len(tokens)
    padded = np.concatenate([tokens, np.repeat(tokens[:1], -rows % batch, axis=0)])
    parts = [np.asarray(_losses(model, jnp.asarray(padded[i : i + batch]))) for i in range(0, len(padded), batch)]
    return np.concatenate(parts)[:rows]


def evaluate_text(
    model: Model,
    tokens: Int[np.ndarray, "rows length"],
    *,
    bos_id: int,
    text_bytes: int | None = None,
    skip: int = 0,
    batch: int = 16,
) -> dict[str, Any]:
    """Loss on windows of text.

    tokens      windows in which `bos_id` starts documents and fills what is left over: such targets do not count.
    text_bytes  the UTF-8 length of the text of the counted targets, for `bits_per_byte`.
    skip        targets at the start of every window but the first row's that do not count (they were counted in the
                window before, when windows overlap).

    Returns `loss` (mean over counted targets), `perplexity`, `tokens`, `bits_per_byte`, and `loss_by_position`, the
    mean over rows for each number of tokens of context, from 1.
    """
    losses = per_token_losses(model, tokens, batch=batch).astype(np.float64)
    counted = tokens[:, 1:] != bos_id
    by_position = (losses * counted).sum(0) / np.maximum(counted.sum(0), 1)
    counted[1:, :skip] = False
    total, count = float(losses[counted].sum()), int(counted.sum())
    out = {"loss": total / count, "perplexity": math.exp(total / count), "tokens": count}
    if text_bytes is not None:
        out["bits_per_byte"] = total / math.log(2) / text_bytes
    return out | {"loss_by_position": [float(x) for x in by_position]}


def repeated_tokens(
    key: Array, *, vocab_size: int, bos_id: int | None, rows: int, length: int
) -> Int[np.ndarray, "rows 2*length(+1)"]:
    """Rows of `length` tokens, uniform over the vocabulary without BOS, said twice, after BOS where there is one.

    Nothing but the first saying predicts the second, so it measures in-context copying (Olsson et al. 2022).
    """
    drawn = np.asarray(jax.random.randint(key, (rows, length), 0, vocab_size - (bos_id is not None)))
    if bos_id is None:
        return np.concatenate([drawn, drawn], axis=1)
    drawn = drawn + (drawn >= bos_id)
    return np.concatenate([np.full((rows, 1), bos_id, drawn.dtype), drawn, drawn], axis=1)


def evaluate_induction(
    model: Model, key: Array, *, vocab_size: int, bos_id: int | None, rows: int = 64, length: int = 64
) -> dict[str, float]:
    """Loss on the two halves of repeated random tokens (`repeated_tokens`).

    `second_half` leaves out its first token, which nothing announces. `score` is first minus second, nats per token.
    Raises UserError for a `length` under 2, where nothing of it is left.
    """
    if length < 2:
        raise UserError(f"length={length}: a stretch that is said twice has at least 2 tokens")
    tokens = repeated_tokens(key, vocab_size=vocab_size, bos_id=bos_id, rows=rows, length=length)
    losses = per_token_losses(model, tokens).astype(np.float64)
    first, second = losses[:, : losses.shape[1] - length], losses[:, -(length - 1) :]
    return {
        "first_half": float(first.mean()),
        "second_half": float(second.mean()),
        "score": float(first.mean() - second.mean()),
    }


def summary(results: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a nested result that fit on a line: `{"text.loss": ..., "induction.score": ...}`."""
    out = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            out |= {f"{name}.{inner}": number for inner, number in summary(value).items()}
        elif isinstance(value, (int, float)):
            out[name] = float(value)
    return out
