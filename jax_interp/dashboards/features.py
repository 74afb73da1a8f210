"""Looking at features: which fire on a token, what a feature fires on, what it writes.

found = features_on_token(model, address, sae, batches, token=self_id)          found.features[0] fires most on it
contexts = top_activations(model, address, sae, batches, features=found.features[:5], n=8)
promoted, suppressed = logit_effect(sae, feature=17, unembed=W_U(fold_layernorm(model)), n=10)

`W_U` is that of jax_interp.analysis, tied or not; `fold_layernorm`, of jax_interp.models.processing, puts the
final norm's weight into it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.data.harvest import Addresses, harvest

Batches = Sequence[tuple[Int[Array, "seq pos"], Bool[Array, "seq pos"]]]


@dataclasses.dataclass(frozen=True)
class TokenFeatures:
    """Features in descending order of `mean_on - mean_elsewhere`, the difference of mean activations at positions that
    hold the token and at the other kept ones. `rate_*` are the fractions of those positions at which they fire."""

    token: int
    occurrences: int
    features: Int[np.ndarray, " n"]
    mean_on: Float[np.ndarray, " n"]
    mean_elsewhere: Float[np.ndarray, " n"]
    rate_on: Float[np.ndarray, " n"]
    rate_elsewhere: Float[np.ndarray, " n"]


@partial(jax.jit, static_argnames="address")
def latents(
    model: Any, dictionary: Any, tokens: Int[Array, "seq pos"], keep: Bool[Array, "seq pos"], address: Addresses
) -> Float[Array, "row feature"]:
    """The dictionary's latents at `address`, 0 where not kept."""
    z = dictionary.encode(harvest(model, address, tokens))
    return jnp.where(keep.reshape(-1, 1), z, jnp.zeros((), z.dtype))


@jax.jit
def _sums(z: Float[Array, "row feature"], where: Bool[Array, " row"]) -> tuple[Array, Array]:
    chosen = jnp.where(where[:, None], z.astype(jnp.float32), jnp.zeros((), jnp.float32))
    return jnp.sum(chosen, axis=0), jnp.sum(chosen != 0, axis=0, dtype=jnp.int32)


def features_on_token(
    model: Any, address: Addresses, dictionary: Any, batches: Batches, token: int, n: int = 20
) -> TokenFeatures:
    """The `n` features that tell `token` apart. UserError where no kept position holds it."""
    sums, counts = [np.float64(0), np.float64(0)] * 2, np.zeros(2, np.int64)
    for tokens, keep in batches:
        tokens, keep = jnp.asarray(tokens), jnp.asarray(keep)
        z = latents(model, dictionary, tokens, keep, address=address)
        here = ((tokens == token) & keep).reshape(-1)
        there = keep.reshape(-1) & ~here
        added = [np.asarray(a, np.float64) for where in (here, there) for a in _sums(z, where)]
        sums = [total + a for total, a in zip(sums, added, strict=True)]
        counts += [int(here.sum()), int(there.sum())]
    if not counts[0]:
        raise UserError(f"token {token} stands at no kept position of these batches; choose another, or more text")
    per = np.maximum(counts, 1)
    mean_on, rate_on = sums[0] / per[0], sums[1] / per[0]
    mean_elsewhere, rate_elsewhere = sums[2] / per[1], sums[3] / per[1]
    best = np.argsort(mean_elsewhere - mean_on, kind="stable")[:n]
    picked = (a[best] for a in (mean_on, mean_elsewhere, rate_on, rate_elsewhere))
    return TokenFeatures(token, int(counts[0]), best, *picked)


@dataclasses.dataclass(frozen=True)
class Contexts:
    """Where features fire hardest: for each feature its top positions in descending order of activation.

    `tokens[f, i]` are the `before` tokens, the one fired on, and the `after` ones; -1 where the sequence has none or
    they are not kept, and throughout where a feature fired fewer than n times (`values` is 0 there).
    `activations[f, i]` are the feature's own at those tokens.
    """

    features: Int[np.ndarray, " feature"]
    values: Float[np.ndarray, "feature n"]
    tokens: Int[np.ndarray, "feature n window"]
    activations: Float[np.ndarray, "feature n window"]
    before: int


