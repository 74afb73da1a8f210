"""Position schemes against their closed forms: ALiBi, sinusoids, pairs of rotated features, windows, softcaps."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from small_models import LLAMA_LIKE, peaky

from jax_interp.core.rotary import frequencies, rotate, rotation
from jax_interp.models import Rope, RopeScaling
from jax_interp.models.attention_context import alibi
from jax_interp.models.decoder import sinusoids
from jax_interp.surgery import read

NOWHERE = dataclasses.replace(LLAMA_LIKE, positions="none")


def scores_of(config, call, tokens):
    _, acts = call(read(peaky(config), "blocks.0.attn.attn_scores"), tokens)
    return np.asarray(acts["blocks.0.attn.attn_scores"])


@pytest.mark.parametrize(
    ("n_heads", "slopes"),
    [
        (8, [2.0**-i for i in range(1, 9)]),
        (4, [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]),
        (6, [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]),  # not a power of two: as the paper's code
    ],
)
def test_alibi_slopes(n_heads, slopes):
    distance = jnp.asarray([[[3]]])
    np.testing.assert_allclose(alibi(n_heads, distance)[0, :, 0, 0], -3 * np.asarray(slopes))


def test_alibi_adds_minus_slope_times_distance(call, tokens):
    plain = scores_of(NOWHERE, call, tokens)
    biased = scores_of(dataclasses.replace(NOWHERE, positions="alibi"), call, tokens)
    n = tokens.shape[1]
    distance = np.arange(n)[:, None] - np.arange(n)[None]
    seen = distance >= 0
    slopes = np.asarray([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8])[None, :, None, None]
    np.testing.assert_allclose((biased - plain)[..., seen], (-slopes * distance)[..., seen].repeat(2, 0), atol=1e-5)


def test_sinusoids():
    positions = jnp.asarray([[0, 1, 7]])
    got = np.asarray(sinusoids(positions, 6))[0]
    for row, p in zip(got, (0, 1, 7), strict=True):
        for i in range(3):
            angle = p / 10_000 ** (2 * i / 6)
            np.testing.assert_allclose(row[2 * i : 2 * i + 2], [math.sin(angle), math.cos(angle)], atol=1e-6)


@pytest.mark.parametrize("adjacent", [False, True])
def test_rotation_turns_pairs_and_keeps_relative_positions(adjacent):
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal((1, 1, 1, 10)), jnp.float32) for _ in range(2))
    rope = Rope(base=100.0, dim=6, adjacent=adjacent)
    turn = lambda x, p: np.asarray(rotate(x, rotation(jnp.asarray([[p]]), rope, 10), adjacent), np.float64)[0, 0, 0]
    pairs = [(0, 1), (2, 3), (4, 5)] if adjacent else [(0, 3), (1, 4), (2, 5)]
    expected = np.asarray(q, np.float64)[0, 0, 0].copy()
    for i, (a, b) in enumerate(pairs):
        z = complex(expected[a], expected[b]) * np.exp(1j * 5 * 100.0 ** (-2 * i / 6))
        expected[a], expected[b] = z.real, z.imag
    np.testing.assert_allclose(turn(q, 5), expected, atol=1e-6)
    np.testing.assert_allclose(turn(q, 9) @ turn(k, 4), turn(q, 5) @ turn(k, 0), atol=1e-5)


def test_yarn_keeps_what_turns_often_and_divides_what_hardly_turns():
    rope = Rope(base=10_000.0, scaling=RopeScaling("yarn", 4.0, original_n_ctx=2048))
    plain, scaled = frequencies(Rope(base=10_000.0), 64), frequencies(rope, 64)
    turns = 2048 * plain / (2 * math.pi)
    np.testing.assert_allclose(scaled[turns > 40], plain[turns > 40])
    np.testing.assert_allclose(scaled[turns < 0.8], plain[turns < 0.8] / 4)
    between = (turns < 25) & (turns > 1.5)
    assert between.any()
    assert ((scaled < plain) & (scaled > plain / 4))[between].all()


def test_a_sliding_layer_sees_its_window_and_a_full_one_everything(call, tokens):
    config = dataclasses.replace(LLAMA_LIKE, window=3, sliding=(True, False, True))
    _, acts = call(read(peaky(config), "blocks.*.attn.pattern"), tokens)
    n = tokens.shape[1]
    distance = np.arange(n)[:, None] - np.arange(n)[None]
    for layer, pattern in enumerate(np.asarray(acts["blocks.*.attn.pattern"])):
        seen = (distance >= 0) & ((distance < 3) | (not config.sliding[layer]))
        assert (pattern[..., seen] > 0).all()
        assert (pattern[..., ~seen] == 0).all()


def test_softcaps(call, tokens):
    plain = scores_of(NOWHERE, call, tokens)
    capped = scores_of(dataclasses.replace(NOWHERE, attn_softcap=2.0), call, tokens)
    seen = np.tril(np.ones(plain.shape[-2:], bool))
    np.testing.assert_allclose(capped[..., seen], 2 * np.tanh(plain[..., seen] / 2), atol=1e-5)
    logits, low = (call(peaky(dataclasses.replace(NOWHERE, logit_softcap=cap)), tokens) for cap in (0.0, 1.5))
    np.testing.assert_allclose(low, 1.5 * np.tanh(np.asarray(logits) / 1.5), atol=1e-5)
