"""Side effects of a steering on text that has nothing to do with the behaviour.

    effects = side_effects(model, neutral, vector, (0.0, 1.0, 2.0))
    effects.kl, effects.loss_increase              for each strength, the spread over texts
    effects.sizes["blocks.2.resid_post"]           how large the change is, relative to the value

Tokens after the first one of each text are counted: the first one, BOS, is predicted from nothing, and its values are
often far larger than all others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.objectives import kl_divergence, log_probabilities, negative_log_likelihood
from jax_interp.probes.text_reader import site_widths
from jax_interp.steering.measuring.spread import Spread, spread
from jax_interp.steering.measuring.steered_rows import (
    BATCHING,
    Batching,
    Rows,
    at_strengths,
    checked_strengths,
    padded_rows,
)
from jax_interp.steering.vector import Steering
from jax_interp.surgery import Model, edit, read
from jax_interp.training.placement import automatic


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the change of a value is, relative to the value before it: ‖x' - x‖ / ‖x‖. For an added vector, this is
    strength · ‖v‖ / ‖x‖, where x has the effects of the edits at earlier layers.

    Args:
      mean: its mean over the changed tokens of each text. 0 if no token is changed.
      largest: its largest value at a token.
      changed: the share of tokens that are changed.
    """

    mean: Spread
    largest: float
    changed: float


@dataclasses.dataclass(frozen=True)
class SideEffects:
    """What a steering does to neutral text. Everything has one entry for each strength.

    Args:
      text: the name of the text.
      strengths: the strengths.
      loss: the loss of the unsteered model, in nats per token; its samples are texts.
      kl: KL(unsteered ‖ steered) of the next token, in nats: the mean over the tokens of each text.
      loss_increase: the loss of the steered model minus that of the unsteered one, in nats per token.
      sizes: for each edited value, the size of its change.
    """

    text: str
    strengths: tuple[float, ...]
    loss: Spread
    kl: tuple[Spread, ...]
    loss_increase: tuple[Spread, ...]
    sizes: dict[str, tuple[Size, ...]]


def side_effects(
    model: Model,
    texts: Sequence[Sequence[int]],
    steering: Steering,
    strengths: Sequence[float],
    *,
    name: str = "neutral text",
    batching: Batching = BATCHING,
    seed: int = 0,
) -> SideEffects:
    """Measure a steering on neutral text.

    Args:
      model: any model from tokens to logits.
      texts: the token ids of each text, BOS included if the model has one.
      steering: the steering.
      strengths: the strengths.
      name: the name of the text in tables.
      batching: how texts are put into batches.
      seed: the seed of the bootstrap over texts.

    Raises:
      UserError: a text has less than two tokens, a figure is not finite, or as in `at_strengths`.
    """
    found = checked_strengths(strengths)
    rows = text_rows(texts)
    program = partial(_divergences, jnp.asarray(found, jnp.float32))
    of = at_strengths(program, model, steering, rows, np.zeros(1), batching)
    kl, loss, own = of["kl"][:, 0], of["loss"][:, 0], of["own"][:, 0]
    check_finite(kl + loss + own[:, None], found, name, "text")
    sizes = _sizes(model, steering, rows, found, name, batching, seed)
    each = lambda values: tuple(spread(values[:, i], seed=seed) for i in range(len(found)))
    return SideEffects(
        name,
        tuple(found.tolist()),
        spread(own, seed=seed),
        each(kl),
        each(loss - own[:, None]),
        sizes,
    )


def text_rows(texts: Sequence[Sequence[int]], first: Sequence[int] | None = None) -> Rows:
    """Rows of texts. `counted` marks each token whose next token is counted, `following` is this next token.

    Args:
      texts: the token ids of each text.
      first: the number of the first token that is counted in each text. None: the second token.

    Raises:
      UserError: a text has no token to count.
    """
    starts = np.ones(len(texts), int) if first is None else np.asarray(first)
    for number, (ids, start) in enumerate(zip(texts, starts, strict=True)):
        if len(ids) <= max(start, 1):
            raise UserError(f"text {number} has {len(ids)} tokens, and the first {max(start, 1)} are not counted")
    if not len(texts):
        raise UserError("give at least one text")
    tokens, mask = padded_rows(texts)
    following = np.pad(tokens[:, 1:], ((0, 0), (0, 1)))
    real = np.pad(mask[:, 1:], ((0, 0), (0, 1)))
    counted = real & (np.arange(tokens.shape[1])[None, :] >= starts[:, None] - 1)
    return Rows(tokens, mask, by_token={"following": following, "counted": counted})


