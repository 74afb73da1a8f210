"""Edits that compare the texts of a batch, or have an entry for each token: with padding, and in generation."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import LLAMA_LIKE, peaky

from jax_interp.core.pytrees import register_dataclass
from jax_interp.models import generate
from jax_interp.surgery import (
    Add,
    Clamp,
    Each,
    EditError,
    Freeze,
    Mean,
    Noise,
    Replace,
    Resample,
    Rotate,
    Scale,
    TokenEdit,
    Zero,
    at,
    edit,
    read,
    restore,
)

VALUE = "blocks.0.mlp_out"
MASKS = {
    "no": np.ones((3, 6), bool),
    "left": np.arange(6) >= np.array([[0], [3], [1]]),
    "right": np.arange(6) < np.array([[4], [6], [3]]),
    "mixed": np.array([[0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]], bool),
}
TOKENS = np.random.default_rng(0).integers(0, 64, (3, 6))


@pytest.fixture(scope="module")
def model():
    return peaky(LLAMA_LIKE)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class TowardsMean(TokenEdit):
    """A user's own edit that compares texts."""

    strength: jax.Array

    def __call__(self, x, tokens):
        return x + self.strength * (tokens.mean_over_rows(x) - x)


@pytest.mark.parametrize("side", MASKS)
@pytest.mark.parametrize("address", [VALUE, "blocks.1.attn.pattern"])
def test_padding_is_no_part_of_a_mean_or_a_donor(call, model, side, address):
    mask = MASKS[side]
    value = np.asarray(call(read(model, address), TOKENS, mask=mask)[1][address], np.float64)
    own = [value[i][..., row, :][..., row] if "pattern" in address else value[i][row] for i, row in enumerate(mask)]
    pos = 1 if "pattern" in address else 0
    lengths, donor = mask.sum(1), [1, 2, 0]
    means, donated = ([text.copy() for text in own] for _ in range(2))
    for i, n in enumerate(lengths):
        for p in range(n):
            here = np.s_[:, p, : p + 1] if pos else np.s_[p]
            means[i][here] = np.mean([text[here] for text, m in zip(own, lengths, strict=True) if m > p], axis=0)
            if lengths[donor[i]] > p:
                donated[i][here] = own[donor[i]][here]
    for fn, wanted in ((Mean(), means), (Resample(np.array(donor)), donated), (TowardsMean(jnp.float32(1)), means)):
        edited = np.asarray(call(read(edit(model, at(address, fn)), address), TOKENS, mask=mask)[1][address])
        for i, row in enumerate(mask):
            got = edited[i][..., row, :][..., row] if pos else edited[i][row]
            np.testing.assert_allclose(got, wanted[i], atol=1e-5, err_msg=f"{fn} of text {i}")


def by_full_forwards(call, model, tokens, mask, n: int):
    """Greedy tokens without a cache, as a loop of whole forward passes. `model(length)` is the edited model."""
    for _ in range(n):
        logits = np.asarray(call(model(tokens.shape[1]), tokens, mask=mask))
        tokens = np.concatenate([tokens, logits[:, -1:].argmax(-1)], axis=1)
        mask = np.concatenate([mask, np.ones((len(mask), 1), bool)], axis=1)
    return tokens[:, -n:]


EDITS = {
    "replace": (Replace, 2),
    "replace several": (Replace, [0, 2]),
    "replace the prompt": (Replace, slice(0, 3)),
    "freeze": (Freeze, 1),
    "add": (Add, -1),
    "scale": (Scale, -2),
    "clamp": (lambda array: Clamp(array - 0.5, array + 0.5), 2),
    "mean": (Mean, 1),
    "noise": (lambda array: Noise(jax.random.key(0), jnp.abs(array)), 2),
    "rotate": (lambda array: Rotate(jnp.eye(32)[:, :5], array), 2),
    "each": (lambda array: Each(Replace(array)), 2),
}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("side", ["no", "left"])
def test_a_donor_is_patched_into_a_prompt_and_not_into_what_is_generated(call, model, name, side):
    make, pos = EDITS[name]
    address = "blocks.*.resid_post" if name == "each" else "blocks.1.resid_post"
    mask = MASKS[side]
    donor = 3.0 * np.asarray(call(read(model, address), TOKENS[::-1], mask=mask)[1][address])

    def edited(columns: int, axis: int = -2):
        """The model with the donor lengthened by numbers that must not matter."""
        width = [(0, 0)] * donor.ndim
        width[axis] = (0, columns - donor.shape[axis])
        fn = make(jnp.asarray(np.pad(donor, width, constant_values=77.0)))
        negative = {-1: -1, -2: -2}.get(pos) if isinstance(pos, int) else None
        if negative is None:
            return edit(model, at(address, fn, pos=pos))
        prompt = mask.sum(1) + negative  # without a cache a negative position counts from the end of the whole text
        real = np.concatenate([mask, np.ones((3, columns - 6), bool)], axis=1)
        return edit(model, at(address, fn, where=(np.cumsum(real, axis=1) - 1 == prompt[:, None]) & real))

    wanted = by_full_forwards(call, edited, TOKENS, mask, 3)
    given = None if side == "no" else mask
    for fn in (at(address, make(jnp.asarray(donor)), pos=pos),):
        np.testing.assert_array_equal(generate(edit(model, fn), TOKENS, 3, mask=given), wanted)


