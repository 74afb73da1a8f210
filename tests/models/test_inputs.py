"""Inputs of a model and of generation: right, or an error with a name; NaN or -1 where the wrong number is traced."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import GPT2_LIKE, LLAMA_LIKE, peaky

from jax_interp import Zero, at, call, edit, generate, read
from jax_interp.core.errors import UserError
from jax_interp.core.objectives import cross_entropy, masked_mean
from jax_interp.models import Greedy, Sample, init, pad_left

MODEL = peaky(LLAMA_LIKE)
TOKENS = np.random.default_rng(0).integers(0, 61, (2, 7))
LEFT = np.arange(7)[None] >= np.array([[0], [3]])
KEY = jax.random.key(0)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.uint32, np.int64])
def test_integers_of_every_width_are_the_same_tokens(dtype):
    tokens, right = np.tile(TOKENS, (1, 40)), call(MODEL, np.tile(TOKENS, (1, 40)), last_only=True)
    np.testing.assert_array_equal(call(MODEL, tokens.astype(dtype), last_only=True), right)  # 280 positions
    new = generate(MODEL, TOKENS.astype(dtype), 5)
    assert new.dtype == jnp.int32
    np.testing.assert_array_equal(new, generate(MODEL, TOKENS, 5))
    logits = jax.random.normal(KEY, (2, 7, 300))
    np.testing.assert_array_equal(cross_entropy(logits, TOKENS.astype(dtype)), cross_entropy(logits, TOKENS))


def test_new_tokens_are_not_bound_by_the_dtype_of_the_prompt():
    """A new token of more than 8 bits, and -1 for NaN."""
    model = peaky(dataclasses.replace(LLAMA_LIKE, vocab_size=900))
    right = generate(model, TOKENS.astype(np.int32), 4)
    assert right.max() > 255
    np.testing.assert_array_equal(generate(model, TOKENS.astype(np.uint8), 4), right)
    of = jax.jit(lambda feature: generate(edit(model, at("blocks.0.resid_post", Zero(), feature=feature)), TOKENS, 2))
    np.testing.assert_array_equal(of(jnp.int32(500)), np.full((2, 2), -1))


@pytest.mark.parametrize("model", [MODEL, read(MODEL, "blocks.*.attn.pattern")], ids=["plain", "with patterns"])
def test_a_mask_of_integers_is_the_boolean_mask(model):
    right, got = call(model, TOKENS, mask=LEFT), call(model, TOKENS, mask=LEFT.astype(np.int64))
    jax.tree.map(np.testing.assert_array_equal, got, right)
    if model is MODEL:
        masks = (LEFT, LEFT.astype(np.uint8))
        np.testing.assert_array_equal(*(generate(MODEL, TOKENS, 3, mask=mask) for mask in masks))


def test_the_ids_of_padding_have_no_effect():
    wrong = np.where(LEFT, TOKENS, -100)
    np.testing.assert_array_equal(call(MODEL, wrong, mask=LEFT)[LEFT], call(MODEL, TOKENS, mask=LEFT)[LEFT])


CACHE = jax.jit(lambda model, tokens: model(tokens, cache=9)[1])(MODEL, TOKENS)
REFUSED = {
    "float tokens": ("tokens are integers, got float64", lambda: call(MODEL, TOKENS * 1.0)),
    "boolean tokens": ("tokens are integers, got bool", lambda: call(MODEL, TOKENS > 3)),
    "no rows": (r"shape \(0, 7\): there is no token", lambda: call(MODEL, TOKENS[:0])),
    "no positions": (r"shape \(2, 0\): there is no token", lambda: call(MODEL, TOKENS[:, :0])),
    "one row": (r"give tokens\[None\]", lambda: call(MODEL, TOKENS[0])),
    "a large id": (r"the token id 42949673\d\d at \[0, 0\]", lambda: call(MODEL, TOKENS + 2**32 * (TOKENS >= 0))),
    "a float mask": ("mask is a boolean array .* got float", lambda: call(MODEL, TOKENS, mask=LEFT * 1.0)),
    "a list as a mask": ("mask is a boolean array .* got list", lambda: call(MODEL, TOKENS, mask=LEFT.tolist())),
    "a mask of -1": ("mask has numbers other than 0 and 1", lambda: call(MODEL, TOKENS, mask=LEFT.astype(int) - 1)),
    "a short mask": (r"shape \(2, 6\), the tokens have \(2, 7\)", lambda: call(MODEL, TOKENS, mask=LEFT[:, 1:])),
    "a mask of one row": (r"mask has shape \(7,\)", lambda: jax.jit(MODEL)(jnp.asarray(TOKENS), mask=LEFT[0])),
    "float positions": ("positions are an array of integers", lambda: call(MODEL, TOKENS, positions=np.arange(7.0))),
    "short positions": (r"positions have shape \(6,\)", lambda: call(MODEL, TOKENS, positions=np.arange(6))),
    "a full cache": ("7 more tokens do not fit: 7 of the 9 slots", lambda: call(MODEL, TOKENS, cache=CACHE)),
    "another batch": ("the cache has 2 rows, the tokens have 1", lambda: call(MODEL, TOKENS[:1, :1], cache=CACHE)),
    "a boolean cache": ("cache is a number of slots .* got bool", lambda: call(MODEL, TOKENS, cache=True)),
    "few slots": ("a cache of 3 slots cannot hold the 7 tokens", lambda: call(MODEL, TOKENS, cache=3)),
    "no new tokens": ("n_new=0 must be", lambda: generate(MODEL, TOKENS, 0)),
    "part of a token": ("n_new=1.5 must be", lambda: generate(MODEL, TOKENS, 1.5)),
    "no prompts": ("at least one token", lambda: pad_left([])),
    "a prompt of padding": ("row 1 of mask has no real", lambda: generate(MODEL, TOKENS, 1, mask=LEFT * [[1], [0]])),
    "a seed as a key": (r"key is one PRNG key, jax.random.key\(seed\)", lambda: generate(MODEL, TOKENS, 1, key=0)),
    "a stop that is no token": (r"stop=\[64\] takes token ids", lambda: generate(MODEL, TOKENS, 1, stop=[64])),
    "a stop of -1": (r"stop=\[-1\] takes token ids", lambda: generate(MODEL, TOKENS, 1, stop=[-1])),
    "a stop string": (r"complete takes strings", lambda: generate(MODEL, TOKENS, 1, stop=["a"])),
    "no penalty": ("repetition_penalty=0 must be above 0", lambda: generate(MODEL, TOKENS, 1, repetition_penalty=0)),
    "an infinite penalty": ("repetition_penalty=inf", lambda: generate(MODEL, TOKENS, 1, repetition_penalty=np.inf)),
    "float targets": ("targets are integers", lambda: cross_entropy(jnp.ones((2, 3)), jnp.ones(2))),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_refused(case):
    says, wrong = REFUSED[case]
    with pytest.raises(UserError, match=says):
        wrong()


def test_positions_that_were_not_learned():
    model = init(GPT2_LIKE, jax.random.key(0))
    for first, said in (
        (-1, "position -1 was not learned"),
        (18, "position 24 was not learned: this model has 0 to 23"),
    ):
        with pytest.raises(UserError, match=said):
            call(model, TOKENS, positions=first + np.arange(7))
        traced = jax.jit(lambda model, positions: model(TOKENS, positions=positions))(model, first + np.arange(7))
        assert jnp.isnan(traced).any(axis=(0, 2)).sum() > 0


@pytest.mark.parametrize("sizes", [(1,) * 5, (2, 2, 1), (3, 3)])
def test_tokens_beyond_the_slots_give_nan_and_not_other_numbers(sizes):
    """Six slots, of which three are filled: each call has the logits of the full forward pass, or NaN."""
    tokens = np.random.default_rng(1).integers(0, 61, (2, 3 + sum(sizes)))
    full, filled = call(MODEL, tokens), 3
    go = jax.jit(lambda model, tokens, cache: model(tokens, cache=cache))
    cache = call(MODEL, tokens[:, :3], cache=6)[1]
    for n in sizes:
        logits, cache = go(MODEL, tokens[:, filled : filled + n], cache)
        filled += n
        if filled <= 6:
            np.testing.assert_allclose(logits, full[:, filled - n : filled], atol=1e-4)
        else:
            assert jnp.isnan(logits).all()


@pytest.mark.parametrize(
    ("field", "wrong"),
    [("temperature", -1.0), ("temperature", np.nan), ("temperature", np.inf), ("top_k", -1), ("top_p", -0.1),
     ("top_p", 1.1), ("top_p", np.nan), ("min_p", 1.5), ("min_p", -0.1), ("min_p", np.nan)],
)  # fmt: skip
def test_numbers_of_a_sampler_out_of_range(field, wrong):
    with pytest.raises(UserError, match=f"{field}={wrong} must be at least 0"):
        Sample(**{field: wrong})
    logits = jax.random.normal(KEY, (3, 50))
    token, log_p = jax.jit(lambda x: (Sample(**{field: x})(KEY, logits), Sample(**{field: x}).log_probs(logits)))(wrong)
    assert (token == -1).all()
    assert jnp.isnan(log_p).all()


@settings(max_examples=20)
@given(
    temperature=st.floats(0.05, 50), top_k=st.integers(0, 80), top_p=st.floats(0, 1), min_p=st.floats(0, 1),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_a_sampler_is_a_distribution_that_always_has_the_likeliest(temperature, top_k, top_p, min_p, seed):
    logits = 3 * jax.random.normal(jax.random.key(seed), (4, 50))
    p = np.exp(Sample(temperature, top_k, top_p, min_p).log_probs(logits))
    np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-4)
    assert (np.take_along_axis(p, np.asarray(logits.argmax(-1))[:, None], axis=1) > 0).all()
    assert (np.sum(p > 0, axis=-1) <= (top_k or 50)).all()


def test_no_top_k_is_all_tokens():
    logits = jax.random.normal(KEY, (1, 50))
    for k in (0, 50, 10_000, None):
        np.testing.assert_allclose(Sample(top_k=k).log_probs(logits), Sample().log_probs(logits), atol=1e-6)


@pytest.mark.parametrize("choose", [Greedy(), Sample()])
def test_no_possible_token_is_minus_one(choose):
    nothing = edit(MODEL, at("logits", lambda x: jnp.full_like(x, -jnp.inf)))
    np.testing.assert_array_equal(generate(nothing, TOKENS, 2, choose=choose, key=KEY), np.full((2, 2), -1))


def test_a_target_that_is_no_class_has_no_loss():
    """-100 is transformers' sign for a target to ignore; it is not the hundredth class from the end."""
    logits, targets = jax.random.normal(KEY, (5, 200)), jnp.asarray([3, -100, 199, 200, -1])
    losses = cross_entropy(logits, targets)
    np.testing.assert_array_equal(jnp.isnan(losses), [False, True, False, True, True])
    mean = lambda x: masked_mean(cross_entropy(x, targets), (targets >= 0) & (targets < 200))
    value, gradient = jax.value_and_grad(mean)(logits)
    np.testing.assert_allclose(value, (losses[0] + losses[2]) / 2, rtol=1e-6)
    assert jnp.isfinite(gradient).all()
