"""Warm starts: training that continues from trained dictionaries."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations import Activation
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.dictionaries.training.config import SAEConfig


def check_count(configs: Sequence[SAEConfig], dictionaries: Sequence[Dictionary]) -> None:
    """Raise UserError unless there is one dictionary for each config."""
    if len(dictionaries) != len(configs):
        raise UserError(
            f"{len(dictionaries)} dictionaries are given and {len(configs)} configs: give one dictionary per config"
        )


def warm_start(config: SAEConfig, fresh: Dictionary, given: Dictionary) -> Dictionary:
    """The dictionary to start from when `config` continues the training of `given`.

    Weights, `centred` and the parameters of the activation are taken from `given`. The settings of the activation (k,
    bandwidth) are taken from the config. An exported BatchTopK is a JumpReLU with equal thresholds. If the config has
    BatchTopK, this threshold becomes the running threshold again.

    Args:
      config: the config of this dictionary.
      fresh: a new dictionary of this config.
      given: the trained dictionary.

    Raises:
      UserError: shapes differ, or the activation has another class.
    """
    names = ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip")
    shape = lambda one: {name: getattr(getattr(one, name), "shape", None) for name in names}
    wanted, found = shape(fresh), shape(given)
    if different := [name for name in names if wanted[name] != found[name]]:
        each = ", ".join(f"{name} {found[name]} and not {wanted[name]}" for name in different)
        raise UserError(
            f"the dictionary given for {config.address} has {each}: give a dictionary for this value, with "
            f"n_features={config.n_features} as in the config"
        )
    return dataclasses.replace(given, activation=_activation(config, fresh.activation, given))


def _activation(config: SAEConfig, fresh: Activation, given: Dictionary) -> Activation:
    learnt = jax.tree.leaves(given.activation)
    same = type(fresh) is type(given.activation)
    if same and [a.shape for a in learnt] != [a.shape for a in jax.tree.leaves(fresh)]:
        raise UserError(
            f"the {type(fresh).__name__} given for {config.address} does not have parameters of the config's shapes"
        )
    activation = fresh.warm_start(given, config.address)
    if activation is None:
        kinds = type(given.activation).__name__, type(config.activation).__name__
        raise UserError(
            f"the dictionary given for {config.address} has the activation {kinds[0]}, the config asks for {kinds[1]}: "
            "give the config that it was trained with"
        )
    return activation
