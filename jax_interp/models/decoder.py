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
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Int

from jax_interp.errors import UserError
from jax_interp.models.block import Block
from jax_interp.models.cache import Cache, begin
from jax_interp.models.config import Config
from jax_interp.models.frame import Frame, causal, positions_of
from jax_interp.models.layers import Embedding, Linear, norm
from jax_interp.models.rotary import rotation
from jax_interp.surgery import Site, Stack, run_blocks


class Decoder(nnx.Module):
    """`model(tokens)` gives logits `[batch, pos, vocab]`. Made by `init`, `load` or `jax.eval_shape` of `init`."""

    def __init__(self, config: Config, key: Array, *, stacked: bool = True, dtype: DTypeLike = jnp.float32):
        embed, pos_embed, blocks, unembed = jax.random.split(key, 4)
        std, out_std = 0.02, 0.02 / math.sqrt(2 * config.n_layers)
        self.config = config
        self.embed = Embedding(embed, config.vocab_size, config.d_model, std=std, dtype=dtype)
        learned = config.positions == "learned"
        self.pos_embed = Embedding(pos_embed, config.n_ctx, config.d_model, std=std, dtype=dtype) if learned else None
        stack = Stack(
            jax.vmap(lambda key: Block(config, key, std=std, out_std=out_std, dtype=dtype))(
                jax.random.split(blocks, config.n_layers)
            )
        )
        self.blocks = nnx.List([stack] if stacked else stack.unstack())
        self.ln_final = norm(config, dtype)
        tied = config.tied_embedding
        self.unembed = (
            None if tied else Linear(unembed, config.d_model, config.vocab_size, bias=False, std=std, dtype=dtype)
        )

    def __call__(
        self,
        tokens: Int[Array, "batch pos"],
        *,
        taps: tuple = (),
        mask: Bool[Array, "batch pos"] | None = None,
        positions: Int[Array, "batch pos"] | Int[Array, "pos"] | None = None,
        cache: Cache | int | None = None,
        remat: Callable | bool | None = None,
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
        """
        if tokens.ndim != 2:
            raise UserError(f"tokens have axes (batch, pos), got shape {tokens.shape}; one sequence is tokens[None]")
        before = begin(self.blocks, tokens, cache) if isinstance(cache, int) else cache
        where = positions_of(tokens, mask, before) if positions is None else jnp.atleast_2d(positions)
        self._check_length(tokens.shape[1] if before is None else before.slots)

        site = Site.open(
            taps,
            self.blocks,
            positions=None if mask is None and positions is None and before is None else where,
            length=None if before is None else before.prompt_length,
            open_ended=before is not None,
        )
        x = site("embed", self.embed(tokens, site / "embed"))
        if self.pos_embed is not None:
            x = x + site("pos_embed", self.pos_embed(jnp.broadcast_to(where, tokens.shape), site / "pos_embed"))
        turn = rotation(where, self.config) if self.config.positions == "rotary" else None
        if before is None:
            after = None
            x = run_blocks(self.blocks, x, site, Frame(turn, causal(mask)), remat=remat)
        else:
            after = before.extended(tokens, mask)
            goes_on = isinstance(cache, Cache)
            frame = Frame(turn, after.visible(tokens.shape[1]), before.length) if goes_on else Frame(turn, causal(mask))
            x, layers = run_blocks(self.blocks, x, site, frame, state=before.layers, remat=remat)
            after = dataclasses.replace(after, layers=layers)
        x = self.ln_final(x, site / "ln_final")
        logits = self.embed.attend(x) if self.unembed is None else self.unembed(x, site / "unembed")
        logits = site("logits", logits, "batch pos vocab")
        return site.close(logits if after is None else (logits, after))

    def _check_length(self, n: int) -> None:
        if self.pos_embed is not None and n > self.config.n_ctx:
            raise UserError(f"{n} positions were asked for, this model has learned {self.config.n_ctx} (n_ctx)")


def init(config: Config, key: Array, *, stacked: bool = True, dtype: DTypeLike = jnp.float32) -> Decoder:
    """A decoder with random weights, as GPT-2 draws them: 0.02 normal, what writes to the residual stream scaled down
    by sqrt(2 n_layers), biases zero. `stacked` has one scanned `Stack`, otherwise every block is its own; same numbers.
    """
    return Decoder(config, key, stacked=stacked, dtype=dtype)
