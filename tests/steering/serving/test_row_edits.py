"""A batch whose rows have edits of their own: each row is as if alone, and a row without edits is the bare model."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import LLAMA_LIKE, peaky

from jax_interp.core.errors import UserError
from jax_interp.models import generate, pad_left
from jax_interp.models.generation.generate import _generate
from jax_interp.steering import OPERATORS, Steer
from jax_interp.steering.serving import Request, RequestEdit, edit_rows
from jax_interp.steering.serving.row_edits import ServedValue, tables_of
from jax_interp.steering.steer import steered
from jax_interp.surgery import ValueTokens, at, call, edit, replan, values_at
from jax_interp.surgery.region import POSITIONS_FROM_ZERO

CONFIG = dataclasses.replace(LLAMA_LIKE, n_layers=2, d_model=16, n_heads=2, n_kv_heads=1, d_mlp=24)
WIDTH = CONFIG.d_model
TOKENS = ValueTokens(("batch", "pos", "d_model"), POSITIONS_FROM_ZERO)
RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(8, WIDTH)).astype(np.float32)
PROMPTS = [[5, 9, 33, 2, 17], [41, 3], [8, 8, 30, 1], [7], [12, 60, 61], [5, 9, 33, 2, 17], [22, 23], [1, 2, 3]]
PAIRS = list(zip(PROMPTS, VECTORS, strict=True))


def requests_of(n_new=6):
    """One request for each operator, and one without edits."""
    edits = [
        (RequestEdit(f"blocks.{i % 2}.resid_post", VECTORS[i], name, 0.7 + 0.2 * i),)
        for i, name in enumerate(OPERATORS)
    ]
    return [Request(prompt, n_new, one) for prompt, one in zip(PROMPTS, [*edits, ()], strict=True)]


@pytest.fixture(scope="module")
def model():
    return peaky(CONFIG)


def test_the_table_computes_every_operator_as_steer_does():
    x = jnp.asarray(RNG.normal(size=(8, 3, WIDTH)), jnp.float32)
    served = (ServedValue("blocks.*.resid_post", (0,), 1, WIDTH),)
    for strength in (0.0, 0.7, -1.3):
        edits = [RequestEdit("blocks.0.resid_post", VECTORS[i], name, strength) for i, name in enumerate(OPERATORS)]
        for row, one in enumerate(edits):
            (table,) = tables_of(Request([1], 1, (one,)), served, 1).values()
            found = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), table)(x[row : row + 1], TOKENS)
            expected = steered(
                x[row : row + 1], jnp.asarray(VECTORS[row][None, None]), jnp.full((1, 3), strength), one.operator
            )
            np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=one.operator)


@pytest.mark.parametrize("plan", [(), pytest.param("1", marks=pytest.mark.slow)], ids=["stacked", "mixed"])
def test_each_row_is_the_request_alone_for_every_operator(model, plan):
    model, requests = replan(model, plan), requests_of()
    tokens, mask = pad_left([request.tokens for request in requests])
    edited = edit_rows(model, requests, ["blocks.*.resid_post"])
    together = call(edited, tokens, mask=mask)
    new = generate(edited, tokens, 6, mask=mask).tolist()
    texts = set()
    for row, request in enumerate(requests):
        alone = edit_rows(model, [request], ["blocks.*.resid_post"]) if request.edits else model
        logits = call(alone, tokens[row : row + 1], mask=mask[row : row + 1])
        np.testing.assert_allclose(together[row], logits[0], atol=1e-5 * float(jnp.abs(logits).max()))
        assert new[row] == generate(alone, tokens[row : row + 1], 6, mask=mask[row : row + 1])[0].tolist()
        texts.add(tuple(new[row]))
    assert len(texts) > 4, "the edits change the texts"
    np.testing.assert_array_equal(together[7], call(model, tokens, mask=mask)[7])


def test_rows_without_edits_have_the_bits_of_the_bare_model(model):
    tokens, mask = pad_left(PROMPTS)
    bare = call(model, tokens, mask=mask)
    nothing = [Request(prompt, 1) for prompt in PROMPTS]
    np.testing.assert_array_equal(call(edit_rows(model, nothing, ["blocks.*.resid_post"]), tokens, mask=mask), bare)
    shut = [Request(p, 1, (RequestEdit("blocks.*.resid_post", v, "ablate", gate=False),)) for p, v in PAIRS]
    np.testing.assert_array_equal(call(edit_rows(model, shut, ["blocks.*.resid_post"]), tokens, mask=mask), bare)
    zero = [Request(p, 1, (RequestEdit("blocks.*.resid_post", v, "add", 0.0),)) for p, v in PAIRS]
    np.testing.assert_array_equal(call(edit_rows(model, zero), tokens, mask=mask), bare)


def test_positions_and_decay_count_in_the_text_of_the_row(model):
    """The values at the edited layer are the bare values plus factor times vector, position by position."""
    vector = VECTORS[0]
    cases = [
        (RequestEdit("blocks.1.resid_post", vector, start=-1), [0, 0, 0, 0, 1]),
        (RequestEdit("blocks.1.resid_post", vector, start=1, stop=-1), [0, 1, 1, 1, 0]),
        (RequestEdit("blocks.1.resid_post", vector, stop=2), [1, 1, 0, 0, 0]),
        (RequestEdit("blocks.1.resid_post", vector, strength=2.0, decay=0.5), [2, 2, 2, 2, 2]),
    ]
    requests = [Request(PROMPTS[0], 3, (one,)) for one, _ in cases]
    tokens, mask = pad_left([[*PROMPTS[0], 4, 6, 9]] * 4 + [[1] * 10])
    found = values_at(edit_rows(model, [*requests, Request([1], 1)]), "blocks.1.resid_post")
    both = [
        jax.jit(f)(tokens, mask=mask)["blocks.1.resid_post"] for f in (found, values_at(model, "blocks.1.resid_post"))
    ]
    factors = np.einsum("bpd,d->bp", both[0] - both[1], vector) / np.dot(vector, vector)
    after = [[1, 1, 1], [0, 0, 0], [0, 0, 0], [1, 0.5, 0.25]]
    expected = [[0, 0, *inside, *new] for (_, inside), new in zip(cases, after, strict=True)]
    np.testing.assert_allclose(factors[:4, 2:], np.asarray(expected)[:, 2:], atol=1e-5)


def test_two_edits_at_one_value_act_in_order(model):
    one = RequestEdit("blocks.1.resid_post", VECTORS[0], "ablate")
    two = RequestEdit("blocks.1.resid_post", VECTORS[1], "add", 2.0)
    tokens = jnp.asarray([PROMPTS[0]] * 2, jnp.int32)
    found = call(edit_rows(model, [Request(PROMPTS[0], 1, (one, two)), Request(PROMPTS[0], 1, (two, one))]), tokens)
    steps = [at("blocks.1.resid_post", Steer(jnp.asarray(e.vector), e.strength, e.operator)) for e in (one, two)]
    for row, order in enumerate((steps, steps[::-1])):
        alone = call(edit(model, *order), tokens[:1])
        np.testing.assert_allclose(found[row], alone[0], atol=1e-5 * float(jnp.abs(alone).max()))


def test_other_requests_do_not_compile_again(model):
    tokens = jnp.asarray([[5, 9, 33]], jnp.int32)
    run = lambda one: generate(edit_rows(model, [Request([5, 9, 33], 4, (one,))]), tokens, 4)
    run(RequestEdit("blocks.1.resid_post", VECTORS[0]))
    before = _generate._cache_size()
    run(RequestEdit("blocks.0.resid_post", VECTORS[1], "rotate", 2, start=-1, stop=7, decay=0.9))
    run(RequestEdit("blocks.*.resid_post", [1.0] * WIDTH, "at_least", np.float32(3)))
    assert _generate._cache_size() == before


def test_half_precision_and_stacked_tables_keep_the_bits_of_bare_rows():
    model = peaky(CONFIG, dtype=jnp.bfloat16)
    tokens = jnp.asarray([PROMPTS[0]] * 2, jnp.int32)
    steered = Request(PROMPTS[0], 1, (RequestEdit("blocks.*.mlp_out", VECTORS[0], "rotate", 0.5),))
    found = call(edit_rows(model, [steered, Request(PROMPTS[0], 1)]), tokens)
    bare = call(model, tokens)
    np.testing.assert_array_equal(found[1], bare[1])
    assert not np.allclose(found[0].astype(jnp.float32), bare[0].astype(jnp.float32), atol=0.05)


GOOD = RequestEdit("blocks.1.resid_post", VECTORS[0])
WRONG = {
    "layer": ({"address": "blocks.7.resid_post"}, "names no layer"),
    "value": ({"address": "blocks.1.resid_past"}, "no value"),
    "size": ({"vector": VECTORS[0][:5]}, "has 5 entries"),
    "matrix": ({"vector": VECTORS}, "one list of numbers"),
    "nan": ({"vector": np.full(WIDTH, np.nan)}, "NaN"),
    "operator": ({"operator": "ad"}, "no operator"),
    "strength": ({"strength": float("inf")}, "strength"),
    "decay": ({"decay": 1.5}, "decay"),
    "decay of 0": ({"decay": 0.0}, "decay"),
    "start": ({"start": 1.5}, "start"),
    "gate": ({"gate": 0.5}, "gate"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_edit_is_refused_by_name(model, case):
    changes, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        edit_rows(model, [Request([1, 2], 1, (dataclasses.replace(GOOD, **changes),))])
