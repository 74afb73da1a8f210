"""Surgery on models that are not ours: the contract is all they keep."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pages
import pytest

from jax_interp.surgery import (
    Add,
    AddressError,
    Model,
    RegionError,
    Zero,
    at,
    edit,
    grad_at,
    read,
    replan,
    restore,
    sites,
)
from tests.surgery.foreign import PlainMLP, RecurrentNet

call = jax.jit(lambda f, *args: f(*args))


@pytest.fixture(scope="module")
def mlp():
    return PlainMLP.of([5, 16, 16, 3], jax.random.key(0))


@pytest.fixture(scope="module", params=["", "*", "1"])
def net(request):
    net = RecurrentNet.of(4, 16, jax.random.key(1))
    return replan(net, request.param) if request.param else net


def test_a_plain_mlp_is_read_and_edited(mlp):
    assert isinstance(mlp, Model)
    x = jax.random.normal(jax.random.key(2), (7, 5))
    assert list(sites(mlp)(x)) == ["hidden0.pre", "hidden0.post", "hidden1.pre", "hidden1.post", "out"]
    out, acts = call(read(mlp, "hidden1.post", "hidden0.pre"), x)
    chex.assert_trees_all_close(acts["hidden0.pre"], x @ mlp.weights[0] + mlp.biases[0][None], rtol=1e-5)
    ablated = call(edit(mlp, at("hidden1.post", Zero(), feature=slice(0, 8))), x)
    expected = acts["hidden1.post"][:, 8:] @ mlp.weights[2][8:] + mlp.biases[2][None]
    chex.assert_trees_all_close(ablated, expected, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal(call(edit(mlp, *restore(acts)), x), out)


def test_gradients_at_the_values_of_a_plain_mlp(mlp):
    x = jax.random.normal(jax.random.key(2), (7, 5))
    _, grads = grad_at(mlp, "hidden1.post")(lambda out: out[:, 1].sum())(x)
    chex.assert_trees_all_close(grads["hidden1.post"], jnp.broadcast_to(mlp.weights[2][:, 1], (7, 16)), rtol=1e-6)


def test_a_plain_mlp_has_no_layers_and_no_positions(mlp):
    x = jnp.ones((7, 5))
    with pytest.raises(AddressError, match="this model has no blocks"):
        read(mlp, "blocks.0.post")(x)
    with pytest.raises(RegionError, match=r"axes \(batch feature\): there is no 'pos'"):
        edit(mlp, at("hidden0.post", Zero(), pos=1))(x)
    with pytest.raises(AddressError, match=r"Did you mean hidden0\.post"):
        read(mlp, "hidden0.pots")(x)


def test_a_recurrent_stack_is_read_edited_and_differentiated(net):
    x = jax.random.normal(jax.random.key(3), (2, 6, 16))
    out, acts = call(read(net, "blocks.*.state", "blocks.2.input", "embed"), x)
    chex.assert_shape(acts["blocks.*.state"], (4, 2, 6, 16))
    chex.assert_trees_all_close(out, x + acts["blocks.*.state"].sum(0), rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal(call(edit(net, *restore(acts)), x), out)
    ablated = call(edit(net, at("blocks.state", Zero(), layer=3)), x)
    chex.assert_trees_all_close(ablated, out - acts["blocks.3.state"], rtol=1e-5, atol=1e-5)
    _, grads = grad_at(net, "blocks.3.state")(lambda out: (out**2).sum() / 2)(x)
    chex.assert_trees_all_close(grads["blocks.3.state"], out, rtol=1e-5, atol=1e-5)


def test_layouts_of_a_recurrent_stack_agree():
    net = RecurrentNet.of(4, 16, jax.random.key(1))
    x = jax.random.normal(jax.random.key(3), (2, 6, 16))
    surgeries = [
        read(edit(replan(net, u), at("blocks.1.state", Add(jnp.ones(16)))), "blocks.*.input") for u in ("*", (), [2])
    ]
    outputs = [call(s, x) for s in surgeries]
    chex.assert_trees_all_close(outputs[0], outputs[1], rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_close(outputs[0], outputs[2], rtol=1e-6, atol=1e-6)


def test_a_model_that_names_a_value_twice_is_told(mlp):
    class Twice:
        def __call__(self, x, taps=()):
            from jax_interp.surgery import Site

            site = Site.open(taps)
            return site.close(site("x", site("x", x, "batch feature"), "batch feature"))

    with pytest.raises(ValueError, match="names two values 'x'"):
        Twice()(np.ones((2, 3)))


def test_the_contract_of_the_documentation_runs_as_it_stands():
    names = pages.run("architecture.md")
    assert names["acts"]["blocks.*.mlp.pre"].shape == (3, 1, 3, 16)
    changed = np.any(names["ablated"] != names["logits"], axis=-1)
    np.testing.assert_array_equal(changed, [[False, False, True]])
