"""Dead latents begin anew on inputs that the dictionary reconstructs badly (Bricken et al. 2023, "Neuron resampling").

Of the batch at hand one input is drawn for each dead latent, with probability ∝ ‖y - ŷ‖⁴ (the squared loss). Its
centred direction becomes the decoder row and, `encoder_scale` times as long as encoder columns of living latents are on
average, the encoder column; where another value is written than read, the row is the direction of the error at that
input. Each written value's part of a row gets norm 1, or the mean norm of living rows there where norms are free. The
bias takes off the centre, a threshold or gate is as it was at first, and Adam's moments of exactly those entries are 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from jax_interp.core.unit_rows import unit_rows
from jax_interp.dictionaries.forms.dictionary import Dictionary, site_norms
from jax_interp.dictionaries.training.config import DictionaryConfig


def resample(
    config: DictionaryConfig,
    dictionary: Dictionary,
    opt: Any,
    dead: Bool[Array, " feature"],
    x: Float[Array, "row d_in"],
    error: Float[Array, "row d_out"],
    key: Key[Array, ""],
    encoder_scale: float,
) -> tuple[Dictionary, Any]:
    """(dictionary, optimizer state) with latents that are `dead` begun anew. Shapes do not depend on how many are."""
    losses = jnp.sum(error * error, axis=1)
    drawn = jax.random.categorical(key, 2 * jnp.log(losses + 1e-30), shape=dead.shape)
    centre = dictionary.b_dec if dictionary.centred else jnp.mean(x, axis=0)
    direction = unit_rows(x[drawn] - centre[None, :])
    # Those that live say how long; where none does, all.
    judges = jnp.where(jnp.all(dead), jnp.ones_like(dead), ~dead)
    mean = lambda norms: jnp.sum(jnp.where(judges, norms, 0.0)) / jnp.sum(judges).astype(norms.dtype)
    length = encoder_scale * mean(jnp.sqrt(jnp.sum(dictionary.W_enc**2, axis=0)))
    sites = dictionary.write_sites
    parts = (direction if config.writes is None else error[drawn]).reshape(len(dead), sites, -1)
    norms = jnp.ones((sites,), x.dtype) if config.decoder == "unit" else jax.vmap(mean)(site_norms(dictionary).T)
    W_enc = (length * direction).T
    offset = jnp.zeros_like(dictionary.b_enc) if dictionary.centred else -(centre @ W_enc)
    activation = config.activation.init(len(dead), x.dtype).shifted(-offset)
    W_dec = (unit_rows(parts) * norms[None, :, None]).reshape(dictionary.W_dec.shape)
    fresh = dataclasses.replace(dictionary, W_enc=W_enc, b_enc=offset, W_dec=W_dec, activation=activation)
    is_adam = lambda state: isinstance(state, optax.ScaleByAdamState)
    forget = lambda state: state._replace(mu=_put(dead, state.mu, None), nu=_put(dead, state.nu, None))
    opt = jax.tree.map(lambda state: forget(state) if is_adam(state) else state, opt, is_leaf=is_adam)
    return _put(dead, dictionary, fresh), opt


def _put(dead: Bool[Array, " feature"], tree: Any, fresh: Dictionary | None) -> Any:
    """`tree`, a dictionary or Adam's moments of one, with what belongs to `dead` latents from `fresh`; None: 0."""

    def chosen(old: Any, new: Any, names: Iterable[str]) -> Any:
        changed = {}
        for name in names:
            a = getattr(old, name)
            where = dead[None, :] if name == "W_enc" else dead.reshape(-1, *[1] * (a.ndim - 1))
            b = jnp.zeros_like(a) if new is None else getattr(new, name)
            changed[name] = jnp.where(jnp.broadcast_to(where, a.shape), b, a)
        return dataclasses.replace(old, **changed)

    activation = chosen(tree.activation, None if fresh is None else fresh.activation, tree.activation.per_feature)
    return dataclasses.replace(chosen(tree, fresh, ("W_enc", "b_enc", "W_dec")), activation=activation)
