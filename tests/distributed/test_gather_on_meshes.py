"""What probes read, and what is fitted on a stream, is on a mesh what it is on one device."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp import UserError
from jax_interp.core.leaves import flatten
from jax_interp.models.sharding import rules_for
from jax_interp.probes import (
    All,
    Last,
    StreamedLogistic,
    from_tokens,
    gather,
    gather_tokens,
    stream_logistic,
    stream_moments,
    stream_of,
)
from jax_interp.surgery import Add, at, edit
from jax_interp.training.sharding import make_mesh, shard
from tests.distributed.trainable import CONFIG
from tests.distributed.trainable import model as decoder

pytestmark = [
    pytest.mark.skipif(len(jax.devices()) < 8, reason="needs eight devices, simulated or real"),
    pytest.mark.usefixtures("hosts_are_apart"),
]
MESHES: dict[str, dict[str, int]] = {"2 × data": {"data": 2}, "2 × fsdp": {"fsdp": 2}, "2 × tensor": {"tensor": 2}}
SITES = ("blocks.0.resid_post", "blocks.1.attn.z")
RULES = (Last(), All())


def mesh_of(name: str, explicit: bool):
    sizes = MESHES[name]
    return make_mesh(
        data=sizes.get("data", 1), fsdp=sizes.get("fsdp", 1), tensor=sizes.get("tensor", 1), explicit=explicit
    )


@functools.cache
def setting():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, CONFIG.vocab_size, (21, 12))
    mask = np.arange(12)[None, :] < rng.integers(4, 13, 21)[:, None]
    data = from_tokens(tokens, mask, label=lambda t: t % 2 == 0)
    return edit(decoder(), at("blocks.0.attn_out", Add(jnp.ones(CONFIG.d_model)))), data


@functools.cache
def on_one_device():
    model, data = setting()
    vectors = gather(model, data, SITES, RULES, batch=8)
    sequences = gather_tokens(model, data, SITES[0], batch=8)
    moments = stream_moments(model, SITES, stream_of(data, batch=8, multiple=2))
    return vectors, sequences, moments


FAST = ("2 × fsdp", True)  # each case compiles its own programs
CASES = [(name, explicit) for name in MESHES for explicit in (True, False)]


@pytest.mark.parametrize(
    ("name", "explicit"), [pytest.param(*case, marks=() if case == FAST else pytest.mark.slow) for case in CASES]
)
def test_a_mesh_gives_what_one_device_gives(name, explicit):
    (model, data), mesh = setting(), mesh_of(name, explicit)
    vectors, sequences, moments = on_one_device()
    found = gather(model, data, SITES, RULES, batch=8, place=mesh)
    for site in vectors.sites:
        np.testing.assert_allclose(found.values[site], vectors.values[site], rtol=1e-4, atol=1e-4)
    placed = shard(model, rules_for(model), mesh)  # without `place`, the mesh is the one that the model is on
    of_tokens = gather_tokens(placed, data, SITES[0], batch=8)
    np.testing.assert_allclose(of_tokens.values[SITES[0]], sequences.values[SITES[0]], rtol=1e-4, atol=1e-4)
    streamed = stream_moments(model, SITES, stream_of(data, batch=8, multiple=2), place=mesh)
    one, other = (flatten(dict(m.of)) for m in (moments, streamed))
    for leaf, array in one.items():
        scale = max(float(np.abs(array).max()), 1e-3)
        np.testing.assert_allclose(other[leaf], array, atol=1e-4 * scale, err_msg=leaf)


@pytest.mark.slow
def test_logistic_regression_on_a_mesh():
    model, data = setting()
    kind, stream = StreamedLogistic(), stream_of(data, batch=8, multiple=2, epochs=2)
    one = stream_logistic(kind, model, SITES[0], stream)
    other = stream_logistic(kind, model, SITES[0], stream, place=make_mesh(data=2, tensor=2))
    weight = np.asarray(one.probes.direction())
    np.testing.assert_allclose(other.probes.direction(), weight, atol=1e-3 * np.abs(weight).max())


def test_a_batch_that_the_mesh_does_not_divide_is_refused():
    model, data = setting()
    with pytest.raises(UserError, match="batch=7 must be at least 1 and a multiple of 2"):
        gather(model, data, SITES, batch=7, place=make_mesh(data=2))