def top_activations(
    model: Any,
    address: Addresses,
    dictionary: Any,
    batches: Batches,
    features: Sequence[int],
    n: int = 10,
    before: int = 12,
    after: int = 4,
) -> Contexts:
    """The `n` strongest activations of each of `features` over the batches, with their contexts; n · features windows
    are kept, whatever the length of the data. Of equal activations the earlier one comes first."""
    chosen, there_are = np.asarray(features, np.int32), dictionary.W_dec.shape[0]
    if (chosen < 0).any() or (chosen >= there_are).any():
        raise UserError(f"features {chosen.tolist()} of a dictionary of {there_are}: from 0 to {there_are - 1}")
    width = before + 1 + after
    best = (
        jnp.zeros((len(chosen), n)),
        jnp.full((len(chosen), n, width), -1, jnp.int32),
        jnp.zeros((len(chosen), n, width)),
    )
    for tokens, keep in batches:
        tokens, keep = jnp.asarray(tokens, jnp.int32), jnp.asarray(keep)
        z = latents(model, dictionary, tokens, keep, address=address)
        best = _merge(best, z, tokens, keep, jnp.asarray(chosen), before=before, after=after)
    values, windows, activations = (np.asarray(a) for a in best)
    windows = np.where(values[..., None] > 0, windows, -1)
    return Contexts(chosen, values, windows, np.where(windows >= 0, activations, 0.0), before)


@partial(jax.jit, static_argnames=("before", "after"))
def _merge(best: tuple, z: Array, tokens: Array, keep: Array, features: Array, before: int, after: int) -> tuple:
    """The best so far and those of one batch, the better of both."""
    n, (seqs, length) = best[0].shape[1], tokens.shape
    own = z[:, features].T.astype(jnp.float32).reshape(len(features), seqs, length)
    values, place = jax.lax.top_k(own.reshape(len(features), -1), min(n, seqs * length))
    padding = ((0, 0), (before, after))
    shown = jnp.pad(jnp.where(keep, tokens, -1), padding, constant_values=-1)
    strength = jnp.pad(own, ((0, 0), *padding))
    seq, column = place // length, (place % length)[..., None] + jnp.arange(before + 1 + after)[None, None, :]
    windows = shown[seq[..., None], column]
    activations = strength[jnp.arange(len(features))[:, None, None], seq[..., None], column]
    both = [jnp.concatenate(pair, axis=1) for pair in zip(best, (values, windows, activations), strict=True)]
    values, order = jax.lax.top_k(both[0], n)
    pick = order[..., None]
    return values, jnp.take_along_axis(both[1], pick, axis=1), jnp.take_along_axis(both[2], pick, axis=1)


@dataclasses.dataclass(frozen=True)
class LogitEffect:
    """Tokens in the order of their change, and the changes of their logits."""

    tokens: Int[np.ndarray, " n"]
    effects: Float[np.ndarray, " n"]


def logit_effect(
    dictionary: Any,
    feature: int,
    unembed: Callable[[Float[Array, " d"]], Float[Array, " vocab"]] | Float[Array, "d vocab"],
    n: int = 10,
) -> tuple[LogitEffect, LogitEffect]:
    """(promoted, suppressed): tokens whose logits a feature's direction moves most, straight through the unembedding.

    `unembed` is a matrix, or a function of one vector; give it the final norm's weight folded in where there is one
    (the norm's denominator, which depends on the rest of the residual stream, only scales the effects). The effects
    are differences from their mean over the vocabulary: a constant added to every logit changes nothing.
    """
    if not 0 <= feature < dictionary.W_dec.shape[0]:
        raise UserError(f"feature {feature} of a dictionary of {dictionary.W_dec.shape[0]}")
    direction = dictionary.W_dec[feature]
    effects = np.asarray(unembed(direction) if callable(unembed) else direction @ unembed, np.float64).reshape(-1)
    effects = effects - effects.mean()
    order = np.argsort(-effects, kind="stable")
    return LogitEffect(order[:n], effects[order[:n]]), LogitEffect(order[::-1][:n], effects[order[::-1][:n]])
