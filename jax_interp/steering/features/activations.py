"""The highest activation of each latent on a text. Strengths of steering are relative to it."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jax_interp.core.errors import UserError
from jax_interp.core.processes import on_host
from jax_interp.data.harvest import Addresses, TokenBatch, values
from jax_interp.surgery import Dictionary, Model, canonical
from jax_interp.surgery.sparse_coder import SparseCoder, as_sparse_coder
from jax_interp.training.placement import automatic


def highest_activations(
    model: Model, address: Addresses, dictionary: Dictionary, batches: Iterable[TokenBatch]
) -> Float[np.ndarray, " feature"]:
    """The highest activation of each latent on a text. The text is read once, and one batch is in memory at a time.

    The first token of a text often has activations far above all others. Leave it out with `keep`, or it sets the
    scale.

    Args:
      model: any model that keeps the contract of `jax_interp.surgery`.
      address: the address that the dictionary reads, or the addresses that a crosscoder reads.
      dictionary: an object with `encode`.
      batches: pairs of tokens [seq, pos] and a mask `keep` [seq, pos]. Tokens where `keep` is False do not count.
        Padding stands at the end of a sequence.

    Returns:
      The highest activation of each latent, at least 0. It is 0 for a latent that is never on: steering relative to it
      does nothing.

    Raises:
      UserError: there is no kept token, or an activation is not finite.
    """
    addresses = canonical((address,) if isinstance(address, str) else tuple(address))
    found, coder = None, as_sparse_coder(dictionary)
    for tokens, keep in batches:
        tokens, keep = np.asarray(tokens), np.asarray(keep, bool)
        if tokens.shape != keep.shape:
            raise UserError(f"keep has shape {list(keep.shape)}, and its tokens {list(tokens.shape)}")
        if keep.any():
            here = on_host(_highest(model, coder, tokens, keep, addresses))
            found = here if found is None else np.maximum(found, here)
    if found is None:
        raise UserError("the batches have no kept token: give pairs (tokens, keep)")
    if not np.isfinite(found).all():
        raise UserError(
            f"{np.flatnonzero(~np.isfinite(found)).tolist()[:5]}: latents with activations that are not finite"
        )
    return found


@functools.partial(jax.jit, static_argnums=4)
@automatic
def _highest(
    model: Model, coder: SparseCoder, tokens: Array, keep: Bool[Array, "seq pos"], addresses: tuple[str, ...]
) -> Float[Array, " feature"]:
    x = jnp.concatenate(values(model, addresses, tokens), axis=-1)
    latents = coder.encode(x.reshape(*tokens.shape, -1)).astype(jnp.float32)
    return jnp.max(jnp.where(keep[..., None], latents, jnp.zeros((), jnp.float32)), axis=(0, 1), initial=0.0)
