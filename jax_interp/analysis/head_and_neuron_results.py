"""The residual stream as the sum of what every head, every neuron and every bias added to it.

For 36,864 neurons, 1,000 positions and d_model 768 these are 10^10 numbers. With `onto=` each row becomes its component
along a direction. The rows themselves are then not computed, and there are 10^7 numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.analysis.addresses import reads_activations
from jax_interp.analysis.norm_at_scale import NormAtScale, norm_into, norms_after, stop_layer
from jax_interp.analysis.parts import Parts, Pos, concatenate, expand_to, select_positions, stack_layers
from jax_interp.analysis.residual import decompose_resid, embedding_rows, is_edited, stream
from jax_interp.analysis.weights import W_O, W_out, b_O, b_out, decoder, with_dense_mlps
from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.surgery import Activations, Model

Direction = Float[Array, "*batch_pos d_model"]


@reads_activations("embed", "pos_embed", "blocks.*.attn.z", "blocks.*.ln1_post.scale", "blocks.-1.resid_post")
def stack_head_results(
    model: Model,
    acts: Activations,
    layer: int | None = None,
    *,
    incl_remainder: bool = False,
    apply_ln: bool = False,
    mlp_input: bool = False,
    pos: Pos = None,
    onto: Direction | None = None,
) -> Parts:
    """What each head before `layer` added to the stream: `L0H0`, `L0H1`, ... A row is the head's `z` times its W_O.

    The bias b_O belongs to no head. If there is a norm after attention, rows go through it with the scale of the
    forward pass, so rows and biases still sum to `attn_out`.

    Args:
      model: a decoder, with or without surgery.
      acts: the activations `blocks.*.attn.z`; `blocks.*.ln1_post.scale` if there are such norms; for a remainder
        `blocks.*.resid_post` of the layer before (`embed` and `pos_embed` at layer 0, `resid_mid` with `mlp_input`).
      layer: heads of the layers before this layer; None: heads of all layers.
      incl_remainder: add a row `remainder`, the rest of the stream.
      apply_ln: apply the norm that reads the stream before `layer`, with the scale of the forward pass, to each row.
      mlp_input: use the stream that the MLP of `layer` reads. This adds the heads of `layer`.
      pos: the positions to use.
      onto: directions `[d_model]` or `[batch, *pos, d_model]`. Rows are then scalar products with these directions.

    Returns:
      Rows `[batch, *pos, d_model]`, or `[batch, *pos]` with `onto`.
    """
    place = _Place.of(model, acts, layer, mlp_input, apply_ln, pos, onto)
    return _finish(model, acts, place, _heads(model, acts, place), "remainder" if incl_remainder else None)


@reads_activations("embed", "pos_embed", "blocks.*.mlp.post", "blocks.*.ln2_post.scale", "blocks.-1.resid_post")
def stack_neuron_results(
    model: Model,
    acts: Activations,
    layer: int | None = None,
    *,
    incl_remainder: bool = False,
    apply_ln: bool = False,
    mlp_input: bool = False,
    pos: Pos = None,
    onto: Direction | None = None,
) -> Parts:
    """What each neuron before `layer` added to the stream: `L0N0`, ... A row is the activation times the row of W_out.

    There are d_mlp rows for each layer, so give `pos` or `onto` unless the model is very small.

    Args:
      model: a decoder, with or without surgery.
      acts: the activations `blocks.*.mlp.post`; `blocks.*.ln2_post.scale` if there are such norms; the stream for a
        remainder, as in `stack_head_results`.
      layer: neurons of the layers before this layer; None: neurons of all layers.
      incl_remainder: add a row `remainder`, the rest of the stream.
      apply_ln: apply the norm that reads the stream before `layer`, with the scale of the forward pass, to each row.
      mlp_input: use the stream that the MLP of `layer` reads.
      pos: the positions to use.
      onto: directions. Rows are then scalar products with these directions.

    Returns:
      Rows `[batch, *pos, d_model]`, or `[batch, *pos]` with `onto`.

    Raises:
      UserError: the model has mixtures of experts, or no MLPs.
    """
    place = _Place.of(model, acts, layer, mlp_input, apply_ln, pos, onto)
    return _finish(model, acts, place, _neurons(model, acts, place), "remainder" if incl_remainder else None)


@reads_activations(stack_head_results, stack_neuron_results, "blocks.*.mlp_out")
def get_full_resid_decomposition(
    model: Model,
    acts: Activations,
    layer: int | None = None,
    *,
    mlp_input: bool = False,
    expand_neurons: bool = True,
    apply_ln: bool = False,
    pos: Pos = None,
    onto: Direction | None = None,
) -> Parts:
    """Split the stream into heads, neurons (or MLPs), embeddings and biases. The rows sum to the stream.

    The row `bias` has everything that no head or neuron adds: output biases, and biases of norms after attention and
    MLP. If the model has edits, a last row `edits` has the rest of the stream: what edits have added to the stream, to
    the outputs of attention and MLP, or to the results of heads. With `apply_ln` the rows sum to the output of the norm
    minus its bias.

    Args:
      model: a decoder, with or without surgery.
      acts: what `stack_head_results`, `stack_neuron_results` and `decompose_resid` read; for an edited model also the
        stream, as in `decompose_resid`.
      layer: the layer whose input is decomposed; None: the stream before the unembedding.
      mlp_input: decompose the input of that layer's MLP instead.
      expand_neurons: True: each neuron is a row. False: each MLP is a row.
      apply_ln: apply the norm that reads the stream, with the scale of the forward pass, to each row.
      pos: the positions to use.
      onto: directions `[d_model]` or `[batch, *pos, d_model]`, after the norm if `apply_ln`. Rows are then scalar
        products with these directions.

    Returns:
      Rows `[batch, *pos, d_model]`, or `[batch, *pos]` with `onto`.

    Raises:
      UserError: `mlp_input` in a parallel block; neurons of a mixture of experts.
    """
    place = _Place.of(model, acts, layer, mlp_input, apply_ln, pos, onto)
    config = decoder(model).config
    if mlp_input and config.parallel != "no":
        raise UserError("the MLP of a parallel block reads what attention reads: leave mlp_input out")
    n, direction = place.layer, place.direction
    parts = [_heads(model, acts, place)] if place.n_attn else []
    if config.d_mlp and n:
        parts += [
            _neurons(model, acts, place)
            if expand_neurons
            else decompose_resid(model, acts, n, mode="mlp", incl_embeds=False, pos=pos, onto=direction)
        ]
    parts += [embedding_rows(model, acts, pos, direction)]
    bias = _biases(model, acts, place.n_attn, n if expand_neurons and config.d_mlp else 0, pos)
    row = bias if direction is None else jnp.sum(bias * expand_to(direction, bias.ndim), axis=-1)
    whole = concatenate(*parts, Parts(row[None], ("bias",)))
    return _finish(model, acts, place, whole, "edits" if is_edited(model) else None)


def accumulated_bias(
    model: Model, layer: int | None = None, *, mlp_input: bool = False, include_mlp_biases: bool = True
) -> Float[Array, "d_model"]:
    """The sum of the output biases b_O and b_out before `layer`.

    Args:
      model: a decoder, with or without surgery.
      layer: biases of the layers before this layer; None: biases of all layers.
      mlp_input: add b_O of `layer` itself.
      include_mlp_biases: whether b_out is in the sum.

    Raises:
      UserError: there is a norm between the biases and the stream. What the biases add then depends on the position;
        the row `bias` of `get_full_resid_decomposition` has it.
    """
    config = decoder(model).config
    if config.norm_places != "before":
        raise UserError("norms stand between this model's biases and its stream: what they add depends on the position")
    n = stop_layer(model, layer, mlp_input)
    total = jnp.sum(upcast(b_O(model)[: n + mlp_input]), axis=0)
    if not config.d_mlp or config.n_experts or not include_mlp_biases:
        return total
    return total + jnp.sum(upcast(b_out(model)[:n]), axis=0)


@dataclasses.dataclass(frozen=True)
class _Place:
    """The place whose stream is decomposed: before `layer` or its MLP, at `pos`, through `norm`, along `direction`."""

    layer: int
    mlp_input: bool
    pos: Pos
    norm: NormAtScale | None
    """The norm that is applied to rows; None: no norm."""
    direction: Direction | None
    """The direction in the stream itself, before `norm`."""

    @classmethod
    def of(
        cls, model: Model, acts: Activations, layer: int | None, mlp_input: bool, apply_ln: bool, pos: Pos,
        onto: Direction | None,
    ) -> _Place:  # fmt: skip
        n = stop_layer(model, layer, mlp_input)
        norm = norm_into(model, acts, n, mlp_input=mlp_input, pos=pos) if apply_ln else None
        if onto is not None:
            onto = upcast(onto) if norm is None else norm.transpose(onto)
        return cls(n, mlp_input, pos, norm, onto)

    @property
    def n_attn(self) -> int:
        """The number of layers whose attention comes before this place."""
        return self.layer + self.mlp_input


def _heads(model: Model, acts: Activations, place: _Place) -> Parts:
    n, config = place.n_attn, decoder(model).config
    if not n:
        return _no_parts(model, acts, place)
    z = select_positions(stack_layers(acts, "attn.z", n), place.pos, 2)
    norms = norms_after(model, acts, "ln1_post", n, place.pos)
    labels = tuple(f"L{i}H{h}" for i in range(n) for h in range(config.n_heads))
    return Parts(_rows(z, upcast(W_O(model)[:n]), norms, place.direction), labels)


def _neurons(model: Model, acts: Activations, place: _Place) -> Parts:
    n, config = place.layer, with_dense_mlps(model, "a decomposition into neurons").config
    if not n:
        return _no_parts(model, acts, place)
    post = select_positions(stack_layers(acts, "mlp.post", n), place.pos, 2)
    norms = norms_after(model, acts, "ln2_post", n, place.pos)
    labels = tuple(f"L{i}N{j}" for i in range(n) for j in range(config.d_mlp))
    return Parts(_rows(post[..., None], upcast(W_out(model)[:n])[:, :, None], norms, place.direction), labels)


def _rows(
    values: Float[Array, "layer *batch_pos unit width"],
    weight: Float[Array, "layer unit width d_model"],
    norms: NormAtScale | None,
    direction: Direction | None,
) -> Array:
    """What each unit adds, after the norm of its layer: `[layer·unit, *batch_pos, d_model]`, or along `direction`."""

    def of_layer(x: Array, w: Array, norm: NormAtScale | None) -> Array:
        if direction is None:
            rows = jnp.einsum("...uk,ukd->u...d", x, w)
            return rows if norm is None else norm.linear(rows)
        d = expand_to(direction if norm is None else norm.transpose(direction), x.ndim - 1)
        return jnp.einsum("...uk,...uk->u...", x, jnp.einsum("ukd,...d->...uk", w, d))

    rows = jax.vmap(of_layer)(values, weight, norms)
    return rows.reshape(-1, *rows.shape[2:])


def _biases(model: Model, acts: Activations, n_attn: int, n_mlp: int, pos: Pos) -> Float[Array, "*batch_pos d_model"]:
    """What output biases, and the biases of norms after attention and MLP, add to the stream."""
    shape = select_positions(acts["embed"], pos, 1).shape
    total = jnp.zeros(shape, upcast(acts["embed"]).dtype)
    sources: tuple[tuple[str, int, Callable[[Model], Array]], ...] = (
        ("ln1_post", n_attn, b_O),
        ("ln2_post", n_mlp, b_out),
    )
    for name, n, biases in sources:
        if not n:
            continue
        bias, norms = upcast(biases(model)[:n]), norms_after(model, acts, name, n, pos)
        if norms is None:
            total = total + expand_to(jnp.sum(bias, axis=0), total.ndim)
        else:
            spread = jax.vmap(lambda b: jnp.broadcast_to(expand_to(b, len(shape)), shape))(bias)
            total = total + jnp.sum(jax.vmap(lambda norm, b: norm(b))(norms, spread), axis=0)
    return total


def _finish(model: Model, acts: Activations, place: _Place, parts: Parts, rest_label: str | None) -> Parts:
    """Add a row with the rest of the stream, if it has a label, and apply the norm, if asked for."""
    if rest_label is not None:
        whole = select_positions(stream(model, acts, place.layer, place.mlp_input), place.pos, 1)
        if place.direction is not None:
            whole = jnp.sum(whole * expand_to(place.direction, whole.ndim), axis=-1)
        rest = (whole - jnp.sum(parts.values, axis=0))[None]
        parts = concatenate(parts, Parts(rest, (rest_label,)))
    if place.norm is None or place.direction is not None:  # the norm was applied to the direction
        return parts
    return Parts(place.norm.linear(parts.values), parts.labels)


def _no_parts(model: Model, acts: Activations, place: _Place) -> Parts:
    like = embedding_rows(model, acts, place.pos, place.direction).values
    return Parts(jnp.zeros((0, *like.shape[1:]), like.dtype), ())
