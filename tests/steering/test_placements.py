"""Placements act on the same tokens in whole texts and in generation, whatever the padding. NumPy says which tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import GPT2_LIKE, peaky

from jax_interp.core.errors import UserError
from jax_interp.models import generate
from jax_interp.steering import SteeringVector
from jax_interp.steering.applying import (
    after_marker,
    at_positions,
    first,
    from_position,
    from_prompt_end,
    generated,
    last_of_prompt,
    prompt,
    with_ids,
)
from jax_interp.steering.placement import placed
from jax_interp.surgery import Zero, at, call, edit, read, replan

ADDRESS = "blocks.1.resid_post"
PROMPTS = [[5, 9, 9, 3, 7], [4, 9, 2], [8, 1, 6, 9, 5, 2, 3]]
N_NEW = 4
"""The last new token is never read, so values have three new positions."""

# Which of the tokens of a text with `n` tokens of prompt: (placement for all rows, rule for one row).
CASES = {
    "generated": (generated(), lambda i, n, id, row: i >= n),
    "prompt": (prompt(), lambda i, n, id, row: i < n),
    "last of prompt": (last_of_prompt(2), lambda i, n, id, row: n - 2 <= i < n),
    "from prompt end": (from_prompt_end(-1), lambda i, n, id, row: i >= n - 1),
    "first": (first(2), lambda i, n, id, row: i < 2),
    "from position": (from_position(jnp.array([3, 1, 5])), lambda i, n, id, row: i >= (3, 1, 5)[row]),
    "positions": (at_positions([1, -1]), lambda i, n, id, row: i in (1, n - 1)),
    "own positions": (
        at_positions([[0, 1], [-1, -2], [8, 3]]),
        lambda i, n, id, row: i in ((0, 1), (n - 1, n - 2), (8, 3))[row],
    ),
    "ids": (with_ids([9, 5]), lambda i, n, id, row: id in (9, 5)),
    "product": ((generated(), first(6)), lambda i, n, id, row: n <= i < 6),
}


def padded(side: str) -> tuple[np.ndarray, np.ndarray]:
    longest = max(map(len, PROMPTS))
    tokens, mask = np.zeros((3, longest), np.int32), np.zeros((3, longest), bool)
    for row, ids in enumerate(PROMPTS):
        there = slice(longest - len(ids), None) if side == "left" else slice(0, len(ids))
        tokens[row, there], mask[row, there] = ids, True
    return tokens, mask


@pytest.fixture(scope="module")
def model():
    return peaky(GPT2_LIKE)


# Each case has its own value. What is added to it is far larger than every value, and a norm stands before all others.
PLACES = [f"blocks.{layer}.{name}" for name in ("attn_out", "mlp_out", "attn.q", "attn.k") for layer in range(3)]
WHERE = dict(zip(CASES, PLACES, strict=False))


def steered_everywhere(model, placements):
    """The model with one vector for each case, at its own value, which is read."""
    width = {"attn.q": GPT2_LIKE.d_head, "attn.k": GPT2_LIKE.d_head}
    edits = []
    for name, placement in placements.items():
        address = WHERE[name]
        vector = jnp.ones(width.get(address.split(".", 2)[2], GPT2_LIKE.d_model))
        edits += SteeringVector({address: vector}).using(tokens=placement).edits(1e4)
    return read(edit(model, edits), *(WHERE[name] for name in placements))


def hits(value) -> np.ndarray:
    """Whether the vector was added to each token."""
    value = np.abs(np.asarray(value))
    return value.reshape(*value.shape[:2], -1).min(axis=-1) > 5e3


@pytest.mark.parametrize("side", ["left", "right"])
def test_generation_steers_these_tokens(model, side):
    tokens, mask = padded(side)
    steered = steered_everywhere(model, {name: placement for name, (placement, _) in CASES.items()})
    new, acts = generate(steered, tokens, N_NEW, mask=mask)
    for name, (_, rule) in CASES.items():
        hit = hits(acts[WHERE[name]])
        for row, ids in enumerate(PROMPTS):
            text = [*ids, *np.asarray(new)[row, :-1].tolist()]
            real = np.concatenate([mask[row], np.ones(N_NEW - 1, bool)])
            assert hit[row, real].tolist() == [rule(i, len(ids), id, row) for i, id in enumerate(text)], name


@pytest.mark.parametrize("side", ["left", "right"])
def test_whole_texts_with_a_given_prompt_are_steered_at_the_same_tokens(model, side):
    """Each text is a prompt and new tokens. Only its first tokens are the prompt."""
    n = np.array([4, 2, 5])
    given = {name: placement for name, (placement, _) in CASES.items()} | {
        "generated": generated(n), "prompt": prompt(n), "last of prompt": last_of_prompt(2, n),
        "from prompt end": from_prompt_end(-1, n), "positions": at_positions([1, -1], n),
        "product": (generated(n), first(6)),
    }  # fmt: skip
    del given["own positions"]  # the third text has no position 8
    tokens, mask = padded(side)
    _, acts = call(steered_everywhere(model, given), tokens, mask=mask)
    for name in given:
        for row, ids in enumerate(PROMPTS):
            expected = [CASES[name][1](i, n[row], id, row) for i, id in enumerate(ids)]
            assert hits(acts[WHERE[name]])[row, mask[row]].tolist() == expected, name


def test_the_end_of_the_instruction():
    tokens, mask = padded("left")
    assert after_marker(tokens, [9], mask).tolist() == [3, 2, 4]
    assert after_marker(tokens[:1], [9, 3], mask[:1]).tolist() == [4]
    with pytest.raises(UserError, match="row 1 does not have the marker"):
        after_marker(tokens, [9, 3], mask)


@pytest.mark.slow
def test_other_edits_are_placed_too_and_keep_their_bits_elsewhere(model):
    tokens, mask = padded("left")
    plain = call(read(model, ADDRESS), tokens, mask=mask)[1][ADDRESS]
    steered = edit(model, placed([at(ADDRESS, Zero())], first(2)))
    acts = call(read(steered, ADDRESS), tokens, mask=mask)[1][ADDRESS]
    for row in range(len(PROMPTS)):
        assert not np.asarray(acts[row][mask[row]][:2]).any()
        assert (acts[row][mask[row]][2:] == plain[row][mask[row]][2:]).all()


@pytest.mark.slow
def test_stacked_and_unrolled_are_steered_alike(model):
    vector = SteeringVector({ADDRESS: jnp.linspace(-1.0, 1.0, GPT2_LIKE.d_model)})
    edits = vector.using("rotate", tokens=last_of_prompt(2)).edits(1.0)
    tokens, mask = padded("left")
    logits = call(edit(model, edits), tokens, mask=mask)
    there = call(edit(replan(model, "*"), edits), tokens, mask=mask)
    np.testing.assert_allclose(logits[mask], there[mask], atol=1e-4)


def test_another_placement_of_a_kind_does_not_compile_again(model):
    vector = SteeringVector({ADDRESS: jnp.ones(GPT2_LIKE.d_model)})
    traced = []

    @jax.jit
    def run(model, tokens):
        traced.append(1)
        return model(tokens)

    for window in (first(2), prompt(), generated(), from_prompt_end(jnp.int32(-3)), from_prompt_end(-4)):
        run(edit(model, vector.using(tokens=window).edits(2.0)), jnp.ones((1, 5), jnp.int32))
    assert len(traced) == 2  # from the start of the text, and from the end of the prompt


def test_what_is_wrong_is_said(model):
    vector = SteeringVector({ADDRESS: jnp.ones(GPT2_LIKE.d_model)})
    with pytest.raises(UserError, match=r"positions go to pos="):
        vector.using(tokens=slice(3, None))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="whole numbers"):
        at_positions([0.5])
    with pytest.raises(UserError, match="whole numbers"):
        with_ids([])
    with pytest.raises(UserError, match="one for each row"):
        edit(model, vector.using(tokens=first(jnp.ones((2, 3), jnp.int32))).edits())(jnp.ones((2, 3), jnp.int32))
    for outside in ([9], [-4]):
        logits = call(edit(model, vector.using(tokens=at_positions(outside)).edits()), jnp.ones((2, 3), jnp.int32))
        assert jnp.isnan(logits).all()
