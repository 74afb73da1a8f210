"""Sharding rules for the parameters of a decoder.

Modules contain no shardings. `rules(config)` assigns each parameter to the mesh axes `replicate` and `data` (copies),
`fsdp` (weights are split, and gathered for use) and `tensor` (heads and neurons).
"""

from __future__ import annotations

import jax
from jax.sharding import PartitionSpec as P

from jax_interp.models.config import Config
from jax_interp.models.decoder import Decoder
from jax_interp.models.weight_rules import MATRICES, unembedding, vocabulary_axis
from jax_interp.training.sharding import Rules, used


def rules_for(model: object) -> Rules:
    """The rules of any model: those of the decoder inside it. All other leaves are replicated.

    Args:
      model: a decoder, a decoder with edits or LoRA, or any other model.
    """
    is_decoder = lambda node: isinstance(node, Decoder)
    found = next((node for node in jax.tree.leaves(model, is_leaf=is_decoder) if is_decoder(node)), None)
    return used(() if found is None else rules(found.config), model)


def rules(config: Config) -> Rules:
    """The sharding rules of a decoder, for `jax_interp.training.sharding`. Each rule matches at least one parameter.

    The size of `tensor` must divide `d_mlp` and the widths of all queries and of all keys. The size of `fsdp` must
    divide `d_model`. Heads that `tensor` does not divide are gathered for use. The vocabulary is split if its size is a
    multiple of 64; otherwise it is not split.

    Example:
        mesh = make_mesh(data=2, fsdp=2, tensor=2)
        model = shard(model, rules(model.config), mesh)  # from jax_interp.training.sharding
    """
    # Embeddings are split by rows only. If they are split by features, XLA's automatic partitioner distributes the rows
    # of a batch over `data` and `fsdp` in a wrong order (jax 0.10.2, unrolled blocks).
    vocab = vocabulary_axis(config.vocab_size)
    table = [("pos_embed.weight", P(None, None))] if config.positions == "learned" else []
    table += [("embed.weight", P(vocab, None))]
    if not config.tied_embedding:
        table += unembedding(config.vocab_size)
        table += [("unembed.bias", P(vocab))] if config.unembed_bias else []
    table += [rule for rule in MATRICES if rule[0].startswith("attn.")]
    table += [(f"attn.{name}.bias", P("tensor")) for name in "qkv" if config.qkv_bias]
    table += [("attn.o.bias", P(None))] if config.out_bias else []
    if config.qk_norm != "no":
        table += [("attn.?_norm.weight", P(None))]
    if config.d_mlp:
        table += _mlp_rules(config)
    if config.norm != "none" and config.norm_affine:
        table += [("ln*.weight", P(None))]
        table += [("ln*.bias", P(None))] if config.norm == "layernorm" else []
    return table


def _mlp_rules(config: Config) -> Rules:
    inner = ("gate", "up") if config.gated_mlp else ("up",)
    names = [f"mlp.{name}.weight" for name in (*inner, "down", *(("router",) if config.n_experts else ()))]
    table = [rule for rule in MATRICES if rule[0] in names]
    if config.n_experts:  # the expert axis stays whole: tokens are sorted by expert
        return table
    if config.mlp_bias:
        table += [*((f"mlp.{name}.bias", P("tensor")) for name in inner), ("mlp.down.bias", P(None))]
    if config.mlp_norm and config.norm_affine:
        table += [("mlp.ln.weight", P("tensor")), ("mlp.ln.bias", P("tensor"))]
    return table
