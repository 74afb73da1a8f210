"""Fixtures for the tests of models and of what reads them: small models, a jit, tokens. A conftest.py imports them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import CONFIGS, peaky

from jax_interp.models import Decoder


@pytest.fixture(scope="session", params=CONFIGS)
def model(request) -> Decoder:
    return peaky(CONFIGS[request.param])


@pytest.fixture(scope="session")
def call():
    """The only jit that a model needs."""
    return jax.jit(lambda model, *args, **kwargs: model(*args, **kwargs))


@pytest.fixture(scope="session")
def tokens():
    return jnp.asarray(np.random.default_rng(0).integers(0, 61, (2, 9)), jnp.int32)
