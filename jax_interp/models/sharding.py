"""Where a decoder's parameters live on a mesh, and how its code says so without naming a mesh.

Modules hold no shardings: `rules(config)` says where each parameter lives, over the axes `data` (copies), `fsdp` (every
weight in shards, gathered for use) and `tensor` (heads and neurons). Under a mesh with explicit axes a value's type
carries its sharding, and only lookups and contractions over a sharded axis must be told what to return: vectors
`rows_like(tokens)`, and `like(x)`, the type of the residual stream.
"""

from __future__ import annotations

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from jax_interp.models.config import Config
from jax_interp.training.sharding import Rules


def rules(config: Config) -> Rules:
    """The rules (`jax_interp.training.sharding`) of a decoder: each of them decides some parameter.

    `tensor` must divide d_mlp and both kinds of heads, `fsdp` d_model. A vocabulary is split where it is a multiple of
    64, as those made for it are, and whole otherwise. Embeddings are split by rows only: split by features, XLA's
    automatic partitioner gave out a batch's rows over `data` and `fsdp` in a wrong order (jax 0.10.2, unrolled blocks).
    """
    vocab = "tensor" if config.vocab_size % 64 == 0 else None
    found = [("pos_embed.weight", P(None, None))] if config.positions == "learned" else []
    found += [("embed.weight", P(vocab, None))]
    if not config.tied_embedding:
        found += [("unembed.weight", P("fsdp", vocab))]
        found += [("unembed.bias", P(vocab))] if config.unembed_bias else []
    found += [(f"attn.{name}.weight", P("fsdp", "tensor")) for name in "qkv"]
    found += [(f"attn.{name}.bias", P("tensor")) for name in "qkv" if config.qkv_bias]
    found += [("attn.o.weight", P("tensor", "fsdp"))]
    found += [("attn.o.bias", P(None))] if config.out_bias else []
    if config.qk_norm != "no":
        found += [("attn.?_norm.weight", P(None))]
    if config.d_mlp:
        found += _mlp_rules(config)
    if config.norm != "none" and config.norm_affine:
        found += [("ln*.weight", P(None))]
        found += [("ln*.bias", P(None))] if config.norm == "layernorm" else []
    return found


def _mlp_rules(config: Config) -> Rules:
    inner = ("gate", "up") if config.gated_mlp else ("up",)
    if config.n_experts:  # experts stay whole in number: a token's are found by sorting
        found = [(f"mlp.{name}.weight", P(None, "fsdp", "tensor")) for name in inner]
        return found + [("mlp.down.weight", P(None, "tensor", "fsdp")), ("mlp.router.weight", P("fsdp", None))]
    found = [(f"mlp.{name}.weight", P("fsdp", "tensor")) for name in inner]
    found += [("mlp.down.weight", P("tensor", "fsdp"))]
    if config.mlp_bias:
        found += [*((f"mlp.{name}.bias", P("tensor")) for name in inner), ("mlp.down.bias", P(None))]
    if config.mlp_norm and config.norm_affine:
        found += [("mlp.ln.weight", P("tensor")), ("mlp.ln.bias", P("tensor"))]
    return found


def like(x: Array) -> P | None:
    """The `out_sharding` that gives a result the sharding of `x`; None where types carry no sharding."""
    sharding = jax.typeof(x).sharding
    return sharding.spec if not sharding.mesh.empty and sharding.mesh.are_all_axes_explicit else None


def rows_like(tokens: Array) -> P | None:
    """The `out_sharding` of vectors looked up for `tokens`: theirs, and a whole feature axis."""
    spec = like(tokens)
    return None if spec is None else P(*spec, None)
