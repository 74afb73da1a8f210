"""Dictionaries that training goes on from: what is given against what the configs ask for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations import BatchTopK, Jump
from jax_interp.dictionaries.activations.topk import row_norms
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.training.config import DictionaryConfig


def check_count(configs: Sequence[DictionaryConfig], dictionaries: Sequence[Dictionary]) -> None:
    """UserError unless there is a dictionary to each config."""
    if len(dictionaries) != len(configs):
        raise UserError(f"{len(dictionaries)} dictionaries are given and {len(configs)} configs: give one to each")


def warm_start(config: DictionaryConfig, fresh: Dictionary, given: Dictionary) -> Dictionary:
    """`given` as `config` trains it, `fresh` being what the config makes of nothing: the weights and the activation's
    parameters are the given ones, its k, bandwidth and the like are the config's. Whether b_dec is subtracted from the
    input stays as it is.

    A BatchTopK is exported as a JumpReLU with one threshold: where the config asks for a BatchTopK that becomes its
    running threshold again. UserError where shapes differ, or the activation is of another kind.
    """
    names = ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip")
    shape = lambda one: {name: getattr(getattr(one, name), "shape", None) for name in names}
    wanted, found = shape(fresh), shape(given)
    if different := [name for name in names if wanted[name] != found[name]]:
        each = ", ".join(f"{name} {found[name]} and not {wanted[name]}" for name in different)
        raise UserError(
            f"the dictionary given for {config.address} has {each}: it must be of that value, and the config's "
            f"n_features={config.n_features} its own"
        )
    return dataclasses.replace(given, activation=_activation(config, fresh.activation, given))


def _activation(config: DictionaryConfig, fresh: Any, given: Dictionary) -> Any:
    if isinstance(fresh, BatchTopK) and isinstance(given.activation, Jump):
        return dataclasses.replace(fresh, threshold=_running_threshold(config, fresh, given))
    if type(fresh) is not type(given.activation):
        kinds = type(given.activation).__name__, type(config.activation).__name__
        raise UserError(
            f"the dictionary given for {config.address} has the activation {kinds[0]}, the config asks for {kinds[1]}: "
            "give the config that it was trained with"
        )
    learnt = jax.tree.leaves(given.activation)
    if [a.shape for a in learnt] != [a.shape for a in jax.tree.leaves(fresh)]:
        raise UserError(f"the {type(fresh).__name__} given for {config.address} does not have the config's parameters")
    return jax.tree.unflatten(jax.tree.structure(fresh), learnt)


def _running_threshold(config: DictionaryConfig, fresh: BatchTopK, given: Dictionary) -> jax.Array:
    """The threshold of the BatchTopK that was exported, negative where it had not seen anything yet."""
    exported = given.activation.threshold
    each = np.asarray(exported * row_norms(given.W_dec) if fresh.weighted else exported)
    if not np.allclose(each, each[0], rtol=1e-3):
        raise UserError(
            f"the dictionary given for {config.address} is a JumpReLU with thresholds from {each.min():.3g} to "
            f"{each.max():.3g}; the config asks for BatchTopK, which has one: ask for JumpReLU()"
        )
    least = jnp.asarray(each[0], exported.dtype)
    return jnp.where(least > 1e-30, least, -jnp.ones_like(least))
