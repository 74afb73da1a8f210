"""New dictionaries, and learners that start with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.core import optimizers
from jax_interp.core.optimizers import unit_rows
from jax_interp.dictionaries.forms.dictionary import Dictionary, check_one_width, init_sae, init_transcoder
from jax_interp.dictionaries.training.config import Adam, DictionaryConfig, SAEConfig
from jax_interp.dictionaries.training.learner import Learner, adam

Trained = TypeVar("Trained")


def init_dictionary(
    config: DictionaryConfig, key: Key[Array, ""], widths: Sequence[int], mean: Float[Array, " d"]
) -> Dictionary:
    """A new dictionary of one code.

    Args:
      config: the config of the dictionary.
      key: the random key for the weights.
      widths: the widths of the values at `config.addresses`.
      mean: the mean of these (scaled) values, side by side.

    Raises:
      UserError: several values are written, and their widths differ.
    """
    n = len(config.targets)
    written = tuple(widths)[-n:]
    check_one_width(config.targets, written)
    if config.writes is None:
        return init_sae_of(config, key, mean, sites=n)
    activation = config.activation.init(config.n_features, mean.dtype)
    d_out = sum(written)
    mean_in, mean_out = mean[:-d_out], mean[-d_out:]
    made = init_transcoder(
        key, len(mean_in), d_out, config.n_features, activation, mean_in, mean_out, skip=config.skip, write_sites=n
    )
    if config.decoder == "free":
        return made
    rows = jax.random.normal(jax.random.fold_in(key, 1), made.W_dec.shape, mean.dtype)
    return dataclasses.replace(made, W_dec=unit_rows(rows))


def init_sae_of(
    config: DictionaryConfig | SAEConfig, key: Key[Array, ""], mean: Float[Array, " d"], sites: int = 1
) -> Dictionary:
    """A new SAE or crosscoder for `sites` values. `mean` is their mean, side by side."""
    d, m, unit = len(mean), config.n_features, config.decoder == "unit"
    activation = config.activation.init(m, mean.dtype)
    # Without a k, every positive pre-activation is on, and the reconstruction is m / 2d times x. A smaller encoder
    # corrects this. Otherwise the first thousands of steps are needed to unlearn it.
    dense = unit and config.activation.k is None
    return init_sae(
        key, d, m, activation, mean, row_norm=1.0 if unit else 0.1, centred=config.centred, sites=sites,
        encoder_scale=min(1.0, 2 * d / m) if dense else 1.0,
    )  # fmt: skip


def new_learner(
    dictionary: Trained, optimizer: Adam, steps: int, counters: tuple[int, ...], key: Key[Array, ""]
) -> Learner[Trained]:
    """The learner of `dictionary` before its first step. `counters` is the shape of `Learner.since_fired`."""
    opt = optimizers.init(adam(optimizer, steps), dictionary)
    since_fired = jnp.zeros(counters, jnp.int32)
    return Learner(dictionary, opt, since_fired, jnp.zeros((), jnp.int32), jax.random.fold_in(key, 2))
