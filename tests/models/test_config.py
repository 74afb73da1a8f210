"""`Config`: sizes that follow from others follow them again after an override, also from files of earlier versions."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_interp.core.config_json import differences, from_json, to_json
from jax_interp.core.errors import UserError
from jax_interp.models import Config

SIZES = {"n_layers": 2, "d_model": 64, "n_heads": 4, "d_mlp": 172, "vocab_size": 512, "n_ctx": 128}
changes = st.fixed_dictionaries(
    {}, optional={"n_heads": st.sampled_from([1, 2, 4, 8, 16]), "d_model": st.sampled_from([64, 128, 256])}
)
given_sizes = st.fixed_dictionaries({}, optional={"n_kv_heads": st.sampled_from([1, 2]), "d_head": st.just(10)})
ROUTES = {
    "in memory": lambda config: config,
    "through JSON": lambda config: from_json(Config, json.loads(json.dumps(to_json(config)))),
    "copied": copy.deepcopy,
    "copied shallowly": copy.copy,
}


@pytest.mark.parametrize("route", ROUTES)
@given(given_sizes, changes, changes)
def test_an_override_gives_what_a_new_config_gives(route, given, first, second):
    """Sizes that were given stay. The others are derived again, after every override."""
    config = ROUTES[route](Config(**SIZES, **given))
    try:
        expected = Config(**(SIZES | given | first | second))
        once = dataclasses.replace(config, **first)
    except UserError:  # one key head for half a query head
        return
    if route == "through JSON" and once.n_kv_heads == once.n_heads and "n_kv_heads" in given:
        return  # JSON does not say whether an equal number was given
    again = dataclasses.replace(ROUTES[route](once), **second)
    assert again == expected
    assert hash(again) == hash(expected)
    assert to_json(again) == to_json(expected)


def test_a_size_that_is_given_in_an_override_is_kept():
    config = dataclasses.replace(Config(**SIZES), n_heads=8, n_kv_heads=4)
    assert (config.n_heads, config.n_kv_heads, config.d_head) == (8, 4, 8)
    assert dataclasses.replace(config, n_heads=16).n_kv_heads == 4


def test_the_json_of_earlier_versions_is_the_same():
    """They wrote the derived numbers, and a run that goes on compares its config with them."""
    config = Config(**SIZES)
    written = to_json(config)
    assert (written["n_kv_heads"], written["d_head"]) == (4, 16)
    assert type(written["n_kv_heads"]) is int
    assert from_json(Config, written) == config
    assert differences(written, to_json(from_json(Config, written))) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_head": -8}, "d_head"),
        ({"n_kv_heads": -1}, "n_kv_heads"),
        ({"norm_eps": float("nan")}, "norm_eps"),
        ({"norm_eps": float("inf")}, "norm_eps"),
        ({"n_heads": 3}, "give d_head"),
    ],
)
def test_values_that_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(Config(**SIZES), **changes)
