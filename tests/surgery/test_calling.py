"""`call`: one compiled program for all values, and errors with names for what a compiled program cannot check."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp import call
from jax_interp.core.errors import UserError
from jax_interp.surgery import Add, AddressError, RegionError, Zero, at, calling, edit, read
from tests.surgery.conftest import CONFIG, DEPTH


@pytest.fixture
def counted(monkeypatch):
    """How many programs were compiled, and how many surgeries were traced for their indices."""
    plans = []
    plan = calling._plan
    monkeypatch.setattr(calling, "_plan", lambda *args: plans.append(None) or plan(*args))
    before = calling.compiled_call._cache_size()
    return lambda: (calling.compiled_call._cache_size() - before, len(plans))


def test_it_is_the_model_compiled_once_for_all_values(base, tokens, counted):
    outputs = []
    for i in range(4):
        surgery = edit(base, at("blocks.resid_post", Add(jnp.full(CONFIG.d_model, float(i))), layer=i, pos=[i, -1 - i]))
        logits, acts = call(read(surgery, "blocks.*.resid_post"), tokens)
        outputs.append(np.asarray(logits).tobytes())
        want = jax.jit(lambda f, t: f(t))(surgery, tokens)
        np.testing.assert_array_equal(logits, want)
        assert acts["blocks.*.resid_post"].shape[0] == DEPTH
    assert len(set(outputs)) == 4
    assert counted() == (1, 1)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            lambda i: at("blocks.resid_post", Zero(), layer=i),
            "6 is outside: layer= of .* takes -6 to 5",
        ),
        (lambda i: at("blocks.1.attn.z", Zero(), head=i), "6 is outside: head= of the value at .* takes -4 to 3"),
        (lambda i: at("blocks.1.resid_post", Zero(), pos=[2 * i, 0]), "12 is outside: pos= of .* takes -12 to 11"),
        (lambda i: at("blocks.1.resid_post", Zero(), pos=slice(2 * i, 2 * i + 1)), "12:13 is outside: pos= of"),
        (lambda i: at("embed", Zero(), feature=10 * i + 4), "64 is outside: feature= of .* takes -64 to 63"),
    ],
)
def test_an_index_outside_is_an_error_before_and_after_the_first_call(model, tokens, counted, wrong, says):
    calling._plans.clear()
    with pytest.raises(RegionError, match=says):
        call(edit(model, wrong(6)), tokens)
    for _ in range(2):
        assert jnp.isfinite(call(edit(model, wrong(1)), tokens)).all()
    with pytest.raises(RegionError, match=says):
        call(edit(model, wrong(6)), tokens)
    assert counted()[1] == 2, "the first one that raised, and the first one that did not"


def test_an_address_that_names_nothing_is_an_error(model, tokens):
    with pytest.raises(AddressError, match="names no value"):
        call(edit(model, at("blocks.1.resid_pots", Zero(), pos=1)), tokens)


def test_a_token_outside_the_vocabulary_is_an_error_that_says_where(base, tokens):
    wrong = tokens.at[1, 3].set(CONFIG.vocab_size)
    for model in (base, edit(base, at("embed", Zero(), pos=0))):
        with pytest.raises(UserError, match=r"the token id 96 at \[1, 3\] is outside .* has 96 ids, 0 to 95"):
            call(model, wrong)
    with pytest.raises(UserError, match=r"the token id -1 at \[0, 0\]"):
        call(base, np.asarray(tokens.at[0, 0].set(-1)))
    mask = jnp.ones(tokens.shape, bool).at[1, 3].set(False)
    assert call(base, wrong, mask=mask).shape == (*tokens.shape, CONFIG.vocab_size)


def test_plain_keyword_arguments_are_structure(base, tokens, counted):
    assert call(base, tokens, last_only=np.True_).shape == (3, 1, CONFIG.vocab_size)
    logits, cache = call(base, tokens, cache=np.int64(20))
    assert cache.slots == 20
    np.testing.assert_allclose(call(base, tokens, remat=jax.checkpoint_policies.nothing_saveable), logits, atol=1e-5)
    assert counted() == (3, 0)


def test_inside_a_traced_function_it_checks_what_is_known(base, tokens):
    surgery = lambda pos: edit(base, at("blocks.1.resid_post", Zero(), pos=pos))
    np.testing.assert_allclose(jax.jit(lambda t: call(surgery(2), t))(tokens), call(surgery(2), tokens), atol=1e-5)
    with pytest.raises(RegionError, match="12 is outside"):
        jax.jit(lambda t: call(surgery(12), t))(tokens)
    grid = jax.vmap(lambda pos: call(surgery(pos), tokens))(jnp.arange(2))
    assert grid.shape[0] == 2
    assert jnp.isnan(jax.jit(lambda pos: call(surgery(pos), tokens))(jnp.int32(12))).any()
