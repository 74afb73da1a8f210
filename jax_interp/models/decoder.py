"""The decoder-only transformer: tokens to logits, every value on the way named.

One class covers the families; what differs between them is `Config`. It is a pytree of parameters: give it to
`jax.jit`, `jax.grad`, `jax.vmap` and `optax` as it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.models.attention_context import frame, positions_of
from jax_interp.models.block import Block
from jax_interp.models.cache import Cache, begin
from jax_interp.models.config import Config
from jax_interp.models.layers import Embedding, Linear, norm
from jax_interp.surgery import Site, Stack, run_blocks


class Decoder(nnx.Module):
    """`model(tokens)` gives logits `[batch, pos, vocab]`. Made by `init`, `load` or `jax.eval_shape` of `init`."""

    def __init__(self, config: Config, key: Array, *, stacked: bool = True, dtype: DTypeLike = jnp.float32):
        embed, pos_embed, blocks, unembed = jax.random.split(key, 4)
        std, out_std = 0.02, 0.02 / math.sqrt(2 * config.n_layers)
        self.config = config
        self.embed = Embedding(embed, config.vocab_size, config.d_model, std=std, dtype=dtype)
        learned = config.positions == "learned"
        rows = config.n_ctx + config.position_offset
        self.pos_embed = Embedding(pos_embed, rows, config.d_model, std=std, dtype=dtype) if learned else None
        stack = Stack(
            jax.vmap(lambda key: Block(config, key, std=std, out_std=out_std, dtype=dtype))(
                jax.random.split(blocks, config.n_layers)
            )
        )
        self.blocks = nnx.List([stack] if stacked else stack.unstack())
        self.ln_final = norm(config, dtype)
        ends, tied = (config.d_model, config.vocab_size), config.tied_embedding
        self.unembed = None if tied else Linear(unembed, *ends, bias=config.unembed_bias, std=std, dtype=dtype)

    def __call__(
        self,
        tokens: Int[Array, "batch pos"],
        *,
        taps: tuple = (),
        mask: Bool[Array, "batch pos"] | None = None,
        positions: Int[Array, "batch pos"] | Int[Array, "pos"] | None = None,
        cache: Cache | int | None = None,
        remat: Callable | bool | None = None,
        last_only: bool = False,
    ) -> Any:
        """Logits `[batch, pos, vocab]`; with a cache, `(logits, cache)`.

        Args:
          tokens: token ids. No id is special: padding is what `mask` says.
          taps: what `read` and `edit` pass.
          mask: True where a token is real, False where it is padding, on either side. No real token sees padding;
            what comes out at padding means nothing.
          positions: absolute positions; default: a token's is the number of real tokens before it in its row.
          cache: a number of slots to start a cache with these tokens (the prompt), or the cache so far, to go on.
          remat: what the backward pass recomputes: True all but the blocks' inputs, or a `jax.checkpoint_policies`
            policy over the names of the values.
          last_only: the logits of each row's last real token alone, `[batch, 1, vocab]`. They are made for all
            positions only where a tap looks at them.
        """
        if not hasattr(tokens, "ndim"):
            raise UserError(
                f"a model takes an array of token ids (batch, pos), got {type(tokens).__name__}. Of a text: "
                "jnp.array([tokenizer.encode(text, bos=True)])"
            )
        if tokens.ndim != 2:
            raise UserError(f"tokens have axes (batch, pos), got shape {tokens.shape}; one sequence is tokens[None]")
        before = None if isinstance(cache, int) else cache
        where = positions_of(tokens, mask, before) if positions is None else jnp.atleast_2d(positions)
        bounds = (tokens.shape[1], tokens.shape[1]) if before is None else (None, before.slots)
        if isinstance(cache, int):
            before = begin(self.blocks, tokens, cache, jnp.max(where, axis=1, keepdims=True) + 1)
            bounds = (tokens.shape[1], cache)
        self._check_length(tokens.shape[1] if before is None else before.slots)

        site = Site.open(
            taps,
            self.blocks,
            positions=None if mask is None and positions is None and before is None else where,
            length=None if before is None else before.prompt_length,
            bounds=bounds if positions is None else (None, None),
            open_ended=before is not None,
        )
        x = site("embed", self._scaled(self.embed(tokens, site / "embed"), self.config.embed_scale))
        if (vectors := self._position_vectors(where, tokens, site)) is not None:
            x = x + site("pos_embed", vectors)
        if before is None:
            after = None
            x = run_blocks(self.blocks, x, site, frame(self.config, tokens, where, mask), remat=remat)
        else:
            after = before.extended(tokens, mask)
            at = frame(self.config, tokens, where, mask, after if isinstance(cache, Cache) else None)
            x, layers = run_blocks(self.blocks, x, site, at, state=before.layers, remat=remat)
            after = dataclasses.replace(after, layers=layers)
        x = x if self.ln_final is None else self.ln_final(x, site / "ln_final")
        # A tap on the logits, or on what stands in the unembedding's place, sees all positions.
        tapped = any(getattr(tap, "address", "logits").split(".")[0] in ("logits", "unembed") for tap in taps)
        x = _last(x, mask) if last_only and not tapped else x
        logits = self.embed.attend(x) if self.unembed is None else self.unembed(x, site / "unembed")
        logits = self._scaled(logits, self.config.logit_scale)
        if cap := self.config.logit_softcap:
            logits = jnp.tanh(logits / jnp.asarray(cap, logits.dtype)) * jnp.asarray(cap, logits.dtype)
        logits = site("logits", logits, "batch pos vocab")
        logits = _last(logits, mask) if last_only and tapped else logits
        return site.close(logits if after is None else (logits, after))

    def _position_vectors(self, where: Array, tokens: Array, site: Site) -> Float[Array, "batch pos d_model"] | None:
        """What is added to the embeddings at these positions, where positions are told that way."""
        where = jnp.broadcast_to(where, tokens.shape)
        if self.pos_embed is not None:
            return self.pos_embed(where + self.config.position_offset, site / "pos_embed")
        if self.config.positions == "sinusoidal":
            return sinusoids(where, self.config.d_model).astype(self.embed.weight[...].dtype)
        return None

    @staticmethod
    def _scaled(x: Array, by: float) -> Array:
        return x if by == 1.0 else x * jnp.asarray(by, x.dtype)

    def _check_length(self, n: int) -> None:
        if self.pos_embed is not None and n > self.config.n_ctx:
            raise UserError(f"{n} positions were asked for, this model has learned {self.config.n_ctx} (n_ctx)")


def _last(x: Float[Array, "batch pos d"], mask: Bool[Array, "batch pos"] | None) -> Float[Array, "batch 1 d"]:
    """The value at each row's last real token."""
    if mask is None:
        return x[:, -1:]
    last = (jnp.cumsum(mask, axis=1) == jnp.sum(mask, axis=1, keepdims=True)) & mask
    return jnp.sum(jnp.where(last[:, :, None], x, jnp.zeros_like(x)), axis=1, keepdims=True)


def sinusoids(positions: Int[Array, "batch pos"], d_model: int) -> Float[Array, "batch pos d_model"]:
    """sin and cos of position / 10000^(2i / d_model) in turn (Vaswani et al. 2017)."""
    freq = 10_000.0 ** (-np.arange(0, d_model, 2, dtype=np.float64) / d_model)
    angles = positions[..., None].astype(jnp.float32) * jnp.asarray(freq.reshape(1, 1, -1), jnp.float32)
    both = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return both.reshape(*positions.shape, -1)[..., :d_model]


def init(config: Config, key: Array, *, stacked: bool = True, dtype: DTypeLike = jnp.float32) -> Decoder:
    """A decoder with random weights, as GPT-2 draws them: 0.02 normal, what writes to the residual stream scaled down
    by sqrt(2 n_layers), biases zero. `stacked` has one scanned `Stack`, otherwise every block is its own; same numbers.
    """
    return Decoder(config, key, stacked=stacked, dtype=dtype)
