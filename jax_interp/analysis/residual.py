"""The residual stream as it grows, and as the sum of what was added to it."""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.analysis.norm_at_scale import norm_into, up_to
from jax_interp.analysis.parts import Parts, Pos, at_pos, layers, over
from jax_interp.analysis.readout import final_norm
from jax_interp.analysis.weights import decoder
from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.surgery import Activations

Mode = Literal["all", "attn", "mlp"]


def accumulated_resid(
    model: Any,
    acts: Activations,
    layer: int | None = None,
    *,
    incl_mid: bool = False,
    mlp_input: bool = False,
    apply_ln: bool = False,
    pos: Pos = None,
) -> Parts:
    """The stream before each layer up to `layer`, and (layer=None) after the last: `0_pre`, `1_pre`, ..., `final_post`.

    `incl_mid` adds the stream between attention and MLP, `0_mid`; `mlp_input` that of `layer`. With `apply_ln` each row
    goes through the final norm with its own scale where layer is None (what a lens reads), and through the norm before
    `layer` with that layer's scale otherwise.

    Reads `blocks.*.resid_pre`, `blocks.-1.resid_post` (layer=None) and `blocks.*.resid_mid` (mid points). Parallel
    blocks and those without an MLP have no mid point: `UserError`.
    """
    config = decoder(model).config
    n = up_to(model, layer, mlp_input)
    if (incl_mid or mlp_input) and (config.parallel != "no" or not config.d_mlp):
        raise UserError(
            "the stream of this model has no point between attention and MLP ("
            + ("its blocks are parallel" if config.d_mlp else "it has no MLPs")
            + "): leave incl_mid and mlp_input out"
        )
    whole = n == config.n_layers
    before = layers(acts, "resid_pre", n + (not whole))
    mids = n * incl_mid + mlp_input
    mid = layers(acts, "resid_mid", max(n * incl_mid, (n + 1) * mlp_input)) if mids else None
    rows, labels = [], []
    for i in range(n + 1):
        if i == config.n_layers:
            rows.append(upcast(acts["blocks.-1.resid_post"]))
            labels.append("final_post")
            continue
        rows.append(before[i])
        labels.append(f"{i}_pre")
        if mid is not None and ((incl_mid and i < n) or (mlp_input and i == n)):
            rows.append(mid[i])
            labels.append(f"{i}_mid")
    stack = at_pos(jnp.stack(rows), pos, 2)
    if apply_ln:
        norm = norm_into(model, acts, n, mlp_input=mlp_input, pos=pos) if not whole else None
        stack = final_norm(model, stack) if norm is None else norm.linear(stack)
    return Parts(stack, tuple(labels))


def decompose_resid(
    model: Any,
    acts: Activations,
    layer: int | None = None,
    *,
    mlp_input: bool = False,
    mode: Mode = "all",
    incl_embeds: bool = True,
    apply_ln: bool = False,
    pos: Pos = None,
    onto: Float[Array, "*batch_pos d_model"] | None = None,
) -> Parts:
    """What was added to the stream before `layer`: `embed`, `pos_embed`, `0_attn_out`, `0_mlp_out`, `1_attn_out`, ...

    With mode "all" and the embeddings the rows sum to the stream that enters `layer` (None: the unembedding), to its
    MLP with `mlp_input`. Biases are in the rows of the components that have them. `apply_ln` and `onto` as in
    `get_full_resid_decomposition`.

    Reads `embed`, `pos_embed`, `blocks.*.attn_out`, `blocks.*.mlp_out`, each where the model has it, and with
    `apply_ln` the norm's `scale`.
    """
    if mode not in get_args(Mode):
        raise UserError(f"mode={mode!r}: choose from {', '.join(get_args(Mode))}")
    config = decoder(model).config
    n = up_to(model, layer, mlp_input)
    if mlp_input and config.parallel != "no":
        raise UserError("the MLP of a parallel block reads what attention reads: leave mlp_input out")
    rows, labels = [], []
    if incl_embeds:
        for name in embeddings(model):
            rows.append(upcast(acts[name]))
            labels.append(name)
    attn = layers(acts, "attn_out", n + mlp_input) if mode != "mlp" and n + mlp_input else ()
    mlp = layers(acts, "mlp_out", n) if mode != "attn" and config.d_mlp and n else ()
    for i in range(n + 1):
        for name, outs in (("attn_out", attn), ("mlp_out", mlp)):
            if i < len(outs):
                rows.append(outs[i])
                labels.append(f"{i}_{name}")
    if not rows:
        raise UserError(f"nothing was added to the stream before layer {n} in mode={mode!r} without the embeddings")
    stack = at_pos(jnp.stack(rows), pos, 2)
    norm = norm_into(model, acts, n, mlp_input=mlp_input, pos=pos) if apply_ln else None
    if onto is None:
        return Parts(stack if norm is None else norm.linear(stack), tuple(labels))
    direction = upcast(onto) if norm is None else norm.pull(onto)
    return Parts(jnp.sum(stack * over(direction, stack.ndim), -1), tuple(labels))


def embeddings(model: Any) -> tuple[str, ...]:
    """The names of what the stream starts with."""
    positions = decoder(model).config.positions
    return ("embed", "pos_embed") if positions in ("learned", "sinusoidal") else ("embed",)
