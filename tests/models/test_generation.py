"""Generation: the cache is the plain forward, edits act at absolute positions, numbers never recompile."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import CONFIGS, LLAMA_LIKE, peaky

from jax_interp.errors import UserError
from jax_interp.models import Cache, Greedy, Sample, generate, init, pad_left
from jax_interp.models.generate import _generate
from jax_interp.surgery import Add, Scale, at, edit, read, replan

PROMPTS = [[5, 9, 33, 2, 17], [41], [8, 8, 30]]


run = jax.jit(lambda model, tokens: model(tokens))


@pytest.fixture(scope="module")
def llama():
    """For what does not depend on how positions are made."""
    return peaky(LLAMA_LIKE)


def forwards(model, prompt, n_new):
    """Greedy tokens with no cache at all: the whole sequence again for each."""
    row = list(prompt)
    for _ in range(n_new):
        padded = jnp.asarray([row + [0] * (24 - len(row))], jnp.int32)  # causal: what comes after changes nothing
        row.append(int(jnp.argmax(run(model, padded)[0, len(row) - 1])))
    return row[len(prompt) :]


@pytest.mark.parametrize("plan", ["stacked", "mixed"])
def test_prefill_and_then_steps_are_the_plain_forward(model, call, tokens, plan):
    model = replan(model, {"stacked": (), "mixed": "1"}[plan])
    expected, n = call(model, tokens), 4
    start = jax.jit(lambda model, tokens: model(tokens, cache=12))
    logits, cache = start(model, tokens[:, :n])
    np.testing.assert_array_equal(logits, call(model, tokens[:, :n]))
    step = jax.jit(lambda model, tokens, cache: model(tokens, cache=cache))
    for i in range(n, tokens.shape[1]):
        logits, cache = step(model, tokens[:, i : i + 1], cache)
        np.testing.assert_allclose(logits[:, 0], expected[:, i], atol=1e-5)
    assert isinstance(cache, Cache)
    assert int(cache.length) == tokens.shape[1]
    logits, _ = step(model, tokens[:, n:], start(model, tokens[:, :n])[1])  # several tokens at once
    np.testing.assert_allclose(logits, expected[:, n:], atol=1e-5)


def test_greedy_generation_is_the_argmax_of_plain_forwards(model):
    out = generate(model, jnp.asarray([PROMPTS[0]]), 8)
    assert out.tolist() == [forwards(model, PROMPTS[0], 8)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_different_lengths_are_as_if_alone(model, side):
    tokens, mask = pad_left(PROMPTS)
    if side == "right":
        tokens, mask = (np.stack([np.roll(row, n) for row, n in zip(x, mask.sum(1))]) for x in (tokens, mask))
    out = generate(model, tokens, 6, mask=mask)
    assert out.tolist() == [forwards(model, prompt, 6) for prompt in PROMPTS]


def test_an_edit_acts_while_generating_and_at_absolute_positions(model):
    vector = 2 * jax.random.normal(jax.random.key(4), (model.config.d_model,))
    for where in ({"pos": 6}, {"pos": 2}, {"pos": slice(5, None)}):
        steered = edit(model, at("blocks.1.resid_post", Add(vector), **where))
        expected = forwards(steered, PROMPTS[0], 6)
        assert generate(steered, jnp.asarray([PROMPTS[0]]), 6).tolist() == [expected]
    never = edit(model, at("blocks.1.resid_post", Add(vector), pos=23))
    plain = generate(model, jnp.asarray([PROMPTS[0]]), 6)
    np.testing.assert_array_equal(generate(never, jnp.asarray([PROMPTS[0]]), 6), plain)
    last = edit(model, at("blocks.1.resid_post", Add(vector), pos=-1))  # of the prompt, whatever is written after it
    there = edit(model, at("blocks.1.resid_post", Add(vector), pos=len(PROMPTS[0]) - 1))
    np.testing.assert_array_equal(*[generate(m, jnp.asarray([PROMPTS[0]]), 6) for m in (last, there)])


def test_editing_keys_before_the_cache_changes_what_is_remembered(llama):
    edited = edit(llama, at("blocks.0.attn.k", Scale(-1.0), pos=0))
    assert generate(edited, jnp.asarray([PROMPTS[0]]), 6).tolist() == [forwards(edited, PROMPTS[0], 6)]


def test_numbers_never_recompile(llama):
    prompt, key = jnp.asarray([PROMPTS[0]]), jax.random.key(0)
    vector = jnp.ones(llama.config.d_model)
    once = lambda scale, layer, seed, temperature, top_k, stop: generate(
        edit(llama, at("blocks.resid_post", Add(vector * scale), layer=layer, pos=3)),
        prompt,
        5,
        choose=Sample(temperature, top_k=top_k, top_p=0.9),
        key=jax.random.fold_in(key, seed),
        stop=[stop],
    )
    once(1.0, 0, 0, 1.0, 5, 60)
    before = _generate._cache_size()
    once(-2.0, 2, 7, 0.3, 40, 1)
    once(0.0, 1, 8, 0.0, 1, 0)
    assert _generate._cache_size() == before


def test_a_row_that_stops_repeats_its_last_token_and_the_others_go_on(llama):
    tokens, mask = pad_left(PROMPTS)
    free = np.asarray(generate(llama, tokens, 8, mask=mask))
    stop = int(free[0, 3])
    out = np.asarray(generate(llama, tokens, 8, mask=mask, stop=[stop]))
    for row, plain in zip(out, free):
        end = list(plain).index(stop) if stop in plain else len(plain)
        assert row[: end + 1].tolist() == plain[: end + 1].tolist()
        assert (row[end:] == stop).all()


def test_generation_ends_when_all_rows_have_stopped(llama):
    prompt = jnp.asarray([PROMPTS[0]])
    first = int(generate(llama, prompt, 8)[0, 0])
    assert generate(llama, prompt, 8, stop=[first]).tolist() == [[first] * 8]


def test_one_key_one_text_and_temperature_zero_is_greedy(llama):
    prompt = jnp.asarray([PROMPTS[0]] * 4)
    draw = lambda seed, **kw: generate(llama, prompt, 8, choose=Sample(**kw), key=jax.random.key(seed))
    np.testing.assert_array_equal(draw(1), draw(1))
    assert jnp.any(draw(1) != draw(2))
    assert len(np.unique(np.asarray(draw(1, temperature=2.0)), axis=0)) > 1  # rows draw apart
    greedy = generate(llama, prompt, 8)
    np.testing.assert_array_equal(draw(1, temperature=0.0), greedy)
    np.testing.assert_array_equal(draw(1, temperature=5.0, top_k=1), greedy)
    np.testing.assert_array_equal(draw(1, temperature=5.0, top_p=0.0), greedy)


def test_draws_have_the_cut_distribution():
    logits = jnp.log(jnp.asarray([[0.4, 0.3, 0.15, 0.1, 0.05]]))
    cases = [
        (Sample(), [0.4, 0.3, 0.15, 0.1, 0.05]),
        (Sample(top_k=2), [0.4, 0.3, 0, 0, 0]),
        (Sample(top_p=0.6), [0.4, 0.3, 0, 0, 0]),
        (Sample(top_p=0.75), [0.4, 0.3, 0.15, 0, 0]),
        (Sample(temperature=0.5, top_k=3), [0.16, 0.09, 0.0225, 0, 0]),
        (Sample(top_k=4, top_p=0.8), [0.4, 0.3, 0.15, 0, 0]),  # of the 0.95 that top_k leaves
    ]
    keys = jax.random.split(jax.random.key(0), 20_000)
    for sample, weights in cases:
        drawn = jax.jit(jax.vmap(sample, in_axes=(0, None)))(keys, logits)[:, 0]
        expected = np.asarray(weights) / np.sum(weights)
        share = np.bincount(np.asarray(drawn), minlength=5) / len(keys)
        assert (share[expected == 0] == 0).all()
        np.testing.assert_allclose(share, expected, atol=4 * np.sqrt(0.25 / len(keys)))


def test_a_chooser_of_ones_own(llama):
    unlikely = lambda key, logits: jnp.argmin(logits, axis=-1)
    choose = jax.tree_util.Partial(unlikely)
    out = generate(llama, jnp.asarray([PROMPTS[0]]), 2, choose=choose, key=jax.random.key(0))
    assert int(out[0, 0]) == int(jnp.argmin(llama(jnp.asarray([PROMPTS[0]]))[0, -1]))


def test_generation_goes_through_vmap_over_edits(llama):
    prompt = jnp.asarray([PROMPTS[0]])
    vectors = jax.random.normal(jax.random.key(1), (3, llama.config.d_model))
    steer = lambda v: edit(llama, at("blocks.0.resid_post", Add(v)))
    batched = jax.vmap(lambda v: generate(steer(v), prompt, 4))(vectors)
    assert batched.tolist() == [generate(steer(v), prompt, 4).tolist() for v in vectors]


def test_what_cannot_be_generated_is_refused(model):
    prompt = jnp.asarray([PROMPTS[0]])
    with pytest.raises(UserError, match="read"):
        generate(read(model, "embed"), prompt, 3)
    with pytest.raises(UserError, match="key"):
        generate(model, prompt, 3, choose=Sample(0.7))
    with pytest.raises(UserError, match="n_new"):
        generate(model, prompt, 0)
    with pytest.raises(UserError, match="at least one token"):
        pad_left([[1, 2], []])
    with pytest.raises(UserError, match="2 slots"):
        model(prompt, cache=2)
    if model.config.positions == "learned":
        with pytest.raises(UserError, match="learned 24"):
            generate(model, prompt, 40)


def test_bfloat16_generates_what_its_own_forwards_say():
    model = init(CONFIGS["llama-like"], jax.random.key(2), dtype=jnp.bfloat16)
    out = generate(model, jnp.asarray([PROMPTS[0]]), 3, choose=Greedy())
    assert out.shape == (1, 3)
    logits, _ = jax.jit(lambda m, t: m(t, cache=9))(model, jnp.asarray([PROMPTS[0]]))
    assert logits.dtype == jnp.bfloat16
