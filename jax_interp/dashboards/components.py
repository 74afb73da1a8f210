"""What the components of a language model answer to, on a text.

    found = dashboards(trained, batches, n=6, windows=8)
    found.strongest["blocks.2.mlp.up"]                    its n most important components
    found.texts["blocks.2.mlp.up"].inputs.tokens          on which tokens, [card, token]
    found.texts["blocks.2.mlp.up"].predicted              while which tokens are predicted
    found.texts["blocks.2.mlp.up"].windows                around which positions
    found.passages["blocks.2.mlp.up"]                     position by position, on a few sequences

The text is gone over twice, batch by batch: to choose, then to look at those chosen, the cards. On the device are the
importances of one batch, and cards · (vocabulary + windows); the host holds the cards. Batches of one shape compile
once. An importance below zero, which a leaky sigmoid gives, counts as none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.decomposition.importance.inputs import inner
from jax_interp.decomposition.matrices import is_stacked
from jax_interp.decomposition.strongest import Strongest, concrete, looked_at, strongest
from jax_interp.decomposition.train import Trained


@dataclasses.dataclass(frozen=True)
class TokenShares:
    """Tokens that stand out where a component is important, the first the most.

    share: the token's part of the component's importance, Σ g over it / Σ g. lift: over its part of the text. They are
    in the order of share · log lift, what the token adds to the divergence of the one distribution from the other: a
    frequent token needs a lift, a rare one a share. For predicted tokens each position counts by their probabilities.
    """

    tokens: Int[np.ndarray, "card n"]
    share: Float[np.ndarray, "card n"]
    lift: Float[np.ndarray, "card n"]


@dataclasses.dataclass(frozen=True)
class Windows:
    """Where components are most important: each window from another sequence, in descending order of the importance
    `peak` at its position `before`; of equal ones the largest activation comes first, then the earliest.

    tokens are -1 outside the sequence and where not kept, and throughout where a component is important in fewer
    sequences; importance and activation, ‖U_c‖ (x V_c), are 0 there.
    """

    peak: Float[np.ndarray, "card k"]
    tokens: Int[np.ndarray, "card k window"]
    importance: Float[np.ndarray, "card k window"]
    activation: Float[np.ndarray, "card k window"]
    before: int


@dataclasses.dataclass(frozen=True)
class TextCards:
    """What the strongest components of one matrix answer to."""

    inputs: TokenShares
    predicted: TokenShares
    windows: Windows


@dataclasses.dataclass(frozen=True)
class Dashboards:
    """By matrix (`blocks.2.mlp.up`). `tokens` says how often each stands at a kept position; `passage_tokens` are the
    ends of sequences, -1 where not kept: of the first batch those with the most importance of all cards together, which
    is in `passages`."""

    tokens: Int[np.ndarray, " vocab"]
    threshold: float
    strongest: dict[str, Strongest]
    texts: dict[str, TextCards]
    passage_tokens: Int[np.ndarray, "seq pos"]
    passages: dict[str, Float[np.ndarray, "card seq pos"]]


def dashboards(
    trained: Trained,
    batches: Sequence[tuple[Int[Array, "seq pos"], Bool[Array, "seq pos"]]],
    *,
    n: int = 6,
    windows: int = 8,
    tokens: int = 12,
    before: int = 20,
    after: int = 20,
    passages: int = 2,
    passage_length: int = 40,
    threshold: float = 0.1,
) -> Dashboards:
    """Of every matrix the `n` most important components on these batches, each with `windows` windows of `before` + 1 +
    `after` tokens and the `tokens` tokens that stand out most. The model's output must be logits."""
    if not len(batches):
        raise UserError("no batches: what components answer to is found on a text")
    chosen = strongest(trained, batches, n, threshold)
    places, cards = _places(trained, chosen)
    gathered, passage = None, None
    for x, keep in batches:
        x, keep = jnp.asarray(x, jnp.int32), jnp.asarray(keep)
        one, g = _gathered(trained, x, keep, places, threshold, k=windows, before=before, after=after)
        gathered = one if gathered is None else _merged(gathered, one)
        if passage is None:
            end = (slice(None), slice(-passage_length, None))
            most = np.argsort(-np.asarray(g)[:, *end].sum(axis=(0, 2)), kind="stable")[:passages]
            passage = np.where(keep, x, -1)[end][most], np.asarray(g)[:, *end][:, most]
    assert gathered is not None
    assert passage is not None
    all_cards = jax.device_get(gathered)
    texts, shown = {}, {}
    for name, own in cards.items():
        on = _standing_out(all_cards.by_token[own], all_cards.tokens, tokens)
        predicted = _standing_out(all_cards.by_predicted[own], all_cards.predicted, tokens)
        best = Windows(
            all_cards.peak[own], all_cards.window[own], all_cards.importance[own], all_cards.activation[own], before
        )
        texts[name], shown[name] = TextCards(on, predicted, best), passage[1][own]
    counts = all_cards.tokens.astype(np.int64)
    return Dashboards(counts, threshold, chosen, texts, passage[0], shown)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Gathered:
    """Sums over the text so far, and the best windows of it. Sums are of batches' sums: 1e-7 is lost for each batch."""

    tokens: Float[Array, " vocab"]
    predicted: Float[Array, " vocab"]
    by_token: Float[Array, "card vocab"]
    by_predicted: Float[Array, "card vocab"]
    peak: Float[Array, "card k"]
    size: Float[Array, "card k"]
    window: Int[Array, "card k window"]
    importance: Float[Array, "card k window"]
    activation: Float[Array, "card k window"]


