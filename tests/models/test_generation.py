"""Generation: the cache is the plain forward, edits act at absolute positions, numbers never recompile."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import CONFIGS, LLAMA_LIKE, peaky

from jax_interp.core.errors import UserError
from jax_interp.models import Cache, Greedy, Sample, generate, pad_left, stream
from jax_interp.models.generation.generate import _generate
from jax_interp.surgery import Add, RegionError, Scale, Zero, at, edit, read, replan

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


@pytest.mark.parametrize(
    "changes", [{"window": 4, "sliding": (True, False, True)}, {"positions": "alibi"}], ids=["window", "alibi"]
)
def test_padding_between_a_prompt_and_what_follows_counts_for_no_distance(changes):
    model = peaky(dataclasses.replace(LLAMA_LIKE, **changes))
    tokens, mask = pad_left(PROMPTS)
    tokens, mask = (np.stack([np.roll(row, n) for row, n in zip(x, mask.sum(1))]) for x in (tokens, mask))
    out = generate(model, tokens, 8, mask=mask)
    assert out.tolist() == [forwards(model, prompt, 8) for prompt in PROMPTS]


def test_an_edit_acts_while_generating_and_at_absolute_positions(model):
    vector = 2 * jax.random.normal(jax.random.key(4), (model.config.d_model,))
    for where in ({"pos": 6}, {"pos": 2}, {"pos": slice(5, None)}):
        steered = edit(model, at("blocks.1.resid_post", Add(vector), **where))
        expected = forwards(steered, PROMPTS[0], 6)
        assert generate(steered, jnp.asarray([PROMPTS[0]]), 6).tolist() == [expected]
    for pos in (10, -6, [3, 23]):  # the last new token is never given to the model
        with pytest.raises(RegionError, match=r"takes -5 to 9"):
            generate(edit(model, at("blocks.1.resid_post", Add(vector), pos=pos)), jnp.asarray([PROMPTS[0]]), 6)
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


@pytest.mark.slow
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


def test_min_p_cuts_by_the_likeliest():
    p = np.asarray([0.4, 0.3, 0.15, 0.1, 0.05])
    for min_p, kept in ((0.5, 2), (0.3, 3), (0.0, 5), (1.0, 1)):
        expected = np.where(np.arange(5) < kept, p, 0) / p[:kept].sum()
        np.testing.assert_allclose(np.exp(Sample(min_p=min_p).log_probs(jnp.log(jnp.asarray(p, jnp.float32)))),
                                   expected, atol=1e-6)  # fmt: skip
    np.testing.assert_array_equal(np.exp(Sample(0.0).log_probs(jnp.log(jnp.asarray([0.2, 0.5, 0.3])))), [0, 1, 0])


def filtered(logits, temperature, top_k, top_p, min_p):
    """Sample's distribution, one token at a time in float64."""
    p = np.exp(logits / temperature - np.max(logits / temperature))
    order = np.argsort(-p)[:top_k]
    left, mass = [], 0.0
    for i in order:
        if left and mass >= top_p * p[order].sum():
            break
        left.append(i)
        mass += p[i]
    left = [i for i in left if p[i] >= min_p * p[order[0]]]
    return np.where(np.isin(np.arange(len(p)), left), p, 0) / p[left].sum()


def test_filters_in_their_order_equal_a_float64_reference():
    rng = np.random.default_rng(0)
    for _ in range(20):
        logits = 2 * rng.standard_normal(50)
        numbers = rng.uniform(0.3, 2), int(rng.integers(1, 50)), rng.uniform(0.2, 1), rng.uniform(0, 0.3)
        ours = np.exp(Sample(*numbers).log_probs(jnp.asarray(logits, jnp.float32)))
        np.testing.assert_allclose(ours, filtered(logits, *numbers), atol=2e-6)


def test_a_penalty_counts_the_prompt_and_no_padding(llama):
    tokens, mask = pad_left(PROMPTS)
    out = np.asarray(generate(llama, tokens, 6, mask=mask, repetition_penalty=1.6))
    for prompt, new in zip(PROMPTS, out.tolist()):
        row = list(prompt)
        for token in new:
            logits = np.asarray(run(llama, jnp.asarray([row + [0] * (24 - len(row))]))[0, len(row) - 1], np.float64)
            seen = sorted(set(row))
            logits[seen] = np.where(logits[seen] < 0, logits[seen] * 1.6, logits[seen] / 1.6)
            assert token == np.argmax(logits)
            row.append(token)
    assert (
        generate(llama, tokens, 6, mask=mask, repetition_penalty=1.0) == generate(llama, tokens, 6, mask=mask)
    ).all()


