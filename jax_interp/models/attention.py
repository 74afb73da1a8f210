"""Causal self-attention with grouped key/value heads, rotary positions and a cache."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, DTypeLike, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.layer import at_least_float32, out_sharding_like, upcast
from jax_interp.core.linear import Linear
from jax_interp.core.norms import RMSNorm
from jax_interp.core.rotary import rotate
from jax_interp.models.attention_context import AttentionContext, LayerContext
from jax_interp.models.cache import KV
from jax_interp.models.config import Config
from jax_interp.models.head_inputs import NO_COPIES, HeadInputs, with_copies
from jax_interp.surgery import Site
from jax_interp.surgery.edits import value_with_gradient_of

_FUSED = (jnp.float32, jnp.bfloat16)
"""The dtypes for JAX's attention: on CPUs it lacks a product in float16, and its softmax of float64 is in float32."""


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
        self.qk_norm = config.qk_norm
        self.n_heads, self.n_kv_heads, self.d_head = config.n_heads, config.n_kv_heads, config.d_head
        self.adjacent = config.rope.adjacent
        self.scale, self.softcap = config.attn_scale or config.d_head**-0.5, config.attn_softcap

    def __call__(
        self,
        x: Float[Array, "batch pos d_model"],
        site: Site,
        context: AttentionContext,
        state: KV | None = None,
        copies: HeadInputs = NO_COPIES,
    ) -> tuple[Float[Array, "batch pos d_model"], KV | None]:
        """Returns the output, and the cache with the keys and values of these tokens (None without a cache).

        `copies` are the edited inputs of single heads, which replace `x` for these heads.
        """
        q = site("q", self._projected("q", x, site, copies), "batch pos head d_head")
        k = site("k", self._projected("k", x, site, copies), "batch pos kv_head d_head")
        v = site("v", self._projected("v", x, site, copies), "batch pos kv_head d_head")
        here = context.at_layer(site.layer)
        q = self._normed(self.q_norm, q, site / "q_norm", "head")
        k = self._normed(self.k_norm, k, site / "k_norm", "kv_head")
        if here.rotation is not None:
            q = site("rot_q", rotate(q, here.rotation, self.adjacent), "batch pos head d_head")
            k = site("rot_k", rotate(k, here.rotation, self.adjacent), "batch pos kv_head d_head")
        if state is not None:
            state = state.write(k, v, context.first_slot)
            if context.first_slot is not None:
                k, v = state.k, state.v
        # Queries are scaled, not scores: there the compiler may fuse the product differently in different programs.
        q = q * jnp.asarray(self.scale, q.dtype)
        k, v = _keys_for(q, k), _keys_for(q, v)
        explicit = self.softcap or here.bias is not None or site.wants("attn_scores", "pattern")
        if explicit or q.dtype not in _FUSED:
            z = explicit_attention(q, k, v, site, here, self.softcap)
        else:
            with jax.numpy_dtype_promotion("standard"):  # the code of JAX mixes bfloat16 and float32
                z = jax.nn.dot_product_attention(q, k, v, mask=here.mask, is_causal=here.mask is None, scale=1.0)
        return self._out(site("z", z, "batch pos head d_head"), site, x), state

    def empty_kv(self, tokens: Int[Array, "batch pos"], slots: int) -> KV:
        """An empty cache for this layer, in the dtype and sharding of its keys."""
        weight, rows = self.k.weight[...], out_sharding_like(tokens)
        shape = (tokens.shape[0], slots, weight.shape[-1] // self.d_head, self.d_head)
        heads = None if rows is None else _heads_axis(jax.typeof(weight).sharding, shape[2])
        spec = None if rows is None else P(rows[0], None, heads, None)
        zeros = jnp.zeros(shape, weight.dtype, out_sharding=spec)
        return KV(zeros, zeros)

    def _projected(
        self, part: Literal["q", "k", "v"], x: Float[Array, "batch pos d_model"], site: Site, copies: HeadInputs
    ) -> Float[Array, "batch pos head d_head"]:
        """The queries, keys or values. Where the copy of a head was edited, they are computed from this copy."""
        layer, scope = getattr(self, part), site / part
        shared = self._heads(layer(x, scope))
        copy = getattr(copies, part)
        return shared if copy is None else with_copies(shared, copy, layer, scope, self._heads)

    def _heads(self, x: Float[Array, "batch pos width"]) -> Float[Array, "batch pos head d_head"]:
        shape = (*x.shape[:-1], x.shape[-1] // self.d_head, self.d_head)
        if (spec := out_sharding_like(x)) is not None:  # heads that a mesh axis does not divide are gathered
            x = jax.sharding.reshard(x, P(*spec[:-1], _heads_axis(jax.typeof(x).sharding, shape[-2])))
        return x.reshape(shape)

    def _normed(
        self, norm: RMSNorm | None, x: Float[Array, "batch pos head d_head"], site: Site, head: str
    ) -> Float[Array, "batch pos head d_head"]:
        """Normalize each head, or all heads as one vector. `head` is the name of the axis of heads."""
        if norm is None:
            return x
        if self.qk_norm == "head":
            return norm(x, site, head)
        return norm(x.reshape(*x.shape[:-2], -1), site).reshape(x.shape)

    def _out(self, z: Float[Array, "batch pos head d_head"], site: Site, x: Array) -> Float[Array, "batch pos d_model"]:
        out = self.o(z.reshape(*z.shape[:-2], -1), site / "o", out_sharding_like(x))
        if site.wants("result"):
            if site.edits("o") and not site.trace.survey:
                raise UserError(
                    "attn.result is the z of each head times the weight of attn.o, but an edit below attn.o changes "
                    "what attn.o computes: use attn.z and attn_out, or leave that edit out"
                )
            weight = self.o.weight[...].reshape(*z.shape[-2:], -1)
            result = jnp.einsum("bpnh,nhd->bpnd", z, weight, out_sharding=out_sharding_like(z))
            edited = site("result", result, "batch pos head d_model")
            out = self._sum_where_edited(edited, result, out) if site.edits("result") else out
        return out

    def _sum_where_edited(
        self,
        edited: Float[Array, "batch pos head d_model"],
        result: Float[Array, "batch pos head d_model"],
        out: Float[Array, "batch pos d_model"],
    ) -> Float[Array, "batch pos d_model"]:
        """The sum of the edited results of the heads, plus the bias. Tokens without a change keep the bits of `out`."""
        bias = getattr(self.o, "bias", None)
        bias = 0 if bias is None else jnp.expand_dims(upcast(bias[...]), (0, 1))
        total = (jnp.sum(upcast(edited), axis=2) + bias).astype(out.dtype)
        changed = jnp.any(edited != result, axis=(2, 3))[..., None]
        return value_with_gradient_of(jnp.where(changed, total, out), total)


def _heads_axis(sharding: NamedSharding, heads: int) -> str | tuple[str, ...] | None:
    """The mesh axis of the last axis of an array, if it divides the number of heads. None otherwise."""
    axis = sharding.spec[-1]
    names = (axis,) if isinstance(axis, str) else tuple(axis or ())
    return axis if heads % math.prod(sharding.mesh.shape[name] for name in names) == 0 else None


def _keys_for(q: Float[Array, "batch pos head d_head"], k: Float[Array, "batch key kv_head d_head"]) -> Array:
    """The keys (or values) that each device needs for its own queries, on a mesh with explicit axes.

    If there are fewer key heads than devices that share the query heads, keys are repeated: one for each query head.
    """
    of_q, of_k = out_sharding_like(q), out_sharding_like(k)
    if of_q is None or of_k is None or of_q[2] == of_k[2]:
        return k
    every = jnp.broadcast_to(k[:, :, :, None], (*k.shape[:3], q.shape[2] // k.shape[2], k.shape[3]))
    return jax.sharding.reshard(every.reshape(*k.shape[:2], q.shape[2], k.shape[3]), P(*of_k[:2], of_q[2], None))


def explicit_attention(
    q: Float[Array, "batch pos head d_head"],
    k: Float[Array, "batch key kv_head d_head"],
    v: Float[Array, "batch key kv_head d_head"],
    site: Site,
    context: LayerContext,
    softcap: float = 0.0,
) -> Float[Array, "batch pos head d_head"]:
    """Like `jax.nn.dot_product_attention`, but it names `attn_scores` and `pattern`, both `[batch, head, pos, key]`.

    The scores are float32 at least, and include the softcap and the bias. Masked scores are -0.7 times the largest
    float32 number, so a row in which all keys are masked gives a uniform pattern and not NaN. The operations and their
    order are those of JAX's XLA implementation, so on CPU reading the pattern changes no bit.

    `attn_scores` are named after masking, as in TransformerLens. An edit of scores or pattern cannot let a token attend
    to a key that is masked: the mask is applied again after each edit.
    """
    mask = context.mask
    if mask is None:
        mask = jnp.tril(jnp.ones((q.shape[1], k.shape[1]), bool))[None, None]
    batch, pos, heads, d_head = q.shape
    dtype = at_least_float32(q.dtype)
    grouped = (batch, pos, k.shape[2], heads // k.shape[2], d_head)

    def score(q):
        return jnp.einsum("bpkd,bskd->bkps", q, k, preferred_element_type=dtype)

    scores = jax.vmap(score, in_axes=3, out_axes=2)(q.reshape(grouped)).reshape(batch, heads, pos, -1)
    if softcap:
        cap = jnp.asarray(softcap, scores.dtype)
        scores = jnp.tanh(scores / cap) * cap
    if context.bias is not None:
        scores = scores + jnp.broadcast_to(context.bias, scores.shape).astype(scores.dtype)
    masked = jnp.asarray(-0.7 * jnp.finfo(jnp.float32).max, scores.dtype)
    scores = jnp.where(mask, scores, masked)
    scores = jnp.where(mask, site("attn_scores", scores, "batch head pos key"), masked)
    pattern = site("pattern", jax.nn.softmax(scores, axis=-1).astype(k.dtype), "batch head pos key")
    # Where a token can attend to nothing, its pattern is uniform and stays so.
    pattern = jnp.where(mask | ~jnp.any(mask, axis=-1, keepdims=True), pattern, jnp.zeros_like(pattern))

    def mix(pattern):
        return jnp.einsum("bkps,bskd->bpkd", pattern, v)

    pattern = pattern.reshape(batch, grouped[2], grouped[3], pos, -1)
    return jax.vmap(mix, in_axes=2, out_axes=3)(pattern).reshape(q.shape)
