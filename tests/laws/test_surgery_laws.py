"""Laws of surgery, searched by hypothesis: over addresses, regions, vectors and tokens, in three layouts at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jax_interp.models.config import Config
from jax_interp.models.decoder import init
from jax_interp.surgery import Add, Replace, Scale, at, edit, grad_at, read, replan, restore, sites
from tests.surgery.foreign import RecurrentNet

DEPTH = 3
CONFIG = Config(n_layers=DEPTH, d_model=32, n_heads=2, n_kv_heads=1, d_mlp=48, vocab_size=40, n_ctx=16)
MODEL = jax.tree.map(lambda w: 6.0 * w if w.ndim > 2 else w, init(CONFIG, jax.random.key(0)))
LAYOUTS = {"scanned": MODEL, "unrolled": replan(MODEL, "*"), "mixed": replan(MODEL, 1)}
SHAPE = (2, 7)
EVERYTHING = list(sites(MODEL)(jnp.zeros(SHAPE, jnp.int32)))
# An edit of these makes a copy of the stream for each head. XLA then fuses the projection in another way, which can
# change the last bits of the output.
COPIES = [a for a in EVERYTHING if a.endswith(("q_input", "k_input", "v_input"))]
KINDS = sites(MODEL)(jnp.zeros(SHAPE, jnp.int32))
# values that an edit can scale or shift without making the rest of the model overflow
STREAM = [a for a in EVERYTHING if a.endswith(("resid_pre", "resid_mid", "attn_out", "mlp_out", "mlp.post", "attn.z"))]

call = jax.jit(lambda f, *args: f(*args))
laws = settings(max_examples=6, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))
tokens = st.integers(0, 2**32 - 1).map(lambda seed: jax.random.randint(jax.random.key(seed), SHAPE, 0, 40))
layouts = st.sampled_from(list(LAYOUTS))
some = st.lists(st.sampled_from([a for a in EVERYTHING if a not in COPIES]), min_size=1, max_size=4, unique=True)


regions = st.sampled_from([{}, {"pos": 3}, {"pos": [0, -1]}, {"pos": slice(2, 5)}])


@laws
@given(tokens=tokens, layout=layouts)
def test_reading_everything_leaves_the_output_bitwise_equal(tokens, layout):
    model = LAYOUTS[layout]
    np.testing.assert_array_equal(call(read(model, EVERYTHING), tokens)[0], call(model, tokens))


@laws
@given(tokens=tokens, layout=layouts, addresses=some, region=regions)
def test_identity_edits_are_bitwise_neutral(tokens, layout, addresses, region):
    model = LAYOUTS[layout]
    edits = [at(a, Scale(1.0), **region) for a in addresses]
    np.testing.assert_array_equal(call(edit(model, edits), tokens), call(model, tokens))


@laws
@given(tokens=tokens, layout=layouts, address=st.sampled_from(COPIES), region=regions)
def test_identity_edits_of_the_inputs_of_heads_are_neutral(tokens, layout, address, region):
    model = LAYOUTS[layout]
    edited = edit(model, at(address, Scale(1.0), **region))
    np.testing.assert_allclose(call(edited, tokens), call(model, tokens), rtol=1e-4, atol=1e-5)


@laws
@given(tokens=tokens, layout=layouts, addresses=some)
def test_patching_back_what_was_read_is_bitwise_neutral(tokens, layout, addresses):
    model = LAYOUTS[layout]
    logits, acts = call(read(model, addresses), tokens)
    np.testing.assert_array_equal(call(edit(model, restore(acts)), tokens), logits)


def commute(model, first, second, tokens):
    """The same up to the last bits: XLA fuses an edit's arithmetic with its neighbours, which the order changes."""
    one, other = call(edit(model, first, second), tokens), call(edit(model, second, first), tokens)
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@laws
@given(tokens=tokens, layout=layouts, data=st.data())
def test_disjoint_edits_commute(tokens, layout, data):
    model = LAYOUTS[layout]
    one, other = data.draw(st.lists(st.sampled_from(STREAM), min_size=2, max_size=2, unique=True))
    first, second = at(one, Scale(0.5)), at(other, Add(jnp.float32(0.25)))
    # at different values the order of the list changes nothing in the program, so not a bit may differ
    one, two = call(edit(model, first, second), tokens), call(edit(model, second, first), tokens)
    np.testing.assert_array_equal(one, two)


@laws
@given(tokens=tokens, layout=layouts, address=st.sampled_from(STREAM), split=st.integers(1, 5))
def test_edits_of_disjoint_regions_of_one_value_commute(tokens, layout, address, split):
    model = LAYOUTS[layout]
    first = at(address, Scale(0.5), pos=slice(None, split))
    second = at(address, Add(jnp.float32(0.25)), pos=slice(split, None))
    commute(model, first, second, tokens)


@laws
@given(tokens=tokens, layout=layouts, address=st.sampled_from(STREAM))
def test_nesting_edits_is_listing_them(tokens, layout, address):
    model = LAYOUTS[layout]
    first, second = at(address, Scale(0.5)), at(address, Add(jnp.float32(0.25)))
    np.testing.assert_array_equal(
        call(edit(edit(model, first), second), tokens), call(edit(model, first, second), tokens)
    )


@laws
@given(tokens=tokens, layout=layouts, address=st.sampled_from(STREAM), seed=st.integers(0, 1000))
def test_what_was_written_is_what_is_read(tokens, layout, address, seed):
    value = jax.random.normal(jax.random.key(seed), KINDS[address].shape)
    _, acts = call(read(edit(LAYOUTS[layout], at(address, Replace(value))), address), tokens)
    np.testing.assert_array_equal(acts[address], value)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("unroll", [(), "*", 1], ids=["scanned", "unrolled", "mixed"])
def test_grad_at_equals_finite_differences_in_float64(unroll, float64):
    """Central differences of step 1e-6 along a random direction, at every value of a recurrent model.

    tests/models/test_forward_law.py does this for the families of decoders.
    """
    net = replan(RecurrentNet.of(3, 8, jax.random.key(0)), unroll)
    net = jax.tree.map(lambda w: w.astype(jnp.float64), net)
    x = jax.random.normal(jax.random.key(1), (2, 5, 8), jnp.float64)
    names = list(sites(net)(x))
    assert len(names) == 2 + 2 * 3

    def metric(out):
        return jnp.sum(jnp.sin(out[:, -1]))

    value, grads = jax.jit(lambda net: grad_at(net, names)(metric)(x))(net)
    np.testing.assert_allclose(value, metric(net(x)), rtol=1e-12)
    for i, name in enumerate(names):
        direction = jax.random.normal(jax.random.key(i), grads[name].shape, jnp.float64)
        along = jax.jit(lambda s, name=name, d=direction: metric(edit(net, at(name, Add(d, s)))(x)))
        difference = (along(1e-6) - along(-1e-6)) / 2e-6
        assert grads[name].dtype == jnp.float64
        np.testing.assert_allclose(jnp.vdot(grads[name], direction), difference, rtol=1e-7, atol=1e-8, err_msg=name)
