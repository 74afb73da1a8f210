"""Causal self-attention with grouped key/value heads, rotary positions and a cache."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, DTypeLike, Float, Int

from jax_interp.core.layer import out_sharding_like
from jax_interp.core.linear import Linear
from jax_interp.core.norms import Norm, RMSNorm
from jax_interp.core.rotary import rotate
from jax_interp.models.attention_context import AttentionContext, LayerContext
from jax_interp.models.cache import KV
from jax_interp.models.config import Config
from jax_interp.surgery import Site


class Attention(nnx.Module):
    """Causal self-attention.

    It names `q`, `k`, `v` (before norms and rotation), `rot_q`, `rot_k`, and `z` (the attention-weighted values). It
    names `attn_scores`, `pattern` and `result` (the output of each head) only if they are read or edited, because the
    fused attention kernel does not compute them.
    """

    def __init__(self, config: Config, key: Array, *, std: float, out_std: float, dtype: DTypeLike):
        q, k, v, o = jax.random.split(key, 4)
        width, kv_width = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        read = partial(Linear, d_in=config.d_model, bias=config.qkv_bias, std=std, dtype=dtype)
        self.q, self.k, self.v = read(q, d_out=width), read(k, d_out=kv_width), read(v, d_out=kv_width)
        self.o = Linear(o, width, config.d_model, bias=config.out_bias, std=out_std, dtype=dtype)
        widths = {"no": (0, 0), "head": (config.d_head, config.d_head), "all heads": (width, kv_width)}[config.qk_norm]
        rms = partial(RMSNorm, eps=config.norm_eps, affine=True, offset=config.norm_offset, dtype=dtype)
        self.q_norm, self.k_norm = (rms(n) if n else None for n in widths)
        self.d_head, self.adjacent = config.d_head, config.rope.adjacent
        self.scale, self.softcap = config.attn_scale or config.d_head**-0.5, config.attn_softcap

    def __call__(
        self, x: Float[Array, "batch pos d_model"], site: Site, context: AttentionContext, state: KV | None = None
    ) -> tuple[Float[Array, "batch pos d_model"], KV | None]:
        """Returns the output, and the cache with the keys and values of these tokens (None without a cache)."""
        q = site("q", self._heads(self.q(x, site / "q")), "batch pos head d_head")
        k = site("k", self._heads(self.k(x, site / "k")), "batch pos kv_head d_head")
        v = site("v", self._heads(self.v(x, site / "v")), "batch pos kv_head d_head")
        here = context.at_layer(site.layer)
        q, k = _normed(self.q_norm, q, site / "q_norm"), _normed(self.k_norm, k, site / "k_norm")
        if here.rotation is not None:
            q = site("rot_q", rotate(q, here.rotation, self.adjacent), "batch pos head d_head")
            k = site("rot_k", rotate(k, here.rotation, self.adjacent), "batch pos kv_head d_head")
        if state is not None:
            state = state.write(k, v, context.first_slot)
            if context.first_slot is not None:
                k, v = state.k, state.v
        # Queries are scaled, not scores: there the compiler may fuse the product differently in different programs.
        q = q * jnp.asarray(self.scale, q.dtype)
        if self.softcap or here.bias is not None or site.wants("attn_scores", "pattern"):
            z = explicit_attention(q, k, v, site, here, self.softcap)
        else:
            with jax.numpy_dtype_promotion("standard"):  # the code of JAX mixes bfloat16 and float32
                z = jax.nn.dot_product_attention(q, k, v, mask=here.mask, is_causal=here.mask is None, scale=1.0)
        return self._out(site("z", z, "batch pos head d_head"), site, x), state

    def empty_kv(self, tokens: Int[Array, "batch pos"], slots: int) -> KV:
        """An empty cache for this layer, in the dtype and sharding of its keys."""
        weight, rows = self.k.weight[...], out_sharding_like(tokens)
        shape = (tokens.shape[0], slots, weight.shape[-1] // self.d_head, self.d_head)
        spec = None if rows is None else P(rows[0], None, jax.typeof(weight).sharding.spec[-1], None)
        zeros = jnp.zeros(shape, weight.dtype, out_sharding=spec)
        return KV(zeros, zeros)

    def _heads(self, x: Float[Array, "batch pos width"]) -> Float[Array, "batch pos head d_head"]:
        return x.reshape(*x.shape[:-1], -1, self.d_head)

    def _out(self, z: Float[Array, "batch pos head d_head"], site: Site, x: Array) -> Float[Array, "batch pos d_model"]:
        out = self.o(z.reshape(*z.shape[:-2], -1), site / "o", out_sharding_like(x))
        if site.wants("result"):
            weight = self.o.weight[...].reshape(*z.shape[-2:], -1)
            result = jnp.einsum("bpnh,nhd->bpnd", z, weight, out_sharding=out_sharding_like(z))
            edited = site("result", result, "batch pos head d_model")
            # Add only the change by edits. A read then does not change a bit of the output.
            out = out + (jnp.sum(edited, axis=2) - jnp.sum(result, axis=2))
        return out


def _normed(
    norm: Norm | None, x: Float[Array, "batch pos head d_head"], site: Site
) -> Float[Array, "batch pos head d_head"]:
    """Normalize each head, or all heads as one vector, depending on the width of the norm's weight."""
    if norm is None:
        return x
    assert norm.weight is not None
    if norm.weight[...].shape[0] == x.shape[-1] and x.shape[-2] > 1:
        return norm(x, site)
    return norm(x.reshape(*x.shape[:-2], -1), site).reshape(x.shape)


