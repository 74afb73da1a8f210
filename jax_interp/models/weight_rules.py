"""How the matrices of a decoder are stored on a mesh, by their last two axes."""

from __future__ import annotations

from jax.sharding import PartitionSpec as P

from jax_interp.training.sharding import Rules

READS, WRITES = P("fsdp", "tensor"), P("tensor", "fsdp")
"""Of a matrix that reads the residual stream, and of one that writes to it."""
MATRICES = (
    *((f"attn.{name}.weight", READS) for name in "qkv"),
    ("attn.o.weight", WRITES),
    *((f"mlp.{name}.weight", READS) for name in ("gate", "up")),
    ("mlp.down.weight", WRITES),
    ("mlp.router.weight", P("fsdp", None)),
)


def vocabulary_axis(size: int) -> str | None:
    """The mesh axis that a vocabulary is split over: `tensor` if its size is a multiple of 64."""
    return "tensor" if size % 64 == 0 else None


def unembedding(size: int) -> Rules:
    """The rule of an unembedding to `size` tokens."""
    return (("unembed.weight", P("fsdp", vocabulary_axis(size))),)