def test_streaming_gives_what_generate_writes(llama):
    tokens, mask = pad_left(PROMPTS)
    for options in ({}, {"choose": Sample(1.3, top_k=20), "key": jax.random.key(3), "repetition_penalty": 1.2}):
        whole = np.asarray(generate(llama, tokens, 6, mask=mask, **options))
        np.testing.assert_array_equal(np.stack(list(stream(llama, tokens, 6, mask=mask, **options)), axis=1), whole)
    first = int(generate(llama, tokens[:1], 1)[0, 0])
    assert [c.tolist() for c in stream(llama, tokens[:1], 6, stop=[first])] == [[first]]


@pytest.mark.parametrize("plan", [pytest.param((), marks=pytest.mark.slow), "*"])
def test_reading_while_generating_is_reading_the_text_in_one_pass(llama, plan):
    tokens, mask = pad_left(PROMPTS)
    model = replan(edit(llama, at("blocks.1.resid_post", Scale(0.5), pos=-1)), plan)
    names = ("blocks.*.resid_post", "blocks.1.attn.pattern", "blocks.2.attn.attn_scores", "logits", "ln_final.scale")
    new, acts = generate(read(model, *names), tokens, 5, mask=mask)
    np.testing.assert_array_equal(new, generate(model, tokens, 5, mask=mask))
    text = np.concatenate([tokens, new], axis=1)[:, :-1]
    real = np.concatenate([mask, np.ones((3, 4), bool)], axis=1)
    there = edit(llama, at("blocks.1.resid_post", Scale(0.5), where=np.arange(9)[None] == np.full((3, 1), 4)))
    _, once = jax.jit(lambda f, *a, **k: f(*a, **k))(read(there, *names), jnp.asarray(text), mask=jnp.asarray(real))
    for name in names:
        ours, expected = np.asarray(acts[name]), np.asarray(once[name])
        assert ours.shape == expected.shape
        if "attn." in name:  # batch head pos key
            ours, expected = ours.swapaxes(1, 2)[real], expected.swapaxes(1, 2)[real]
        elif "*" in name:
            ours, expected = ours[:, real], expected[:, real]
        else:
            ours, expected = ours[real], expected[real]
        np.testing.assert_allclose(ours, expected, atol=2e-5, err_msg=name)


def test_what_is_read_ends_where_a_row_does(llama):
    tokens, mask = pad_left(PROMPTS)
    free = np.asarray(generate(llama, tokens, 6, mask=mask))
    _, whole = generate(read(llama, "blocks.*.resid_post"), tokens, 6, mask=mask)
    stop = int(free[0, 2])
    _, acts = generate(read(llama, "blocks.*.resid_post"), tokens, 6, mask=mask, stop=[stop])
    for row in range(3):
        ended = list(free[row]).index(stop) if stop in free[row] else 5
        kept = np.asarray(acts["blocks.*.resid_post"])[:, row]
        expected = np.asarray(whole["blocks.*.resid_post"])[:, row, : 5 + ended]
        np.testing.assert_allclose(kept[:, : 5 + ended], expected, atol=2e-5)
        assert (kept[:, 5 + ended :] == 0).all()


@pytest.mark.slow
def test_negative_positions_count_from_each_rows_own_end(llama):
    tokens, mask = pad_left(PROMPTS)
    vector = 3 * jax.random.normal(jax.random.key(5), (llama.config.d_model,))
    for where in ({"pos": -1}, {"pos": slice(-1, None)}, {"pos": [-1]}):
        steered = edit(llama, at("blocks.0.resid_post", Add(vector), **where))
        alone = [generate(steered, jnp.asarray([prompt]), 5)[0].tolist() for prompt in PROMPTS]
        assert generate(steered, tokens, 5, mask=mask).tolist() == alone
        last = steered(jnp.asarray(tokens), mask=jnp.asarray(mask))[:, -1]
        for row, prompt in zip(last, PROMPTS):
            np.testing.assert_allclose(row, steered(jnp.asarray([prompt]))[0, -1], atol=1e-4)