def explicit_attention(
    q: Float[Array, "batch pos head d_head"],
    k: Float[Array, "batch key kv_head d_head"],
    v: Float[Array, "batch key kv_head d_head"],
    site: Site,
    context: LayerContext,
    softcap: float = 0.0,
) -> Float[Array, "batch pos head d_head"]:
    """Like `jax.nn.dot_product_attention`, but it names `attn_scores` and `pattern`, both `[batch, head, pos, key]`.

    The scores are float32 for every dtype of the model, and include the softcap and the bias. Masked scores are -0.7
    times the largest float32 number, so a row in which all keys are masked gives a uniform pattern and not NaN. The
    operations and their order are those of JAX's XLA implementation, so on CPU reading the pattern changes no bit.
    """
    mask = context.mask
    if mask is None:
        mask = jnp.tril(jnp.ones((q.shape[1], k.shape[1]), bool))[None, None]
    batch, pos, heads, d_head = q.shape
    grouped = (batch, pos, k.shape[2], heads // k.shape[2], d_head)

    def score(q):
        return jnp.einsum("bpkd,bskd->bkps", q, k, preferred_element_type=jnp.float32)

    scores = jax.vmap(score, in_axes=3, out_axes=2)(q.reshape(grouped)).reshape(batch, heads, pos, -1)
    if softcap:
        cap = jnp.asarray(softcap, scores.dtype)
        scores = jnp.tanh(scores / cap) * cap
    if context.bias is not None:
        scores = scores + jnp.broadcast_to(context.bias, scores.shape).astype(scores.dtype)
    scores = jnp.where(mask, scores, jnp.asarray(-0.7 * jnp.finfo(jnp.float32).max, scores.dtype))
    scores = site("attn_scores", scores, "batch head pos key")
    pattern = site("pattern", jax.nn.softmax(scores, axis=-1).astype(k.dtype), "batch head pos key")

    def mix(pattern):
        return jnp.einsum("bkps,bskd->bpkd", pattern, v)

    pattern = pattern.reshape(batch, grouped[2], grouped[3], pos, -1)
    return jax.vmap(mix, in_axes=2, out_axes=3)(pattern).reshape(q.shape)
