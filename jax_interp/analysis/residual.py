"""The residual stream at each layer, and the stream as the sum of what each layer added to it."""

from __future__ import annotations

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.analysis.addresses import reads_activations
from jax_interp.analysis.norm_at_scale import norm_into, stop_layer
from jax_interp.analysis.parts import Parts, Pos, expand_to, select_positions, stack_layers
from jax_interp.analysis.readout import final_norm
from jax_interp.analysis.weights import decoder
from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.surgery import Activations, Edit, Model
from jax_interp.surgery.taps import taps_of

Mode = Literal["all", "attn", "mlp"]


@reads_activations("blocks.*.resid_pre", "blocks.-1.resid_post", "blocks.*.resid_mid")
def accumulated_resid(
    model: Model,
    acts: Activations,
    layer: int | None = None,
    *,
    incl_mid: bool = False,
    mlp_input: bool = False,
    apply_ln: bool = False,
    pos: Pos = None,
) -> Parts:
    """The residual stream before each layer, and after the last: `0_pre`, `1_pre`, ..., `final_post`.

    Args:
      model: a decoder, with or without surgery.
      acts: the activations `blocks.*.resid_pre`, `blocks.-1.resid_post` for layer=None, and `blocks.*.resid_mid` for
        mid points.
      layer: the last layer whose input is a row; None: the inputs of all layers, and the output of the last layer.
      incl_mid: add the stream between attention and MLP of each layer, `0_mid`.
      mlp_input: add the mid point of `layer`.
      apply_ln: apply a norm to each row. For layer=None this is the final norm, where each row has its own scale (as
        lenses do). Otherwise it is the norm before `layer`, with the scale of this layer's input.
      pos: the positions to use.

    Returns:
      Rows `[batch, *pos, d_model]`.

    Raises:
      UserError: a mid point is asked for, but the model has none (parallel blocks, no MLPs).
    """
    config = decoder(model).config
    n = stop_layer(model, layer, mlp_input)
    if (incl_mid or mlp_input) and (config.parallel != "no" or not config.d_mlp):
        raise UserError(
            "the stream of this model has no point between attention and MLP ("
            + ("its blocks are parallel" if config.d_mlp else "it has no MLPs")
            + "): leave incl_mid and mlp_input out"
        )
    whole = n == config.n_layers
    before = stack_layers(acts, "resid_pre", n + (not whole))
    mids = n * incl_mid + mlp_input
    mid = stack_layers(acts, "resid_mid", max(n * incl_mid, (n + 1) * mlp_input)) if mids else None
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
    stack = select_positions(jnp.stack(rows), pos, 2)
    if apply_ln:
        norm = norm_into(model, acts, n, mlp_input=mlp_input, pos=pos) if not whole else None
        stack = final_norm(model, stack) if norm is None else norm.linear(stack)
    return Parts(stack, tuple(labels))