@partial(jax.jit, static_argnames=("k", "before", "after"))
def _gathered(
    trained: Trained,
    x: Int[Array, "seq pos"],
    keep: Bool[Array, "seq pos"],
    places: dict[str, tuple[Int[Array, " card"], Int[Array, " card"]]],
    threshold: Any,
    k: int,
    before: int,
    after: int,
) -> tuple[_Gathered, Float[Array, "card seq pos"]]:
    """One batch's part, and the cards' importances on it."""
    logits, inputs, g_all = looked_at(trained, x)
    a_all = inner(trained.model, inputs)
    g, a = [], []
    for name in sorted(places):  # jit sorts a dict's keys: so does `_places`
        layers, components = places[name]
        each = (lambda v: v) if is_stacked(name) else (lambda v: v[None])
        norm = jnp.linalg.norm(each(trained.model.of(name).U.astype(jnp.float32)), axis=-1)[layers, components]
        g.append(each(g_all[name])[layers, :, :, components])
        a.append(each(a_all[name]).astype(jnp.float32)[layers, :, :, components] * norm[:, None, None])
    g, a = (jnp.where(keep[None], jnp.concatenate(each), 0.0) for each in (g, a))
    kept = keep.reshape(-1).astype(jnp.float32)
    vocab = logits.shape[-1]
    rows = g.reshape(g.shape[0], kept.size)  # -1 would not do where there are no cards
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).reshape(kept.size, vocab)
    by_token = jax.ops.segment_sum(rows.T, x.reshape(-1), vocab).T
    one = _Gathered(
        jax.ops.segment_sum(kept, x.reshape(-1), vocab),
        jnp.einsum("r,rv->v", kept, probabilities),
        by_token,
        jnp.einsum("kr,rv->kv", rows, probabilities),
        *_windows(jnp.where(keep, x, -1), g, a, threshold, k, before, after),
    )
    return one, g


