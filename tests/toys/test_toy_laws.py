"""Laws that every registered toy keeps: surgery, compilation, seeds, and what it says of itself."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.surgery import Model, Replace, at, edit, read, replan, sites
from jax_interp.toys import TOYS, find_toy, known_features

TOY_NAMES = [kind.name for kind in TOYS]


@functools.cache
def of(name):
    """(toy, example, inputs)"""
    toy = find_toy(name)
    model = toy.example(jax.random.key(0))
    return toy, model, toy.sample(model, jax.random.key(1), 4)


@pytest.fixture(params=TOY_NAMES)
def made(request):
    return of(request.param)


def equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        data = jax.random.key_data if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else jnp.asarray
        np.testing.assert_array_equal(data(a), data(b))


def test_every_site_is_read_and_what_was_read_can_be_put_back(made, call):
    """Reading changes no bit of the output, nor does writing back what was read; writing zeros in the first does."""
    _, model, x = made
    assert isinstance(model, Model)
    found = sites(model)(x)
    addresses = list(found)
    assert len(addresses) > 0
    plain = call(model, x)
    output, acts = call(read(model, *addresses), x)
    np.testing.assert_array_equal(output, plain)
    for address, kind in found.items():
        assert (acts[address].shape, acts[address].dtype) == (kind.shape, kind.dtype)
        assert np.isfinite(np.asarray(acts[address], np.float32)).all()
    restored = edit(model, [at(address, Replace(acts[address])) for address in addresses])
    np.testing.assert_array_equal(call(restored, x), plain)


def test_compiled_or_not_and_one_row_or_many(made, call):
    """`jit` changes rounding only, and a row does not depend on the rows beside it."""
    _, model, x = made
    compiled = np.asarray(call(model, x))
    np.testing.assert_allclose(model(x), compiled, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(call(model, x[1:2])[0], compiled[1], rtol=1e-4, atol=1e-5)


def test_one_key_gives_the_same_bits_and_another_key_others(made):
    toy, model, x = made
    equal(toy.example(jax.random.key(0)), model)
    equal(toy.sample(model, jax.random.key(1), 4), x)
    many, others = (toy.sample(model, jax.random.key(seed), 200) for seed in (1, 2))
    assert many.shape == (200, *x.shape[1:])
    assert (np.asarray(many) != np.asarray(others)).any()


def test_a_smaller_model_is_the_same_function(made, call):
    toy, model, x = made
    np.testing.assert_allclose(call(toy.collapse(model), x), call(model, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["scanned", "first apart"])
def test_another_layout_of_the_blocks_is_the_same_toy(made, call, layout):
    """Inputs, outputs and the smaller model do not depend on it."""
    toy, model, x = made
    if not hasattr(model, "blocks"):
        return
    other = replan(model, () if layout == "scanned" else 0)
    np.testing.assert_array_equal(toy.sample(other, jax.random.key(1), 4), x)
    for one in (other, toy.collapse(other)):
        np.testing.assert_allclose(call(one, x), call(model, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TOY_NAMES)
def test_presets_are_named_and_others_refused_before_anything_is_trained(name, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_INTERP_CACHE", str(tmp_path / "cache"))
    toy = find_toy(name)
    with pytest.raises(UserError) as refused:
        toy.target("no such preset")
    assert all(preset in str(refused.value) for preset in toy.presets)
    assert not (tmp_path / "cache").exists()


def test_known_features_agree_with_the_inputs_and_their_parts_with_the_matrices():
    """A feature is an entry of the input; V U is the matrix whose rows are the features' directions."""
    found = {name: known_features(of(name)[1]) for name in TOY_NAMES}
    found = {name: known for name, known in found.items() if known is not None}
    assert {"tms", "resid-mlp"} <= set(found)
    for name, known in found.items():
        assert known.count == of(name)[2].shape[1]
        for V, U in known.parts.values():
            assert V.shape[1] == U.shape[0] == known.count
        for address, rows in known.directions.items():
            V, U = known.parts[address]
            np.testing.assert_allclose(V @ U, rows, atol=1e-5)


def test_names():
    assert len(set(TOY_NAMES)) == len(TOY_NAMES)
    with pytest.raises(UserError, match=r"there is no toy 'tsm'. Did you mean 'tms'\? There are .*resid-mlp"):
        find_toy("tsm")
