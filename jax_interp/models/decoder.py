"""The decoder-only transformer: it maps tokens to logits, and names every intermediate value.

One class covers all model families. The families differ only in their `Config`.
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

from jax_interp.core.layer import at_least_float32
from jax_interp.core.linear import Embedding, Linear
from jax_interp.core.short_repr import ShortRepr
from jax_interp.models.attention_context import attention_context, default_positions
from jax_interp.models.block import Block, norm
from jax_interp.models.cache import Cache, empty_cache
from jax_interp.models.config import Config
from jax_interp.models.inputs import checked_inputs
from jax_interp.models.weight_rules import unembedding
from jax_interp.surgery import Edit, Positions, Read, Site, Stack, run_blocks
from jax_interp.surgery.taps import BlockInputs, Resume
from jax_interp.training.gathering import gathered, kept_for_backward


class Decoder(ShortRepr, nnx.Module):
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
          mask: True for real tokens, False for padding (on either side), or 1 and 0. Real tokens do not attend to
            padding. The logits at padding have no meaning.
          positions: absolute positions, `[batch, pos]` or `[pos]`. Default: the number of real tokens before a token.
          cache: a number of slots, to begin a new cache with these tokens; or an existing cache, to continue it.
          remat: what the backward pass recomputes. True: everything except the inputs of the blocks. Or a
            `jax.checkpoint_policies` policy over the names of the values.
          last_only: return only the logits of the last real token of each row, `[batch, 1, vocab]`.

        Raises:
          UserError: an input has a wrong shape or dtype, there are more tokens than learned positions or free slots, or
            a token id is outside the vocabulary. Where the values are traced, an id outside the vocabulary, a position
            that was not learned, and tokens beyond the slots give NaN.
        """
        tokens, mask, positions = checked_inputs(self.config, tokens, mask, positions, cache)
        begins = isinstance(cache, (int, np.integer))
        where = default_positions(tokens, mask, None if begins else cache) if positions is None else positions
        if begins:
            cache = empty_cache(self.blocks, tokens, cache, jnp.max(where, axis=1, keepdims=True) + 1)
        bounds = _position_bounds(tokens, cache, begins) if positions is None else (None, None)
        at = None if mask is None and positions is None and cache is None else where
        text = Positions(at, bounds=bounds, real=mask, real_keys=mask, ids=tokens)
        if cache is not None:
            states, first, cache = cache.layers, 0 if begins else cache.length, cache.extended(tokens, mask)
            keys = mask if begins else cache.valid
            text = Positions(at, cache.prompt_length, bounds, True, mask, keys, first, cache.slots, tokens)
        site, remat = Site.open(taps, self.blocks, text), kept_for_backward(remat)
        x = self._embedded(tokens, where, site)
        if cache is None:
            context = attention_context(self.config, tokens, where, mask, dtype=x.dtype)
            x = run_blocks(self.blocks, x, site, context, remat=remat)
        else:
            context = attention_context(self.config, tokens, where, mask, None if begins else cache, x.dtype)
            x, states = run_blocks(self.blocks, x, site, context, state=states, remat=remat)
            cache = dataclasses.replace(cache, layers=states)
        x = x if self.ln_final is None else self.ln_final(x, site / "ln_final")
        logits = self._logits(x, site, taps, mask, last_only)
        return site.close(logits if cache is None else (logits, cache))

    def check_inputs(
        self, tokens: Any, *, mask: Any = None, positions: Any = None, cache: Any = None, **_: Any
    ) -> None:
        """Raise `UserError` for wrong inputs of the model. `call` does this before the compiled program runs."""
        checked_inputs(self.config, tokens, mask, positions, cache)

    def _embedded(
        self, tokens: Int[Array, "batch pos"], where: Int[Array, "#batch pos"], site: Site
    ) -> Float[Array, "batch pos d_model"]:
        """The residual stream before the first block."""
        x = site("embed", _scaled(self.embed(tokens, site / "embed"), self.config.embed_scale))
        where = jnp.broadcast_to(where, tokens.shape)
        if self.pos_embed is not None:
            row = jnp.where(where < 0, where, where + self.config.position_offset)  # a negative position stays outside
            return x + site("pos_embed", self.pos_embed(row, site / "pos_embed"))
        if self.config.positions == "sinusoidal":
            return x + site("pos_embed", sinusoids(where, self.config.d_model, x.dtype))
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
        asking = [tap for tap in taps if not isinstance(tap, (BlockInputs, Resume))]
        scopes = [tap.address.split(".")[0] if isinstance(tap, (Edit, Read)) else "logits" for tap in asking]
        tapped = "logits" in scopes or "unembed" in scopes
        x = _last(x, mask) if last_only and not tapped else x
        unembed = gathered({"unembed": self.unembed}, unembedding(self.config.vocab_size))["unembed"]
        logits = self.embed.attend(x) if unembed is None else unembed(x, site / "unembed")
        logits = _scaled(logits, self.config.logit_scale)
        if cap := self.config.logit_softcap:
            logits = jnp.tanh(logits / jnp.asarray(cap, logits.dtype)) * jnp.asarray(cap, logits.dtype)
        logits = site("logits", logits, "batch pos vocab")
        return _last(logits, mask) if last_only and tapped else logits


def _position_bounds(tokens: Array, cache: Cache | None, begins: bool) -> tuple[int | None, int]:
    """The bounds (below, above) of the positions of edits: valid positions are -below to above - 1."""
    n = tokens.shape[1]
    if cache is None:
        return n, n
    return (n if begins else None), cache.slots


def _scaled(x: Array, by: float) -> Array:
    return x if by == 1.0 else x * jnp.asarray(by, x.dtype)


def _last(x: Float[Array, "batch pos d"], mask: Bool[Array, "batch pos"] | None) -> Float[Array, "batch 1 d"]:
    """The value at the last real token of each row; NaN if a row has none."""
    if mask is None:
        return x[:, -1:]
    last = (jnp.cumsum(mask, axis=1) == jnp.sum(mask, axis=1, keepdims=True)) & mask
    value = jnp.sum(jnp.where(last[:, :, None], x, jnp.zeros_like(x)), axis=1, keepdims=True)
    return jnp.where(jnp.any(mask, axis=1)[:, None, None], value, jnp.asarray(jnp.nan, x.dtype))


def sinusoids(
    positions: Int[Array, "batch pos"], d_model: int, dtype: DTypeLike = jnp.float32
) -> Float[Array, "batch pos d_model"]:
    """Sinusoidal positions: sin and cos of position / 10000^(2i / d_model), alternating (Vaswani et al. 2017).

    They are computed in float32 at least.
    """
    exact = at_least_float32(dtype)
    freq = 10_000.0 ** (-np.arange(0, d_model, 2, dtype=np.float64) / d_model)
    angles = positions[..., None].astype(exact) * jnp.asarray(freq.reshape(1, 1, -1), exact)
    both = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return both.reshape(*positions.shape, -1)[..., :d_model].astype(dtype)


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