@reads_activations("embed", "pos_embed", "blocks.*.attn_out", "blocks.*.mlp_out", "blocks.-1.resid_post")
def decompose_resid(
    model: Model,
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

    With mode "all" and the embeddings, the rows sum to the stream. Biases are included in the rows of their layers. If
    the model has edits, the last row is `edits`: the rest of the stream, which edits of the stream itself have added.

    Args:
      model: a decoder, with or without surgery.
      acts: the activations `embed`, `pos_embed`, `blocks.*.attn_out`, `blocks.*.mlp_out`, each where the model has it;
        with `apply_ln` the norm's `scale`. For an edited model also the stream: `blocks.-1.resid_post`, or
        `blocks.<layer>.resid_pre` (`resid_mid` with `mlp_input`).
      layer: the layer whose input is decomposed; None: the stream before the unembedding.
      mlp_input: decompose the input of that layer's MLP instead of its attention.
      mode: "all", or "attn" or "mlp" for only the outputs of attention or MLPs.
      incl_embeds: whether the embeddings are rows.
      apply_ln: apply the norm that reads the stream, with the scale of the forward pass, to each row.
      pos: the positions to use.
      onto: directions `[d_model]` or `[batch, *pos, d_model]`. Rows are then scalar products with these directions.

    Returns:
      Rows `[batch, *pos, d_model]`, or `[batch, *pos]` with `onto`.

    Raises:
      UserError: an unknown mode, no rows at all, or `mlp_input` in a parallel block.
    """
    if mode not in get_args(Mode):
        raise UserError(f"mode={mode!r}: choose from {', '.join(get_args(Mode))}")
    config = decoder(model).config
    n = stop_layer(model, layer, mlp_input)
    if mlp_input and config.parallel != "no":
        raise UserError("the MLP of a parallel block reads what attention reads: leave mlp_input out")
    rows, labels = [], []
    if incl_embeds:
        for name in embeddings(model):
            rows.append(upcast(acts[name]))
            labels.append(name)
    attn = stack_layers(acts, "attn_out", n + mlp_input) if mode != "mlp" and n + mlp_input else ()
    mlp = stack_layers(acts, "mlp_out", n) if mode != "attn" and config.d_mlp and n else ()
    for i in range(n + 1):
        for name, outs in (("attn_out", attn), ("mlp_out", mlp)):
            if i < len(outs):
                rows.append(outs[i])
                labels.append(f"{i}_{name}")
    if not rows:
        raise UserError(f"nothing was added to the stream before layer {n} in mode={mode!r} without the embeddings")
    if mode == "all" and incl_embeds and is_edited(model):
        rows.append(stream(model, acts, n, mlp_input) - sum(rows))
        labels.append("edits")
    stack = select_positions(jnp.stack(rows), pos, 2)
    norm = norm_into(model, acts, n, mlp_input=mlp_input, pos=pos) if apply_ln else None
    if onto is None:
        return Parts(stack if norm is None else norm.linear(stack), tuple(labels))
    direction = upcast(onto) if norm is None else norm.transpose(onto)
    return Parts(jnp.sum(stack * expand_to(direction, stack.ndim), -1), tuple(labels))


def is_edited(model: Model) -> bool:
    """Whether the model has edits. Its stream may then be more than the sum of what its layers add."""
    return any(isinstance(tap, Edit) for tap in taps_of(model))


def stream(model: Model, acts: Activations, layer: int, mlp_input: bool = False) -> Float[Array, "batch pos d_model"]:
    """The stream of the run before `layer` (n_layers: before the unembedding), or before the MLP of `layer`.

    Raises:
      AddressError: it was not read. Without edits, the stream after the layer before will do.
    """
    if mlp_input:
        return upcast(acts[f"blocks.{layer}.resid_mid"])
    if layer == decoder(model).config.n_layers:
        return upcast(acts["blocks.-1.resid_post"])
    if is_edited(model) or f"blocks.{layer}.resid_pre" in acts:
        return upcast(acts[f"blocks.{layer}.resid_pre"])
    if layer:
        return upcast(acts[f"blocks.{layer - 1}.resid_post"])
    return sum((upcast(acts[name]) for name in embeddings(model)[1:]), start=upcast(acts["embed"]))


def embedding_rows(
    model: Model, acts: Activations, pos: Pos, onto: Float[Array, "*batch_pos d_model"] | None = None
) -> Parts:
    """The rows `embed` and `pos_embed` of `decompose_resid`."""
    names = embeddings(model)
    stack = select_positions(jnp.stack([upcast(acts[name]) for name in names]), pos, 2)
    return Parts(stack if onto is None else jnp.sum(stack * expand_to(onto, stack.ndim), -1), names)


def embeddings(model: Model) -> tuple[str, ...]:
    """The addresses of the embeddings, which the stream starts with."""
    positions = decoder(model).config.positions
    return ("embed", "pos_embed") if positions in ("learned", "sinusoidal") else ("embed",)
