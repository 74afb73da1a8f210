"""Dictionaries that training goes on from: what is given against what the configs ask for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations import Activation
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


def _activation(config: DictionaryConfig, fresh: Activation, given: Dictionary) -> Activation:
    learnt = jax.tree.leaves(given.activation)
    same = type(fresh) is type(given.activation)
    if same and [a.shape for a in learnt] != [a.shape for a in jax.tree.leaves(fresh)]:
        raise UserError(f"the {type(fresh).__name__} given for {config.address} does not have the config's parameters")
    activation = fresh.warm_start(given, config.address)
    if activation is None:
        kinds = type(given.activation).__name__, type(config.activation).__name__
        raise UserError(
            f"the dictionary given for {config.address} has the activation {kinds[0]}, the config asks for {kinds[1]}: "
            "give the config that it was trained with"
        )
    return activation
