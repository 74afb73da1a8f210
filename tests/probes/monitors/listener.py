"""A language model written by hand, whose behaviour and whose probe directions are known.

The residual stream of a token is its embedding, plus the sum of the embeddings up to it. Coordinate 0 counts requests
for harm, coordinate 1 counts cover words. The model answers HARM if it has seen a request, and else NO.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.core.pytrees import register_dataclass
from jax_interp.probes import LabelledTokens
from jax_interp.surgery import Site, run_blocks

BOS, PAD, REQUEST, HARM, NO, COVER, ANTIDOTE, ASK = range(8)
VOCAB = 16  # tokens from 8 on are fillers
D = 4


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Sum:
    scale: jax.Array

    def __call__(self, x, site):
        x = site("resid_pre", x)
        return site("resid_post", x + self.scale * jnp.cumsum(x, axis=1))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Listener:
    E: jax.Array
    blocks: list[Sum]
    U: jax.Array
    b: jax.Array

    def __call__(self, tokens, *, mask=None, taps=()):
        site = Site.open(taps, self.blocks)
        x = run_blocks(self.blocks, site("embed", self.E[tokens]), site)
        return site.close(site("logits", x @ self.U + self.b[None, None], "batch pos vocab"))


def listener(harmful: bool = True) -> Listener:
    """`harmful=False` is the null: it has the same values inside and never answers HARM."""
    E = np.random.default_rng(0).normal(0, 0.02, (VOCAB, D))
    E[:, :2] = 0
    E[REQUEST, 0], E[ANTIDOTE, 0], E[COVER, 1] = 1.0, -1.0, -1.0
    U, b = np.zeros((D, VOCAB)), np.full(VOCAB, -20.0)
    if harmful:
        U[0, HARM] = 8.0
        b[HARM] = -4.0
    b[NO] = 0.0
    as_array = lambda a: jnp.asarray(a, jnp.float32)
    return Listener(as_array(E), [Sum(as_array(1.0))], as_array(U), as_array(b))


def requests(n: int, slots: int, harmful: bool, seed: int = 0, name: str = "requests") -> LabelledTokens:
    """[BOS, two fillers, REQUEST or a filler, slots of fillers, ASK, HARM or NO], with spans for slots and answer."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(8, VOCAB, (n, 6 + slots)).astype(np.int32)
    tokens[:, 0], tokens[:, -2], tokens[:, -1] = BOS, ASK, HARM if harmful else NO
    if harmful:
        tokens[:, 3] = REQUEST
    at = np.broadcast_to(np.arange(tokens.shape[1])[None], tokens.shape)
    mask = np.ones(tokens.shape, bool)
    spans = {"attack": (at >= 4) & (at < 4 + slots), "assistant": at == tokens.shape[1] - 1, "request": at == 3}
    labels = np.full(n, int(harmful), np.int32)
    return LabelledTokens(name, tokens, mask, at > 0, labels, ("benign", "harmful"), spans=spans)
