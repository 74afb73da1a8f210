"""`q_input`, `k_input`, `v_input`: a copy of the residual stream for each head, which can be read and edited by itself.

A path from an earlier part of the model to the queries of one head is cut or patched in the copy that this head reads.
All other parts read the stream as it is. The copies are made only where they are read or edited. TransformerLens calls
them `hook_q_input`, `hook_k_input` and `hook_v_input`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from jax_interp.core.layer import out_sharding_like
from jax_interp.core.linear import Linear
from jax_interp.core.norms import Norm
from jax_interp.surgery import Site
from jax_interp.surgery.edits import value_with_gradient_of

if TYPE_CHECKING:
    from jax_interp.models.attention import Attention


class HeadCopies(NamedTuple):
    """The inputs of the heads after an edit.

    Attributes:
      normed: the copies after the norm `ln1`.
      changed: where a copy differs from the stream.
    """

    normed: Float[Array, "batch pos head d_model"]
    changed: Bool[Array, "batch pos head one"]


class HeadInputs(NamedTuple):
    """The copies for queries, keys and values; None where no edit acts."""

    q: HeadCopies | None = None
    k: HeadCopies | None = None
    v: HeadCopies | None = None

    def __bool__(self) -> bool:
        return any(copy is not None for copy in self)


NO_COPIES = HeadInputs()


def head_inputs(
    attn: Attention, stream: Float[Array, "batch pos d_model"], norm: Norm | None, site: Site
) -> HeadInputs:
    """Name the copies of the stream that are asked for, and apply the norm to those that are edited.

    There is one copy for each query head, and for each key/value head. Edits at the norm's values act on each copy.

    Args:
      attn: the attention that reads the copies.
      stream: what attention reads.
      norm: the norm between the stream and attention.
      site: the scope of the block.
    """
    inputs = NO_COPIES
    kinds = (("q", "head", attn.n_heads), ("k", "kv_head", attn.n_kv_heads), ("v", "kv_head", attn.n_kv_heads))
    for part, head, heads in kinds:
        if not site.wants(name := f"{part}_input"):
            continue
        every = jnp.broadcast_to(stream[:, :, None], (*stream.shape[:2], heads, stream.shape[-1]))
        copies = site(name, every, f"batch pos {head} d_model")
        if site.edits(name):
            normed = copies if norm is None else _normed(norm, copies, site / "ln1")
            changed = jnp.any(copies != every, axis=-1, keepdims=True)
            inputs = inputs._replace(**{part: HeadCopies(normed, changed)})
    return inputs


def with_copies(
    shared: Float[Array, "batch pos head d_head"],
    copies: HeadCopies,
    layer: Callable[..., Array],
    site: Site,
    split: Callable[[Array], Array],
) -> Float[Array, "batch pos head d_head"]:
    """The queries, keys or values of heads that read copies.

    Where a copy was not changed, the value keeps the bits of `shared`. Its gradient is always that of the copy.

    Args:
      shared: the projection of the stream, for all heads.
      copies: the inputs of the heads.
      layer: the projection. Any module that replaces a Linear is called with the copy of each head.
      site: the scope of the projection.
      split: the function that splits a last axis of all heads into two axes, head and d_head.
    """
    if type(layer) is Linear:
        weight, spec = split(layer.weight[...]), out_sharding_like(shared)
        x = copies.normed if spec is None else jax.sharding.reshard(copies.normed, P(*spec[:3], None))
        own = jnp.einsum("bphi,iho->bpho", x, weight, out_sharding=spec)
        if layer.bias is not None:
            own = own + jnp.expand_dims(split(layer.bias[...]), (0, 1))
    else:
        own = _by_module(shared, copies.normed, layer, site, split)
    return value_with_gradient_of(jnp.where(copies.changed, own, shared), own)


def _normed(norm: Norm, copies: Float[Array, "batch pos head d_model"], site: Site) -> Array:
    return jax.vmap(lambda x: norm(x, site.again()), in_axes=2, out_axes=2)(copies)


def _by_module(
    shared: Array, copies: Float[Array, "batch pos head d_model"], layer: Callable[..., Array], site: Site, split
) -> Float[Array, "batch pos head d_head"]:
    """The slice of each head from a whole call with its copy. One head at a time, to bound the memory."""
    spec = out_sharding_like(shared)

    def one(head_and_copy):
        head, x = head_and_copy
        out = split(layer(x, site.again()))
        out = out if spec is None else jax.sharding.reshard(out, P(*spec[:2], None, None))
        return jax.lax.dynamic_index_in_dim(out, head, axis=2, keepdims=False)

    own = jax.lax.map(one, (jnp.arange(copies.shape[2]), jnp.moveaxis(copies, 2, 0)))
    own = jnp.moveaxis(own, 0, 2)
    return own if spec is None else jax.sharding.reshard(own, spec)
