"""Causal self-attention: grouped key/value heads, rotary positions, a cache, and every step of it by name."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, DTypeLike, Float, Int

from jax_interp.models.attention_context import Frame, View
from jax_interp.models.cache import KV
from jax_interp.models.config import Config
from jax_interp.models.layers import Linear, RMSNorm
from jax_interp.models.rotary import rotate
from jax_interp.models.sharding import like
from jax_interp.surgery import Site


class Attention(nnx.Module):
    """Names `q`, `k`, `v` (before norms and rotation), `rot_q`, `rot_k`, `z`, and only where somebody asks for one of
    them `attn_scores` and `pattern` (a fused kernel may never form them) and `result`, each head's own output.
    """

    def __init__(self, config: Config, key: Array, *, std: float, out_std: float, dtype: DTypeLike):
        q, k, v, o = jax.random.split(key, 4)
        width, kv_width = config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        read = partial(Linear, d_in=config.d_model, bias=config.qkv_bias, std=std, dtype=dtype)
        self.q, self.k, self.v = read(q, d_out=width), read(k, d_out=kv_width), read(v, d_out=kv_width)
        self.o = Linear(o, width, config.d_model, bias=config.out_bias, std=out_std, dtype=dtype)
        widths = {"no": (0, 0), "head": (config.d_head, config.d_head), "all heads": (width, kv_width)}[config.qk_norm]
        small = partial(RMSNorm, eps=config.norm_eps, affine=True, offset=config.norm_offset, dtype=dtype)
        self.q_norm, self.k_norm = (small(n) if n else None for n in widths)
        self.d_head, self.adjacent = config.d_head, config.rope.adjacent
        self.scale, self.softcap = config.attn_scale or config.d_head**-0.5, config.attn_softcap

    def __call__(
        self, x: Float[Array, "batch pos d_model"], site: Site, frame: Frame, state: KV | None = None
    ) -> tuple[Float[Array, "batch pos d_model"], KV | None]:
        """Attention's output, and the cache with these tokens' keys and values where there was one."""
        q = site("q", self._heads(self.q(x, site / "q")), "batch pos head d_head")
        k = site("k", self._heads(self.k(x, site / "k")), "batch pos kv_head d_head")
        v = site("v", self._heads(self.v(x, site / "v")), "batch pos kv_head d_head")
        view = frame.view(site.layer)
        q, k = _normed(self.q_norm, q, site / "q_norm"), _normed(self.k_norm, k, site / "k_norm")
        if view.rotation is not None:
            q = site("rot_q", rotate(q, view.rotation, self.adjacent), "batch pos head d_head")
            k = site("rot_k", rotate(k, view.rotation, self.adjacent), "batch pos kv_head d_head")
        if state is not None:
            state = state.write(k, v, frame.start)
            if frame.start is not None:
                k, v = state.k, state.v
        # Scaled here, not in the scores: whether a compiler contracts that product depends on what is fused around it.
        q = q * jnp.asarray(self.scale, q.dtype)
        if self.softcap or view.bias is not None or site.wants("attn_scores", "pattern"):
            z = explicit_attention(q, k, v, site, view, self.softcap)
        else:
            with jax.numpy_dtype_promotion("standard"):  # JAX's own code mixes bfloat16 and float32
                z = jax.nn.dot_product_attention(q, k, v, mask=view.mask, is_causal=view.mask is None, scale=1.0)
        return self._out(site("z", z, "batch pos head d_head"), site, x), state

    def room(self, tokens: Int[Array, "batch pos"], slots: int) -> KV:
        """An empty cache for one layer, in the dtype and sharding of its keys."""
        weight, rows = self.k.weight[...], like(tokens)
        shape = (tokens.shape[0], slots, weight.shape[-1] // self.d_head, self.d_head)
        spec = None if rows is None else P(rows[0], None, jax.typeof(weight).sharding.spec[-1], None)
        zeros = jnp.zeros(shape, weight.dtype, out_sharding=spec)
        return KV(zeros, zeros)

    def _heads(self, x: Float[Array, "batch pos width"]) -> Float[Array, "batch pos head d_head"]:
        return x.reshape(*x.shape[:-1], -1, self.d_head)

    def _out(self, z: Float[Array, "batch pos head d_head"], site: Site, x: Array) -> Float[Array, "batch pos d_model"]:
        out = self.o(z.reshape(*z.shape[:-2], -1), site / "o", like(x))
        if site.wants("result"):
            weight = self.o.weight[...].reshape(*z.shape[-2:], -1)
            result = jnp.einsum("bpnh,nhd->bpnd", z, weight, out_sharding=like(z))
            edited = site("result", result, "batch pos head d_model")
            # Nothing but what an edit changed is added: a reading leaves the output as it is, to the bit.
            out = out + (jnp.sum(edited, axis=2) - jnp.sum(result, axis=2))
        return out


def _normed(
    norm: RMSNorm | None, x: Float[Array, "batch pos head d_head"], site: Site
) -> Float[Array, "batch pos head d_head"]:
    """Each head normed, or all of them as one vector, by the width of the norm's weight."""
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
    view: View,
    softcap: float = 0.0,
) -> Float[Array, "batch pos head d_head"]:
    """`jax.nn.dot_product_attention` with its scores and pattern named: `[batch, head, pos, key]`, memory quadratic.

    The scores are float32 whatever the model's dtype, scaled, capped, with positions' bias, and -0.7 times float32's
    largest number where masked (a row with everything masked is uniform, not NaN). The operations and their order are
    those of JAX's own XLA implementation, so that on CPU asking for the pattern changes no bit of the output.
    """
    mask = view.mask
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
    if view.bias is not None:
        scores = scores + jnp.broadcast_to(view.bias, scores.shape).astype(scores.dtype)
    scores = jnp.where(mask, scores, jnp.asarray(-0.7 * jnp.finfo(jnp.float32).max, scores.dtype))
    scores = site("attn_scores", scores, "batch head pos key")
    pattern = site("pattern", jax.nn.softmax(scores, axis=-1).astype(k.dtype), "batch head pos key")

    def mix(pattern):
        return jnp.einsum("bkps,bskd->bpkd", pattern, v)

    pattern = pattern.reshape(batch, grouped[2], grouped[3], pos, -1)
    return jax.vmap(mix, in_axes=2, out_axes=3)(pattern).reshape(q.shape)
