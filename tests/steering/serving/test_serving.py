"""Continuous batching: every request is as if alone, whatever came before or runs beside it; nothing compiles again."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import LLAMA_LIKE, peaky

from jax_interp.core.errors import UserError
from jax_interp.models import Greedy, Sample, generate
from jax_interp.models.generation.row_sampling import SampleRows, largest_threshold
from jax_interp.steering import OPERATORS
from jax_interp.steering.serving import Request, RequestEdit, edit_rows, engine_of, serve, serve_events, warm_up
from jax_interp.steering.serving import rows as programs
from jax_interp.steering.serving.engine import empty_seats, seated, stepped, without
from jax_interp.surgery import read, replan

CONFIG = dataclasses.replace(LLAMA_LIKE, n_layers=2, d_model=16, n_heads=2, n_kv_heads=1, d_mlp=24)
LEARNED = dataclasses.replace(CONFIG, positions="learned", n_ctx=48)
KINDS = {
    "rotary": CONFIG,
    "learned": LEARNED,
    "sliding": dataclasses.replace(CONFIG, window=3, sliding=(True, False)),
    "alibi": dataclasses.replace(CONFIG, positions="alibi"),
    "experts": dataclasses.replace(CONFIG, n_experts=3, experts_per_token=2),
}
SLOTS = 24


def mixed_requests(n=14, seed=0):
    """Requests of mixed lengths with mixed edits: all operators, several layers, parts of the text, and none."""
    rng, names, requests = np.random.default_rng(seed), list(OPERATORS), []
    for i in range(n):
        prompt = rng.integers(0, 60, rng.integers(1, 12)).tolist()
        vector = rng.normal(size=CONFIG.d_model)
        address = ("blocks.0.resid_post", "blocks.1.resid_post", "blocks.*.resid_post")[i % 3]
        parts = ({}, {"start": -1}, {"stop": -1}, {"decay": 0.8})[i % 4]
        one = RequestEdit(address, vector, names[i % len(names)], float(rng.normal()), **parts)
        draws = {} if i % 3 else {"temperature": 1.5, "top_k": int(i % 2) * 9, "top_p": 0.9, "seed": i}
        requests.append(Request(prompt, int(rng.integers(1, 13)), (one,) if i % 5 else (), **draws))
    return requests


def alone(model, request):
    """The new tokens of the request by `generate`, in a batch of one row."""
    chooser = SampleRows(
        *(jnp.asarray([x], dtype) for x, dtype in (
            (request.temperature, jnp.float32), (request.top_k, jnp.int32),
            (request.top_p, jnp.float32), (request.seed, jnp.uint32),
        ))
    )  # fmt: skip
    n, bucket = len(request.tokens), 12
    tokens, mask = np.zeros((1, bucket), np.int32), np.zeros((1, bucket), bool)
    tokens[0, bucket - n :], mask[0, bucket - n :] = request.tokens, True
    edited = edit_rows(model, [request], ["blocks.*.resid_post"])
    if not request.edits:
        nothing = RequestEdit("blocks.0.resid_post", np.ones(CONFIG.d_model), "add", 0.0)
        edited = edit_rows(model, [dataclasses.replace(request, edits=(nothing,))], ["blocks.*.resid_post"])
    return generate(edited, tokens, 12, mask=mask, choose=chooser, key=jax.random.key(0))[0].tolist()[: request.n_new]


@pytest.fixture(scope="module")
def model():
    return peaky(CONFIG)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("kind", [k if k == "rotary" else pytest.param(k, marks=SLOW) for k in KINDS])
@pytest.mark.parametrize("plan", [(), pytest.param("1", marks=SLOW)], ids=["stacked", "mixed"])
def test_every_request_is_as_if_alone(kind, plan):
    model, requests = replan(peaky(KINDS[kind]), plan), mixed_requests()
    results = serve(model, requests, rows=3, slots=SLOTS, steps=4)
    for request, result in zip(requests, results, strict=True):
        assert result.error is None
        assert list(result.tokens) == alone(model, request)
        assert result.ending == "length"


def test_nothing_compiles_after_the_warm_up(model):
    engine, compiled = engine_of(model, rows=3, slots=SLOTS, steps=5), []
    listen = lambda name, _, **__: compiled.append(name) if "compile" in name else None
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        warm_up(engine)
        in_warm_up = len(compiled)
        events = list(serve_events(engine, mixed_requests(seed=3)))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert in_warm_up > 0
    assert compiled[in_warm_up:] == []
    assert sum(event.ending is not None for event in events) == 14


def test_order_of_admission_is_that_of_the_requests(model):
    engine = engine_of(model, rows=3, slots=SLOTS, steps=4)
    events = list(serve_events(engine, mixed_requests()))
    first = list(dict.fromkeys(event.id for event in events))
    assert first == sorted(first)


def test_stop_tokens_end_a_text_and_belong_to_it(model):
    (free,) = serve(model, [Request([5, 9, 33], 8)], rows=3, slots=SLOTS, steps=4)
    stop = free.tokens[3]
    (ended,) = serve(model, [Request([5, 9, 33], 8, stop=(60, stop))], rows=3, slots=SLOTS, steps=4)
    cut = free.tokens[: free.tokens.index(stop) + 1]
    assert (ended.tokens, ended.ending) == (cut, "stop")


def test_a_released_row_is_taken_by_the_next_request(model):
    engine = engine_of(model, rows=3, slots=SLOTS, steps=4)
    seats, _ = seated(engine, empty_seats(engine), "gone", Request([1, 2, 3], 12))
    seats, _ = stepped(engine, seats, hurry=False)
    seats = without(engine, seats, {"gone"})
    seats, event = seated(engine, seats, "next", Request([5, 9, 33], 4))
    assert list(seats.taken) == [0], "the row of the request that has gone"
    found = [event.token]
    while seats.taken:
        seats, events = stepped(engine, seats, hurry=False)
        found += [event.token for event in events]
    assert found == alone(model, Request([5, 9, 33], 4))


def test_wrong_requests_are_refused_alone(model):
    good, vector = Request([5, 9, 33], 4), np.ones(CONFIG.d_model)
    edited = lambda **changes: dataclasses.replace(
        good, edits=(dataclasses.replace(RequestEdit("blocks.0.resid_post", vector), **changes),)
    )
    wrong = {
        "slots": dataclasses.replace(good, n_new=100),
        "at least one token": dataclasses.replace(good, tokens=[]),
        "token id": dataclasses.replace(good, tokens=[64]),
        "n_new": dataclasses.replace(good, n_new=0),
        "names no layer": edited(address="blocks.9.resid_post"),
        "can be at": edited(address="blocks.0.mlp_out"),
        "entries": edited(vector=np.ones(3)),
        "NaN": edited(vector=vector * np.nan),
        "no operator": edited(operator="push"),
        "temperature": dataclasses.replace(good, temperature=-1.0),
        "seed": dataclasses.replace(good, seed=-1),
        "at most 1 at one value": dataclasses.replace(good, edits=edited().edits * 2),
        "stop tokens": dataclasses.replace(good, stop=tuple(range(9))),
    }
    results = serve(model, [good, *wrong.values(), good], rows=3, slots=SLOTS, steps=4)
    assert results[0].tokens == results[-1].tokens == tuple(alone(model, good))
    for (message, _), result in zip(wrong.items(), results[1:-1], strict=True):
        assert result.ending == "error"
        assert message in (result.error or "")


def test_a_row_whose_logits_are_nan_ends_alone(model):
    huge = RequestEdit("blocks.0.resid_post", np.ones(CONFIG.d_model), "add", 3e38)
    far = dataclasses.replace(huge, address="blocks.*.resid_post")
    good = Request([5, 9, 33], 6)
    bad, fine = serve(model, [Request([5, 9, 33], 6, (far,)), good], rows=3, slots=SLOTS, steps=4)
    assert bad.ending == "error"
    assert "NaN" in (bad.error or "")
    assert list(fine.tokens) == alone(model, good)


def test_wrong_settings_are_errors(model):
    for changes in ({"rows": 0}, {"slots": 0}, {"steps": True}, {"values": ["embed"]}, {"values": ["blocks.*.it"]}):
        with pytest.raises(UserError):
            engine_of(model, **changes)
    with pytest.raises(UserError, match="learned 48"):
        engine_of(peaky(LEARNED), slots=49)
    with pytest.raises(UserError, match="read"):
        engine_of(read(model, "embed"))


def test_sampling_of_rows_is_that_of_sample():
    """The kept tokens are those of `Sample`, and the draws follow its distribution's support."""
    logits = (
        jnp.asarray(np.random.default_rng(0).normal(size=(4, 50)) * 3, jnp.float32).at[:, 7].set(2.0).at[:, 9].set(2.0)
    )
    for top_k, top_p in ((0, 0.7), (5, 1.0), (12, 0.8), (0, 0.0), (1, 1.0)):
        every = lambda x, dtype: jnp.full(4, x, dtype)
        rows = SampleRows(
            every(0.9, jnp.float32), every(top_k, jnp.int32), every(top_p, jnp.float32), every(0, jnp.uint32)
        )
        kept = rows._filtered(logits / 0.9) > -jnp.inf
        expected = Sample(temperature=0.9, top_k=top_k, top_p=top_p).log_probs(logits) > -jnp.inf
        np.testing.assert_array_equal(kept, expected)
    greedy = SampleRows(every(0.0, jnp.float32), *(every(0, d) for d in (jnp.int32, jnp.float32, jnp.uint32)))
    key = jax.random.key(0)
    np.testing.assert_array_equal(greedy(key, logits), Greedy()(key, logits))


def test_the_threshold_is_the_kth_largest_number():
    x = jnp.asarray([[3.0, -1.0, 0.0, -0.0, 2.5, -jnp.inf, 1e-40, -7.0]], jnp.float32)
    for k in range(1, 9):
        found = largest_threshold(x, lambda above: jnp.sum(above, axis=-1, keepdims=True) >= k)  # noqa: B023
        assert int(jnp.sum(found)) == k, "all numbers have different bits"
        np.testing.assert_array_equal(np.sort(x[found]), np.sort(x[0])[-k:])


def test_the_state_is_donated(model):
    engine = engine_of(model, rows=3, slots=SLOTS, steps=4)
    seats, _ = seated(engine, empty_seats(engine), 0, Request([1], 8))
    old = seats.state.cache.layers[0].k
    stepped(engine, seats, hurry=False)
    assert old.is_deleted()
    assert programs.advance._cache_size() > 0