def _windows(
    x: Int[Array, "seq pos"],
    g: Float[Array, "card seq pos"],
    a: Float[Array, "card seq pos"],
    threshold: Any,
    k: int,
    before: int,
    after: int,
) -> tuple[Array, ...]:
    """(peak, size, window, importance, activation) of the `k` best sequences, at the best position of each."""
    peak = jnp.max(g, axis=-1)
    size = jnp.where(g == peak[..., None], jnp.abs(a), -1.0)
    place, size = jnp.argmax(size, axis=-1), jnp.max(size, axis=-1)
    k_here = min(k, x.shape[0])
    seq = _best(peak, size)[:, :k_here]
    peak, size, place = (jnp.take_along_axis(v, seq, axis=1) for v in (peak, size, place))
    there = peak > threshold
    column = place[..., None] + jnp.arange(before + 1 + after)[None, None, :]
    padding = ((0, 0), (before, after))
    tokens = jnp.pad(x, padding, constant_values=-1)[seq[..., None], column]
    card = jnp.arange(g.shape[0])[:, None, None]
    own = [jnp.pad(v, ((0, 0), *padding))[card, seq[..., None], column] for v in (g, a)]
    cut = [jnp.where(there[..., None], v, blank) for v, blank in zip((tokens, *own), (-1, 0.0, 0.0))]
    found = (jnp.where(there, peak, 0.0), jnp.where(there, size, -1.0), *cut)
    missing = lambda v: ((0, 0), (0, k - k_here), *(((0, 0),) * (v.ndim - 2)))
    return tuple(jnp.pad(v, missing(v), constant_values=c) for v, c in zip(found, (0.0, -1.0, -1, 0.0, 0.0)))


def _best(peak: Float[Array, "card n"], size: Float[Array, "card n"]) -> Int[Array, "card n"]:
    """The order of windows, the earlier first where they are equal."""
    return jnp.lexsort((-size, -peak), axis=-1)


@jax.jit
def _merged(one: _Gathered, other: _Gathered) -> _Gathered:
    """Both parts' sums, and the better windows; of equal ones those of `one`."""
    ranked = ("peak", "size", "window", "importance", "activation")
    both = {name: jnp.concatenate([getattr(one, name), getattr(other, name)], axis=1) for name in ranked}
    order = _best(both["peak"], both["size"])[:, : one.peak.shape[1]]
    taken = {
        name: jnp.take_along_axis(v, order.reshape(*order.shape, *(1,) * (v.ndim - 2)), axis=1)
        for name, v in both.items()
    }
    sums = ("tokens", "predicted", "by_token", "by_predicted")
    return _Gathered(**{name: getattr(one, name) + getattr(other, name) for name in sums}, **taken)


def _standing_out(by: Float[np.ndarray, "card vocab"], base: Float[np.ndarray, " vocab"], n: int) -> TokenShares:
    """The `n` tokens of each card with the largest share · log lift."""
    by, base = by.astype(np.float64), base.astype(np.float64)
    share = by / np.maximum(by.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    lift = share / np.maximum(base / base.sum(), np.finfo(float).tiny)
    worth = share * np.log(np.where(share > 0, lift, 1.0))
    best = np.argsort(-worth, axis=1, kind="stable")[:, :n]
    return TokenShares(best, np.take_along_axis(share, best, 1), np.take_along_axis(lift, best, 1))


def _places(trained: Trained, chosen: dict[str, Strongest]) -> tuple[dict[str, tuple[Array, Array]], dict[str, slice]]:
    """Of every entry the layers and the components of its cards; and where those of a matrix are among all cards."""
    places, cards, first = {}, {}, 0
    for name in sorted(trained.model.names):
        depth = trained.model.of(name).V.shape[0] if is_stacked(name) else None
        names = [concrete(name, layer) for layer in (range(depth) if depth is not None else [None])]
        layers = [np.full(len(chosen[one].components), i) for i, one in enumerate(names)]
        places[name] = tuple(
            jnp.asarray(np.concatenate(v), jnp.int32) for v in (layers, [chosen[one].components for one in names])
        )
        for one in names:
            cards[one] = slice(first, first + len(chosen[one].components))
            first = cards[one].stop
    return places, cards
