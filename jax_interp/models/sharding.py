"""Where a decoder's parameters live on a mesh, and how its code says so without naming a mesh.

`RULES` are an ordered list (address pattern, spec), first match wins, over the axes `data` (copies), `fsdp` (shards of
every weight, gathered for use) and `tensor` (heads and neurons). Modules hold no shardings. Under a mesh with explicit
axes the type of every value carries its sharding, and only contractions over a sharded axis have to be told what to
return: `like(x)`, the type of the residual stream.
"""

from __future__ import annotations

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

RULES: tuple[tuple[str, P], ...] = (
    (r"^(embed|pos_embed)\.weight$", P(None, "fsdp")),
    (r"^unembed\.weight$", P("fsdp", "tensor")),
    (r"attn\.[qkv]\.weight$", P("fsdp", "tensor")),
    (r"attn\.[qkv]\.bias$", P("tensor")),
    (r"attn\.o\.weight$", P("tensor", "fsdp")),
    (r"mlp\.(gate|up)\.weight$", P("fsdp", "tensor")),
    (r"mlp\.(gate|up)\.bias$", P("tensor")),
    (r"mlp\.down\.weight$", P("tensor", "fsdp")),
    (r"(attn\.o|mlp\.down|ln1|ln2|ln_final)\.(weight|bias)$", P(None)),
)
"""For one layer; a `Stack`'s leaves carry a leading layer axis, which stays whole."""


def like(x: Array) -> P | None:
    """The `out_sharding` that gives a result the sharding of `x`; None where types carry no sharding."""
    sharding = jax.typeof(x).sharding
    return sharding.spec if _is_explicit(sharding.mesh) else None


def rows_like(tokens: Array) -> P | None:
    """The `out_sharding` of vectors looked up for `tokens`: theirs, and a whole feature axis."""
    spec = like(tokens)
    return None if spec is None else P(*spec, *[None] * (tokens.ndim - len(spec) + 1))


def _is_explicit(mesh) -> bool:
    return not mesh.empty and mesh.are_all_axes_explicit
