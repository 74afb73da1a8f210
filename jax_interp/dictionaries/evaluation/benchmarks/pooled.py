"""One vector of latents for each text: the mean over its tokens, or that of its last token. Padding never counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.data.harvest import Addresses, harvest
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.dictionaries.sparse_coder import EncoderDecoder
from jax_interp.surgery import Model

Pool = Literal["mean", "last"]
ENTRIES = 1 << 26
"""Latents of one batch of tokens that may be in memory: 256 MiB in float32."""
SHORTEST, FACTOR = 32, 4
"""Texts are padded to the lengths 32, 128, 512, ..., so that few programs are compiled."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where activations come from: a value of a model that reads texts."""

    model: Model
    address: Addresses
    tokenizer: Tokenizer
    context: int = 128
    """Texts are cut after this many tokens, BOS included."""

    def __post_init__(self) -> None:
        if self.context < 2:
            raise UserError(f"context={self.context} leaves no token beside BOS: at least 2")


def token_batches(
    place: Place, texts: Sequence[str], width: int
) -> Iterator[tuple[Int[np.ndarray, " text"], Int[np.ndarray, "text pos"], Bool[np.ndarray, "text pos"]]]:
    """Batches of texts of about one length: their numbers, tokens and mask.

    Texts begin with BOS if the tokenizer has one. The mask is False at BOS and at padding. The last batch of a length
    is filled up with rows without a token; their number is -1.

    Args:
      place: the tokenizer and the context.
      texts: the texts.
      width: the number of latents of all coders together, which decides how many texts are in a batch.

    Raises:
      UserError: a text has no token.
    """
    bos = place.tokenizer.bos_id
    encoded = [ids[: place.context] for ids in place.tokenizer.encode_batch(texts, bos=bos is not None)]
    first = int(bos is not None)
    for text, ids in zip(texts, encoded):
        if len(ids) <= first:
            raise UserError(f"the text {text[:40]!r} has no token")
    length_of = np.asarray([_padded(len(ids), place.context) for ids in encoded])
    pad = 0 if bos is None else bos
    for length in np.unique(length_of):
        numbers = np.flatnonzero(length_of == length)
        size = int(np.clip(ENTRIES // (length * max(width, 1)), 1, 64))
        for start in range(0, len(numbers), size):
            batch = np.full(size, -1)
            batch[: len(numbers[start : start + size])] = numbers[start : start + size]
            tokens, keep = np.full((size, length), pad, np.int32), np.zeros((size, length), bool)
            for row, number in enumerate(batch):
                if number >= 0:
                    ids = encoded[number]
                    tokens[row, : len(ids)] = ids
                    keep[row, first : len(ids)] = True
            yield batch, tokens, keep


def pooled_latents(
    place: Place, coders: Sequence[EncoderDecoder], texts: Sequence[str], pool: Pool = "mean"
) -> list[Float[np.ndarray, "text feature"]]:
    """The pooled latents of each text, for each coder. The model runs once for all coders.

    Args:
      place: the model, the value that the coders read, and the tokenizer.
      coders: the coders.
      texts: the texts.
      pool: "mean": the mean over the tokens of a text, without BOS. "last": the latents of its last token.

    Returns:
      For each coder an array [text, feature] in float32, on the host.

    Raises:
      UserError: a text has no token, a latent is not finite, or the pooling is not known.
    """
    if pool not in ("mean", "last"):
        raise UserError(f"pool={pool!r}: 'mean' or 'last'")
    widths = [latents(place, coder) for coder in coders]
    out = [np.zeros((len(texts), width), np.float32) for width in widths]
    for numbers, tokens, keep in token_batches(place, texts, sum(widths)):
        real = numbers >= 0
        parts = _pooled(place.model, place.address, tuple(coders), jnp.asarray(tokens), jnp.asarray(keep), pool)
        for array, part in zip(out, parts, strict=True):
            array[numbers[real]] = np.asarray(part)[real]
    for array in out:
        if not np.isfinite(array).all():
            raise UserError("latents are not finite: look for NaN in the model, the dictionary and the activations")
    return out


def latents(place: Place, coder: EncoderDecoder) -> int:
    """The number of latents of a coder. Only shapes are computed."""
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    encode = lambda model, coder, tokens: coder.encode(harvest(model, place.address, tokens))
    return jax.eval_shape(encode, place.model, coder, tokens).shape[-1]


@partial(jax.jit, static_argnames=("address", "pool"))
def _pooled(
    model: Any, address: Any, coders: tuple[Any, ...], tokens: Array, keep: Array, pool: Pool
) -> tuple[Array, ...]:
    if pool == "last":
        last = keep.shape[1] - 1 - jnp.argmax(keep[:, ::-1], axis=1)
        keep = keep & (jnp.arange(keep.shape[1])[None, :] == last[:, None])
    x = harvest(model, address, tokens)
    weight = keep.astype(jnp.float32)
    weight = weight / jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1.0)

    def of(coder: Any) -> Array:
        z = coder.encode(x).astype(jnp.float32).reshape(*tokens.shape, -1)
        # A latent at a position that does not count may be anything, NaN too.
        z = jnp.where(keep[:, :, None], z, jnp.zeros_like(z))
        return jnp.einsum("tp,tpf->tf", weight, z, precision=jax.lax.Precision.HIGHEST)

    return tuple(of(coder) for coder in coders)


def _padded(length: int, context: int) -> int:
    size = SHORTEST
    while size < length:
        size *= FACTOR
    return min(size, context)