def test_a_mask_over_the_prompt_leaves_new_tokens_alone(call, model):
    where = np.random.default_rng(1).random((3, 6)) < 0.5
    longer = lambda n: np.pad(where, [(0, 0), (0, n - 6)])
    edited = lambda n: edit(model, at("blocks.1.resid_post", Scale(3.0), where=longer(n)))
    wanted = by_full_forwards(call, edited, TOKENS, MASKS["left"], 3)
    np.testing.assert_array_equal(generate(edited(6), TOKENS, 3, mask=MASKS["left"]), wanted)


def test_a_donor_of_the_prompt_at_every_position_is_an_error(model):
    donor = jnp.zeros((3, 6, 32))
    generate(edit(model, at(VALUE, Replace(donor))), TOKENS, 1)
    with pytest.raises(EditError, match=r"its array ends after 6 positions, and the text has up to 8: give pos="):
        generate(edit(model, at(VALUE, Replace(donor))), TOKENS, 3)
    tokens = generate(edit(model, at(VALUE, Replace(donor), pos=slice(0, None))), TOKENS, 3)
    np.testing.assert_array_equal(tokens[:, 1:], -1)  # a span is data: NaN, and no token


@pytest.mark.parametrize("side", ["no", "left"])
def test_what_generation_read_is_patched_back_into_generation(model, side):
    names = ("blocks.*.resid_mid", "blocks.1.attn.pattern", "blocks.2.attn.z")
    mask = MASKS[side]
    tokens, acts = generate(read(model, names), TOKENS, 4, mask=mask)
    other = (TOKENS + 1) % 64  # the patched values decide, not the prompt
    np.testing.assert_array_equal(generate(edit(model, restore(acts)), other, 4, mask=mask), tokens)


def test_the_noise_of_a_token_is_its_own_and_does_not_depend_on_the_call(call, model):
    noisy = edit(model, at(VALUE, Noise(jax.random.key(3), 2.0)))
    wanted = by_full_forwards(call, lambda n: noisy, TOKENS, MASKS["left"], 4)
    tokens, acts = generate(read(noisy, VALUE), TOKENS, 4, mask=MASKS["left"])
    np.testing.assert_array_equal(tokens, wanted)
    clean = edit(model, at("blocks.*.mlp_out", Zero()))
    alone = edit(clean, at(VALUE, Noise(jax.random.key(3))))
    _, acts = generate(read(alone, VALUE), TOKENS, 3)
    noise = np.asarray(acts[VALUE]).reshape(-1, 32)
    assert np.abs(np.corrcoef(noise) - np.eye(len(noise))).max() < 0.75


def test_rows_that_have_stopped_are_no_part_of_a_mean(model):
    """The mean of the rows that go on is that of a batch without the row that has stopped."""
    meaned = edit(model, at("blocks.1.mlp_out", Mean(), pos=slice(6, None)))
    first = np.asarray(generate(model, TOKENS, 2))
    stop = [int(first[1, 0])]
    if stop[0] in first[[0, 2], 0]:
        pytest.skip("two rows stop together")
    both = np.asarray(generate(meaned, TOKENS, 5, stop=stop))
    rest = np.asarray(generate(meaned, TOKENS[[0, 2]], 5, stop=stop))
    np.testing.assert_array_equal(both[[0, 2]], rest)
    assert (both[1] == stop[0]).all()
