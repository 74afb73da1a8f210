"""Equality of pytrees as the resume law means it: every leaf, every bit."""

from __future__ import annotations

import jax
import numpy as np

from jax_interp.core.leaves import flatten, is_key


def bits(tree):
    return {name: np.asarray(jax.random.key_data(x) if is_key(x) else x) for name, x in flatten(tree).items()}


def assert_same_bits(a, b):
    a, b = bits(a), bits(b)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert a[name].tobytes() == b[name].tobytes(), name
