"""Dead latents begin anew on inputs that the dictionary reconstructs badly (Bricken et al. 2023, "Neuron resampling").

Of the batch at hand one input is drawn for each dead latent, with probability ∝ ‖y - ŷ‖⁴ (the squared loss). Its
centred direction becomes the decoder row and, `encoder_scale` times as long as encoder columns of living latents are on
average, the encoder column; the bias becomes 0 and so do Adam's moments of exactly those entries.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from jax_interp.dictionaries.forms.decoder_norm import unit_rows
from jax_interp.dictionaries.forms.dictionary import Dictionary


def resample(
    dictionary: Dictionary,
    opt: Any,
    dead: Bool[Array, " feature"],
    x: Float[Array, "row d_in"],
    error: Float[Array, "row d_out"],
    key: Key[Array, ""],
    encoder_scale: float,
) -> tuple[Dictionary, Any]:
    """(dictionary, optimizer state) with latents that are `dead` begun anew. Shapes do not depend on how many are.
    Where another value is written than read the decoder row becomes the direction of the error at the drawn input."""
    losses = jnp.sum(error * error, axis=1)
    drawn = jax.random.categorical(key, 2 * jnp.log(losses + 1e-30), shape=dead.shape)
    inputs = x - dictionary.b_dec[None, :] if dictionary.centred else x
    direction = unit_rows(inputs[drawn])
    alive = ~dead
    norms = jnp.sqrt(jnp.sum(dictionary.W_enc**2, axis=0))
    length = jnp.sum(jnp.where(alive, norms, 0.0)) / jnp.maximum(jnp.sum(alive), 1).astype(norms.dtype)
    rows = direction if dictionary.centred else unit_rows(error[drawn])
    fresh = {
        "W_enc": (encoder_scale * length * direction).T,
        "b_enc": jnp.zeros_like(dictionary.b_enc),
        "W_dec": rows,
    }
    masks = {"W_enc": dead[None, :], "b_enc": dead, "W_dec": dead[:, None]}
    put = lambda tree, new: dataclasses.replace(
        tree,
        **{name: jnp.where(jnp.broadcast_to(masks[name], a.shape), a, getattr(tree, name)) for name, a in new.items()},
    )
    forget = lambda moments: put(moments, {name: jnp.zeros_like(getattr(moments, name)) for name in fresh})
    opt = jax.tree.map(
        lambda state: (
            state._replace(mu=forget(state.mu), nu=forget(state.nu))
            if isinstance(state, optax.ScaleByAdamState)
            else state
        ),
        opt,
        is_leaf=lambda state: isinstance(state, optax.ScaleByAdamState),
    )
    return put(dictionary, fresh), opt
