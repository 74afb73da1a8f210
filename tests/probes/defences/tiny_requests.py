"""A small untrained model of the toy's language, and its examples."""

from __future__ import annotations

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.models.decoder import init
from jax_interp.probes.monitors.defences import DefenceData, request_data
from jax_interp.probes.monitors.defences.examples import Texts, texts_of
from jax_interp.toys.harmful_requests import RequestConfig

CONFIG = RequestConfig(verbs=4, dangerous=2, topics=8, sensitive=4, n_layers=3, d_model=16)


@cache
def model():
    """A decoder whose blocks change the residual stream visibly."""
    return jax.tree.map(lambda w: 4.0 * w if w.ndim > 2 else w, init(CONFIG.model, jax.random.key(0)))


@cache
def data() -> DefenceData:
    return request_data(CONFIG, each=3)


def texts(examples=None) -> Texts:
    return jax.tree.map(jnp.asarray, texts_of(data().train if examples is None else examples))


def with_other_padding(batch: Texts) -> Texts:
    """The same examples, with other ids at padding."""
    other = jnp.asarray(np.random.default_rng(0).integers(0, 9, batch.tokens.shape), jnp.int32)
    return dataclasses.replace(batch, tokens=jnp.where(batch.mask, batch.tokens, other))
