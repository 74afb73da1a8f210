"""Dictionaries that read the whole output of a norm, as dictionaries of its normalized value.

A norm computes `normalized * weight + bias`. This package names `normalized`; the whole output has no address. Many
published transcoders read the whole output, because it is the input of the MLP (Gemma Scope 2, Qwen 3, circuit-tracer's
sets). The weight belongs to the model, so it is folded into the encoder when a model is at hand:

    saved = load_dictionary("gemma-scope-2-1b/transcoder/layer_5_width_16k_l0_small")
    saved = read_normalized(saved, model)
    saved.address                                            "blocks.5.ln2.normalized"
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.norms import Norm
from jax_interp.dictionaries.forms.cross_layer import CrossLayer, Source
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.storage import Saved
from jax_interp.surgery import iter_blocks
from jax_interp.surgery.address import Address
from jax_interp.surgery.contract import Model

Encoder = TypeVar("Encoder", Dictionary, Source)


def read_normalized(saved: Saved, model: Model) -> Saved:
    """The same dictionary, for the normalized values that a model names.

    With x = normalized * w + b, the encoder becomes `w W_enc`, and its bias `b_enc + b W_enc`. A skip changes in the
    same way, and its constant goes to `b_dec`.

    Args:
      saved: a dictionary with `normalized`. Its other parts stay as they are.
      model: the model whose norms the dictionary was trained behind. Its norms have their weights: after
        `fold_layernorm` they are in other matrices.

    Returns:
      The dictionary whose `address` is `saved.normalized`. Latents and outputs are the same.

    Raises:
      UserError: the dictionary does not read the output of a norm, the model lacks one of the norms, or a norm has no
        weight.
    """
    if saved.normalized is None:
        raise UserError(f"this dictionary reads {saved.address}, which is not the whole output of a norm")
    addresses = [saved.normalized] if isinstance(saved.normalized, str) else list(saved.normalized)
    norms = _norms(model, addresses)
    dictionary: Any = saved.dictionary
    if isinstance(dictionary, CrossLayer):
        pairs = zip(dictionary.sources, norms, strict=True)
        sources, shifts = zip(*(_behind(source, *norm) for source, norm in pairs), strict=True)
        folded: Any = CrossLayer(tuple(sources), dictionary.b_dec + jnp.stack(shifts))
    elif not isinstance(dictionary, Dictionary):
        raise UserError(f"the weight of a norm cannot be folded into a {type(dictionary).__name__}")
    else:
        if len(norms) > 1:  # a crosscoder: its values are side by side
            norms = [tuple(jnp.concatenate(part) for part in zip(*norms, strict=True))]
        folded, shift = _behind(dictionary, *norms[0])
        folded = dataclasses.replace(folded, b_dec=folded.b_dec + shift)
    return dataclasses.replace(saved, dictionary=folded, address=saved.normalized, normalized=None)


def _behind(encoder: Encoder, weight: Array, bias: Array) -> tuple[Encoder, Float[Array, " d_out"]]:
    """The encoder for the value before weight and bias, and what its skip adds to the bias of the output."""
    if isinstance(encoder, Dictionary) and encoder.centred:
        raise UserError("this dictionary subtracts b_dec from its input, so the weight of a norm cannot be folded in")
    W_enc, W_skip = encoder.W_enc, encoder.W_skip
    weight, bias = weight.astype(W_enc.dtype), bias.astype(W_enc.dtype)
    if weight.shape[0] != W_enc.shape[0]:
        raise UserError(f"the norm has {weight.shape[0]} features, and the dictionary reads {W_enc.shape[0]}")
    changed: Any = dataclasses.replace(
        encoder,
        W_enc=weight[:, None] * W_enc,
        b_enc=encoder.b_enc + bias @ W_enc,
        W_skip=None if W_skip is None else weight[:, None] * W_skip,
    )
    shift = jnp.zeros(encoder.W_dec.shape[-1], W_enc.dtype) if W_skip is None else bias @ W_skip
    return changed, shift


def _norms(model: Model, addresses: Iterable[str]) -> list[tuple[Array, Array]]:
    """(weight, bias) of each norm; a bias of zeros for a norm that has none."""
    blocks: dict[int, Any] = dict(iter_blocks(model))
    found = []
    for address in addresses:
        parsed = Address.parse(address)
        name = parsed.name.removesuffix(".normalized")
        norm = getattr(blocks.get(int(parsed.layers or -1)), name, None)
        if not isinstance(norm, Norm):
            raise UserError(f"this model has no norm blocks.{parsed.layers}.{name}")
        weight = norm.multiplier()
        if weight is None:
            raise UserError(
                f"blocks.{parsed.layers}.{name} has no weight: load the model without folding its norms, as the "
                "dictionary was trained"
            )
        bias = jnp.zeros_like(weight) if norm.bias is None else upcast(norm.bias[...])
        found.append((weight, bias))
    return found
