"""The decoder-only transformer: it maps tokens to logits, and names every intermediate value.

One class covers all model families. The families differ only in their `Config`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.linear import Embedding, Linear
from jax_interp.models.attention_context import attention_context, default_positions
from jax_interp.models.block import Block, norm
from jax_interp.models.cache import Cache, empty_cache
from jax_interp.models.config import Config
from jax_interp.surgery import Edit, Read, Site, Stack, run_blocks


class Decoder(nnx.Module):
    """A decoder-only transformer: `model(tokens)` gives logits `[batch, pos, vocab]`.

    It is a pytree of parameters and works with `jax.jit`, `jax.grad`, `jax.vmap` and `optax`. `init` makes a model with
    random weights. `load` reads a model from disk or from the Hugging Face hub.

    Args:
      config: sizes and choices.
      key: the random key of the weights.
      stacked: True: one scanned `Stack` of blocks. False: a list of blocks. The weights are the same.
      dtype: the dtype of the parameters and of the computation.

    Example:
        logits = call(model, tokens)  # jax_interp.call: compiled, and indices are checked
        logits, acts = call(read(model, "blocks.*.resid_post"), tokens, mask=mask)
    """

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
        remat: Callable[..., Any] | bool | None = None,
        last_only: bool = False,
    ) -> Any:
        """Logits `[batch, pos, vocab]`. With a cache: `(logits, cache)`.

        Args:
          tokens: token ids, `[batch, pos]`. No id has a special meaning.
          taps: passed by `read` and `edit`.
          mask: True for real tokens, False for padding (on either side). Real tokens do not attend to padding. The
            logits at padding have no meaning.
          positions: absolute positions, `[batch, pos]` or `[pos]`. Default: the number of real tokens before a token.
          cache: a number of slots, to begin a new cache with these tokens; or an existing cache, to continue it.
          remat: what the backward pass recomputes. True: everything except the inputs of the blocks. Or a
            `jax.checkpoint_policies` policy over the names of the values.
          last_only: return only the logits of the last real token of each row, `[batch, 1, vocab]`.

        Raises:
          UserError: `tokens` is not a two-dimensional array, or exceeds the number of learned positions.
        """
        _check_tokens(tokens)
        begins = isinstance(cache, int)
        where = default_positions(tokens, mask, None if begins else cache) if positions is None else positions
        where = jnp.atleast_2d(where)
        if begins:
            cache = empty_cache(self.blocks, tokens, cache, jnp.max(where, axis=1, keepdims=True) + 1)
        self._check_length(tokens.shape[1] if cache is None else cache.slots)
        site = Site.open(
            taps,
            self.blocks,
            positions=None if mask is None and positions is None and cache is None else where,
            length=None if cache is None else cache.prompt_length,
            bounds=_position_bounds(tokens, cache, begins) if positions is None else (None, None),
            open_ended=cache is not None,
        )
        x = self._embedded(tokens, where, site)
        if cache is None:
            x = run_blocks(self.blocks, x, site, attention_context(self.config, tokens, where, mask), remat=remat)
        else:
            states, cache = cache.layers, cache.extended(tokens, mask)
            context = attention_context(self.config, tokens, where, mask, None if begins else cache)
            x, states = run_blocks(self.blocks, x, site, context, state=states, remat=remat)
            cache = dataclasses.replace(cache, layers=states)
        x = x if self.ln_final is None else self.ln_final(x, site / "ln_final")
        logits = self._logits(x, site, taps, mask, last_only)
        return site.close(logits if cache is None else (logits, cache))

    def _embedded(
        self, tokens: Int[Array, "batch pos"], where: Int[Array, "#batch pos"], site: Site
    ) -> Float[Array, "batch pos d_model"]:
        """The residual stream before the first block."""
        x = site("embed", _scaled(self.embed(tokens, site / "embed"), self.config.embed_scale))
        where = jnp.broadcast_to(where, tokens.shape)
        if self.pos_embed is not None:
            return x + site("pos_embed", self.pos_embed(where + self.config.position_offset, site / "pos_embed"))
        if self.config.positions == "sinusoidal":
            vectors = sinusoids(where, self.config.d_model).astype(self.embed.weight[...].dtype)
            return x + site("pos_embed", vectors)
        return x

    def _logits(
        self,
        x: Float[Array, "batch pos d_model"],
        site: Site,
        taps: tuple,
        mask: Bool[Array, "batch pos"] | None,
        last_only: bool,
    ) -> Float[Array, "batch pos vocab"]:
        """The logits of all positions, or of the last real position. A read or edit of the logits, or of values of the
        unembedding, always gets all positions."""
        # Taps without an address ask about all values.
        scopes = [tap.address.split(".")[0] if isinstance(tap, (Edit, Read)) else "logits" for tap in taps]
        tapped = "logits" in scopes or "unembed" in scopes
        x = _last(x, mask) if last_only and not tapped else x
        logits = self.embed.attend(x) if self.unembed is None else self.unembed(x, site / "unembed")
        logits = _scaled(logits, self.config.logit_scale)
        if cap := self.config.logit_softcap:
            logits = jnp.tanh(logits / jnp.asarray(cap, logits.dtype)) * jnp.asarray(cap, logits.dtype)
        logits = site("logits", logits, "batch pos vocab")
        return _last(logits, mask) if last_only and tapped else logits

    def _check_length(self, n: int) -> None:
        if self.pos_embed is not None and n > self.config.n_ctx:
            raise UserError(
                f"{n} positions were asked for, but this model has learned {self.config.n_ctx} (n_ctx): give fewer "
                "tokens, or a smaller cache"
            )


def _check_tokens(tokens: Array | Sequence | str) -> None:
    if isinstance(tokens, (str, Sequence)):
        raise UserError(
            f"a model takes an array of token ids (batch, pos), got {type(tokens).__name__}. To encode a text: "
            "jnp.array([tokenizer.encode(text, bos=True)])"
        )
    if tokens.ndim != 2:
        raise UserError(f"tokens have axes (batch, pos), got shape {tokens.shape}; for one sequence, give tokens[None]")


def _position_bounds(tokens: Array, cache: Cache | None, begins: bool) -> tuple[int | None, int]:
    """The bounds (below, above) of the positions of edits: valid positions are -below to above - 1."""
    n = tokens.shape[1]
    if cache is None:
        return n, n
    return (n if begins else None), cache.slots


def _scaled(x: Array, by: float) -> Array:
    return x if by == 1.0 else x * jnp.asarray(by, x.dtype)


def _last(x: Float[Array, "batch pos d"], mask: Bool[Array, "batch pos"] | None) -> Float[Array, "batch 1 d"]:
    """The value at the last real token of each row."""
    if mask is None:
        return x[:, -1:]
    last = (jnp.cumsum(mask, axis=1) == jnp.sum(mask, axis=1, keepdims=True)) & mask
    return jnp.sum(jnp.where(last[:, :, None], x, jnp.zeros_like(x)), axis=1, keepdims=True)


def sinusoids(positions: Int[Array, "batch pos"], d_model: int) -> Float[Array, "batch pos d_model"]:
    """Sinusoidal positions: sin and cos of position / 10000^(2i / d_model), alternating (Vaswani et al. 2017)."""
    freq = 10_000.0 ** (-np.arange(0, d_model, 2, dtype=np.float64) / d_model)
    angles = positions[..., None].astype(jnp.float32) * jnp.asarray(freq.reshape(1, 1, -1), jnp.float32)
    both = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return both.reshape(*positions.shape, -1)[..., :d_model]


def init(config: Config, key: Array, *, stacked: bool = True, dtype: DTypeLike = jnp.float32) -> Decoder:
    """A decoder with random weights, initialized as in GPT-2.

    Weights are normal with standard deviation 0.02. For weights that write to the residual stream, the standard
    deviation is divided by sqrt(2 n_layers). Biases are zero.

    Args:
      config: sizes and choices.
      key: the random key of the weights.
      stacked: True: one scanned `Stack` of blocks. False: a list of blocks. The weights are the same.
      dtype: the dtype of the parameters.
    """
    return Decoder(config, key, stacked=stacked, dtype=dtype)