def check_finite(values: np.ndarray, strengths: np.ndarray, name: str, what: str) -> None:
    """Raise UserError if a figure `[row, strength]` is not finite."""
    if (wrong := ~np.isfinite(values)).any():
        row, strength = np.argwhere(wrong)[0].tolist()
        raise UserError(
            f"{name}: a figure of {what} {row} is not finite at strength {strengths[strength]:g}: look for NaN in the "
            "model and the vector, or for an overflow if it computes in float16; or use smaller strengths"
        )


def mean_of_counted(values: Float[Array, "row pos"], counted: Bool[Array, "row pos"]) -> Float[Array, " row"]:
    """The mean of the counted entries of each row."""
    return jnp.sum(values, axis=1, where=counted) / jnp.sum(counted, axis=1).astype(values.dtype)


@jax.jit
@automatic
def _divergences(
    strengths: Float[Array, " strength"],
    model: Model,
    steering: Steering,
    strength: Float[Array, " row"],
    inputs: dict[str, Any],
) -> dict[str, Array]:
    """For each text: the loss of the unsteered model, and at each strength the divergence and the loss."""
    more: dict[str, Any] = {} if inputs["mask"] is None else {"mask": inputs["mask"]}
    tokens, counted = inputs["tokens"], inputs["counted"]
    log_p = log_probabilities(model(tokens, **more))
    loss = lambda log_p: mean_of_counted(negative_log_likelihood(log_p, inputs["following"]), counted)

    def one(s: Array) -> tuple[Array, Array]:
        steered = edit(model, *steering.edits(jnp.broadcast_to(s, (len(tokens), 1))))
        log_q = log_probabilities(steered(tokens, **more))
        return mean_of_counted(kl_divergence(log_p, log_q), counted), loss(log_q)

    kl, losses = jax.lax.map(one, strengths)
    return {"own": loss(log_p), "kl": kl.T, "loss": losses.T}


def _sizes(
    model: Model, steering: Steering, rows: Rows, strengths: np.ndarray, name: str, batching: Batching, seed: int
) -> dict[str, tuple[Size, ...]]:
    addresses = list(dict.fromkeys(one.address for one in steering.edits(1.0)))
    if not addresses:
        return {}
    sites = tuple(site_widths(model, addresses, rows.tokens.shape[1], not rows.mask.all())[0])
    of = at_strengths(partial(_changes, sites), model, steering, rows, strengths, batching)
    check_finite(of["mean"].sum(axis=-1), strengths, name, "text")
    tokens = of["tokens"].sum(axis=0)
    return {
        site: tuple(
            Size(
                spread(of["mean"][:, i, k], seed=seed),
                float(of["largest"][:, i, k].max()),
                float(of["changed"][:, i, k].sum() / tokens[i]),
            )
            for i in range(len(strengths))
        )
        for k, site in enumerate(sites)
    }


@partial(jax.jit, static_argnums=0)
@automatic
def _changes(
    sites: tuple[str, ...],
    model: Model,
    steering: Steering,
    strength: Float[Array, " row"],
    inputs: dict[str, Any],
) -> dict[str, Array]:
    """The relative size of the change of each value, over the tokens of each text."""
    more: dict[str, Any] = {} if inputs["mask"] is None else {"mask": inputs["mask"]}
    tokens, edits = inputs["tokens"], steering.edits(strength[:, None])
    # With the output: an edit after the last value is an error without it. The compiler leaves out what is not used.
    _, before = edit(read(model, *sites), *edits)(tokens, **more)
    _, after = read(edit(model, *edits), *sites)(tokens, **more)
    real = jnp.ones(tokens.shape, bool) if inputs["mask"] is None else inputs["mask"]
    real = real & (jnp.arange(tokens.shape[1]) > 0)[None, :]
    flat = lambda x: upcast(x).reshape(*tokens.shape, -1)
    found: dict[str, list[Array]] = {"mean": [], "largest": [], "changed": []}
    for site in sites:
        x, y = flat(before[site]), flat(after[site])
        change = jnp.linalg.norm(y - x, axis=-1)
        moved = real & (change != 0)  # NaN is a change
        ratio = jnp.where(moved, change / jnp.linalg.norm(x, axis=-1), jnp.zeros_like(change))
        count = jnp.sum(moved, axis=1).astype(ratio.dtype)
        found["mean"].append(jnp.sum(ratio, axis=1) / jnp.maximum(count, 1))
        found["largest"].append(jnp.max(ratio, axis=1))
        found["changed"].append(count)
    return {name: jnp.stack(values, axis=-1) for name, values in found.items()} | {"tokens": jnp.sum(real, axis=1)}