def test_rows_with_edits_of_their_own_are_as_if_alone_and_compile_once(llama):
    tokens, mask = pad_left(PROMPTS)

    @jax.jit
    def each(vectors, strengths, layers, positions, tokens, mask):
        def one(vector, strength, layer, pos, row, real):
            steered = edit(llama, at("blocks.resid_post", Add(vector, strength), layer=layer, pos=pos))
            return generate(steered, row[None], 5, mask=real[None])[0]

        return jax.vmap(one)(vectors, strengths, layers, positions, tokens, mask)

    vectors = jax.random.normal(jax.random.key(6), (3, llama.config.d_model))
    for strengths, layers, positions in (
        ([3.0, -4.0, 0.0], [0, 2, 1], [-1, 0, 2]),
        ([0.0, 2.0, 5.0], [1, 1, 0], [6, -1, 3]),
    ):
        out = each(vectors, *(jnp.asarray(x) for x in (strengths, layers, positions)), tokens, mask)
        for i, prompt in enumerate(PROMPTS):
            alone = at(f"blocks.{layers[i]}.resid_post", Add(vectors[i], strengths[i]), pos=positions[i])
            assert out[i].tolist() == generate(edit(llama, alone), jnp.asarray([prompt]), 5)[0].tolist()
    assert each._cache_size() == 1


def test_rows_with_edits_of_different_kinds(llama):
    tokens, mask = pad_left(PROMPTS)
    kinds = [Zero(), Scale(-2.0), Add(jnp.ones(llama.config.d_model))]
    only = jnp.eye(3, dtype=bool)[:, :, None]  # one row at a time, [batch, 1]
    mixed = edit(llama, [at("blocks.1.mlp_out", fn, where=only[i]) for i, fn in enumerate(kinds)])
    alone = [generate(edit(llama, at("blocks.1.mlp_out", fn)), jnp.asarray([prompt]), 5)[0].tolist()
             for fn, prompt in zip(kinds, PROMPTS)]  # fmt: skip
    assert generate(mixed, tokens, 5, mask=mask).tolist() == alone


def test_an_index_that_is_data_and_outside_shows_in_the_tokens(llama):
    far = jax.jit(lambda pos: generate(edit(llama, at("embed", Zero(), pos=pos)), jnp.asarray([PROMPTS[0]]), 3))
    assert far(jnp.int32(30)).tolist() == [[-1] * 3]


def test_logits_of_the_last_token_alone(model, call):
    tokens, mask = (jnp.asarray(x) for x in pad_left(PROMPTS))
    whole = call(model, tokens, mask=mask)
    last = jax.jit(lambda m, *a, **k: m(*a, last_only=True, **k))
    np.testing.assert_allclose(last(model, tokens, mask=mask), whole[:, -1:], atol=1e-5)
    right, real = jnp.asarray(PROMPTS[0] + [0, 0])[None], jnp.arange(7)[None] < 5
    np.testing.assert_allclose(last(model, right, mask=real), call(model, right, mask=real)[:, 4:5], atol=1e-5)
    out, acts = last(read(model, "logits"), tokens, mask=mask)
    np.testing.assert_allclose(acts["logits"], whole, atol=1e-5)
    assert out.shape == (3, 1, model.config.vocab_size)


def test_a_chooser_of_ones_own(llama):
    unlikely = lambda key, logits: jnp.argmin(logits, axis=-1)
    choose = jax.tree_util.Partial(unlikely)
    out = generate(llama, jnp.asarray([PROMPTS[0]]), 2, choose=choose, key=jax.random.key(0))
    assert int(out[0, 0]) == int(jnp.argmin(llama(jnp.asarray([PROMPTS[0]]))[0, -1]))


@pytest.mark.slow
def test_generation_goes_through_vmap_over_edits(llama):
    prompt = jnp.asarray([PROMPTS[0]])
    vectors = jax.random.normal(jax.random.key(1), (3, llama.config.d_model))
    steer = lambda v: edit(llama, at("blocks.0.resid_post", Add(v)))
    batched = jax.vmap(lambda v: generate(steer(v), prompt, 4))(vectors)
    assert batched.tolist() == [generate(steer(v), prompt, 4).tolist() for v in vectors]


def test_what_cannot_be_generated_is_refused(model):
    prompt = jnp.asarray([PROMPTS[0]])
    with pytest.raises(UserError, match="without output=False"):
        generate(read(model, "embed", output=False), prompt, 3)
    with pytest.raises(UserError, match="stream gives tokens only"):
        stream(read(model, "embed"), prompt, 3)
    with pytest.raises(UserError, match="repetition_penalty"):
        generate(model, prompt, 3, repetition_penalty=0.0)
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


@pytest.mark.slow
def test_bfloat16_generates_what_its_own_forwards_say():
    model = peaky(CONFIGS["llama-like"], 2, dtype=jnp.bfloat16)
    out = generate(model, jnp.asarray([PROMPTS[0]]), 8, choose=Greedy())
    assert out.tolist() == [forwards(model, PROMPTS[0], 8)]
    logits, _ = jax.jit(lambda m, t: m(t, cache=9))(model, jnp.asarray([PROMPTS[0]]))
    assert logits.dtype == jnp.bfloat16
