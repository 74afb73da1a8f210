"""The residual stream as the sum of every head's, every neuron's and every bias's part.

A full decomposition of a model of 36,864 neurons at 1,000 positions is 10^10 numbers. `onto=` gives each part's
component along a direction (one, or one for each position) without forming the part: 10^7.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.analysis.norm_at_scale import NormAtScale, norm_into, norms_after, up_to
from jax_interp.analysis.parts import Parts, Pos, at_pos, concatenate, layers, over
from jax_interp.analysis.residual import decompose_resid, embeddings
from jax_interp.analysis.weights import W_O, W_out, b_O, b_out, decoder, dense
from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.surgery import Activations


def stack_head_results(
    model: Any,
    acts: Activations,
    layer: int | None = None,
    *,
    incl_remainder: bool = False,
    apply_ln: bool = False,
    mlp_input: bool = False,
    pos: Pos = None,
    onto: Float[Array, "*batch_pos d_model"] | None = None,
) -> Parts:
    """What each head before `layer` added to the stream: `L0H0`, `L0H1`, ...; `z` of the head times its rows of W_O.

    The bias b_O is no head's. Where a norm stands after attention, rows go through it with the scale it had, so that
    they and the biases still sum to `attn_out`. `incl_remainder` adds the rest of the stream as `remainder`; with
    `mlp_input` the heads of `layer` itself belong to it too. `apply_ln`, `onto` as in `get_full_resid_decomposition`.

    Reads `blocks.*.attn.z`; `blocks.*.ln1_post.scale` where there are such norms; for a remainder `blocks.*.resid_post`
    of the layer before (`embed` and `pos_embed` at layer 0, `resid_mid` with `mlp_input`).
    """
    n = up_to(model, layer, mlp_input)
    norm = norm_into(model, acts, n, mlp_input=mlp_input, pos=pos) if apply_ln else None
    heads = _heads(model, acts, n + mlp_input, pos, _direction(norm, onto))
    return _finished(model, acts, heads, n, mlp_input, pos, norm, onto, incl_remainder)


def stack_neuron_results(
    model: Any,
    acts: Activations,
    layer: int | None = None,
    *,
    incl_remainder: bool = False,
    apply_ln: bool = False,
    mlp_input: bool = False,
    pos: Pos = None,
    onto: Float[Array, "*batch_pos d_model"] | None = None,
) -> Parts:
    """What each neuron before `layer` added to the stream: `L0N0`, ...; its activation times its row of W_out.

    d_mlp rows for each layer: give `pos` or `onto` for all but the smallest models. As `stack_head_results` otherwise,
    with `blocks.*.mlp.post` and `blocks.*.ln2_post.scale`. Raises `UserError` for mixtures of experts.
    """
    n = up_to(model, layer, mlp_input)
    norm = norm_into(model, acts, n, mlp_input=mlp_input, pos=pos) if apply_ln else None
    neurons = _neurons(model, acts, n, pos, _direction(norm, onto))
    return _finished(model, acts, neurons, n, mlp_input, pos, norm, onto, incl_remainder)


def get_full_resid_decomposition(
    model: Any,
    acts: Activations,
    layer: int | None = None,
    *,
    mlp_input: bool = False,
    expand_neurons: bool = True,
    apply_ln: bool = False,
    pos: Pos = None,
    onto: Float[Array, "*batch_pos d_model"] | None = None,
) -> Parts:
    """Every head, every neuron (or, with `expand_neurons=False`, every MLP), the embeddings and, last, the row `bias`
    of all that no head or neuron adds: output biases, and those of norms after attention and MLP.

    The rows sum to the stream that enters `layer` (None: the unembedding; with `mlp_input`, its MLP). With `apply_ln`
    they are taken through the norm that reads it, with the scale it had, and sum to its output less its bias. With
    `onto`, directions `[d_model]` or `[batch, pos, d_model]` (in the space after that norm, if any), the result is
    `[part, batch, pos]`: each row's scalar product with them.

    Reads what `stack_head_results`, `stack_neuron_results` and `decompose_resid` read.
    """
    n = up_to(model, layer, mlp_input)
    if mlp_input and decoder(model).config.parallel != "no":
        raise UserError("the MLP of a parallel block reads what attention reads: leave mlp_input out")
    norm = norm_into(model, acts, n, mlp_input=mlp_input, pos=pos) if apply_ln else None
    direction = _direction(norm, onto)
    parts = [_heads(model, acts, n + mlp_input, pos, direction)] if n + mlp_input else []
    if decoder(model).config.d_mlp and n:
        parts += [
            _neurons(model, acts, n, pos, direction)
            if expand_neurons
            else decompose_resid(model, acts, n, mode="mlp", incl_embeds=False, pos=pos, onto=direction)
        ]
    parts += [decompose_resid(model, acts, 0, pos=pos, onto=direction)]
    neurons = expand_neurons and decoder(model).config.d_mlp
    bias = _biases(model, acts, n + mlp_input, n if neurons else 0, pos)
    row = bias if direction is None else jnp.sum(bias * over(direction, bias.ndim), axis=-1)
    whole = concatenate(*parts, Parts(row[None], ("bias",)))
    return whole if norm is None or direction is not None else Parts(norm.linear(whole.values), whole.labels)


def accumulated_bias(
    model: Any, layer: int | None = None, *, mlp_input: bool = False, include_mlp_biases: bool = True
) -> Float[Array, "d_model"]:
    """The sum of the output biases b_O and b_out before `layer`. Raises `UserError` where a norm stands between them
    and the stream: what they add then depends on the position (the `bias` row of `get_full_resid_decomposition`)."""
    config = decoder(model).config
    if config.norm_places != "before":
        raise UserError("norms stand between this model's biases and its stream: what they add depends on the position")
    n = up_to(model, layer, mlp_input)
    total = jnp.sum(upcast(b_O(model)[: n + mlp_input]), axis=0)
    if not config.d_mlp or config.n_experts or not include_mlp_biases:
        return total
    return total + jnp.sum(upcast(b_out(model)[:n]), axis=0)


def _heads(model: Any, acts: Activations, n: int, pos: Pos, direction: Array | None) -> Parts:
    config = decoder(model).config
    labels = tuple(f"L{i}H{h}" for i in range(n) for h in range(config.n_heads))
    if not n:
        return _none(model, acts, pos, direction)
    z = at_pos(layers(acts, "attn.z", n), pos, 2)
    rows = _rows(z, upcast(W_O(model)[:n]), norms_after(model, acts, "ln1_post", n, pos), direction)
    return Parts(rows, labels)


def _neurons(model: Any, acts: Activations, n: int, pos: Pos, direction: Array | None) -> Parts:
    config = dense(model, "a decomposition into neurons").config
    labels = tuple(f"L{i}N{j}" for i in range(n) for j in range(config.d_mlp))
    if not n:
        return _none(model, acts, pos, direction)
    post = at_pos(layers(acts, "mlp.post", n), pos, 2)
    norm = norms_after(model, acts, "ln2_post", n, pos)
    return Parts(_rows(post[..., None], upcast(W_out(model)[:n])[:, :, None], norm, direction), labels)


def _rows(
    values: Float[Array, "layer *batch_pos unit width"],
    weight: Float[Array, "layer unit width d_model"],
    norms: NormAtScale | None,
    direction: Float[Array, "*batch_pos d_model"] | None,
) -> Array:
    """Each unit's part `[layer·unit, *batch_pos, d_model]`, through its layer's norm, or that along `direction`."""

    def of_layer(x: Array, w: Array, norm: NormAtScale | None) -> Array:
        if direction is None:
            rows = jnp.einsum("...uk,ukd->u...d", x, w)
            return rows if norm is None else norm.linear(rows)
        d = over(direction if norm is None else norm.pull(direction), x.ndim - 1)
        return jnp.einsum("...uk,...uk->u...", x, jnp.einsum("ukd,...d->...uk", w, d))

    rows = jax.vmap(of_layer)(values, weight, norms)
    return rows.reshape(-1, *rows.shape[2:])


def _biases(model: Any, acts: Activations, n_attn: int, n_mlp: int, pos: Pos) -> Float[Array, "*batch_pos d_model"]:
    """What output biases, and those of norms after attention and MLP, add to the stream."""
    shape = at_pos(acts["embed"], pos, 1).shape
    total = jnp.zeros(shape, upcast(acts["embed"]).dtype)
    for name, n, biases in (("ln1_post", n_attn, b_O), ("ln2_post", n_mlp, b_out)):
        if not n:
            continue
        bias, norms = upcast(biases(model)[:n]), norms_after(model, acts, name, n, pos)
        if norms is None:
            total = total + over(jnp.sum(bias, axis=0), total.ndim)
        else:
            spread = jax.vmap(lambda b: jnp.broadcast_to(over(b, len(shape)), shape))(bias)
            total = total + jnp.sum(jax.vmap(lambda norm, b: norm(b))(norms, spread), axis=0)
    return total


def _finished(
    model: Any,
    acts: Activations,
    parts: Parts,
    n: int,
    mlp_input: bool,
    pos: Pos,
    norm: NormAtScale | None,
    onto: Array | None,
    incl_remainder: bool,
) -> Parts:
    """With the remainder and through the norm, where asked for."""
    direction = _direction(norm, onto)
    if incl_remainder:
        whole = at_pos(_resid(model, acts, n, mlp_input), pos, 1)
        if direction is not None:
            whole = jnp.sum(whole * over(direction, whole.ndim), axis=-1)
        rest = (whole - jnp.sum(parts.values, axis=0))[None]
        parts = concatenate(parts, Parts(rest, ("remainder",)))
    return parts if norm is None or direction is not None else Parts(norm.linear(parts.values), parts.labels)


def _resid(model: Any, acts: Activations, n: int, mlp_input: bool) -> Float[Array, "batch pos d_model"]:
    """The stream that enters layer `n`."""
    if mlp_input:
        return upcast(acts[f"blocks.{n}.resid_mid"])
    if n:
        return upcast(acts[f"blocks.{n - 1}.resid_post"])
    return sum((upcast(acts[name]) for name in embeddings(model)[1:]), start=upcast(acts["embed"]))


def _none(model: Any, acts: Activations, pos: Pos, direction: Array | None) -> Parts:
    like = decompose_resid(model, acts, 0, pos=pos, onto=direction).values
    return Parts(jnp.zeros((0, *like.shape[1:]), like.dtype), ())


def _direction(norm: NormAtScale | None, onto: Array | None) -> Array | None:
    """Directions in the stream itself, for those after `norm`."""
    return onto if onto is None else upcast(onto) if norm is None else norm.pull(onto)
