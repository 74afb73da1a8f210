"""Detectors find constructed heads exactly, agree with loops in NumPy, and find the shipped model's real ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp import load
from jax_interp.analysis import (
    detect_head,
    diagonal_scores,
    duplicate_token_pattern,
    induction_pattern,
    needed,
    previous_token_pattern,
)
from jax_interp.core.errors import UserError
from jax_interp.models.language_modelling import repeated_tokens
from jax_interp.surgery import Activations, read

TOKENS = jnp.asarray([[0, 5, 6, 5, 7, 5, 6], [0, 1, 2, 3, 1, 2, 3]])
NAMES = ("previous_token_head", "duplicate_token_head", "induction_head")


def attention(seed=0, shape=(2, 2, 3, 7, 7)) -> np.ndarray:
    """Random causal patterns [layer, batch, head, pos, key]."""
    scores = np.tril(np.exp(np.random.default_rng(seed).standard_normal(shape)))
    return (scores / scores.sum(-1, keepdims=True)).astype(np.float32)


def as_read(pattern) -> Activations:
    return Activations({"blocks.*.attn.pattern": jnp.asarray(pattern)}, len(pattern))


def test_patterns_by_their_definitions():
    before, same, after = (
        np.asarray(f(TOKENS)) for f in (previous_token_pattern, duplicate_token_pattern, induction_pattern)
    )
    for b, row in enumerate(np.asarray(TOKENS)):
        for q in range(7):
            for k in range(7):
                assert before[b, q, k] == (k == q - 1)
                assert same[b, q, k] == (k < q and row[k] == row[q])
                assert after[b, q, k] == (1 <= k <= q and k - 1 < q and row[k - 1] == row[q])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("current", [False, True])
def test_both_measures_in_numpy(name, bos, current):
    pattern = attention()
    wanted = {
        "previous_token_head": previous_token_pattern,
        "duplicate_token_head": duplicate_token_pattern,
        "induction_head": induction_pattern,
    }[name](TOKENS)
    scores = {"mul": np.zeros((2, 3)), "abs": np.zeros((2, 3))}
    for layer in range(2):
        for head in range(3):
            for b in range(2):
                a = pattern[layer, b, head].astype(np.float64)
                difference = np.abs(a - np.asarray(wanted[b]))
                for x in (a, difference):
                    x[:, 0] *= not bos
                    x[np.diag_indices(7)] *= not current
                scores["mul"][layer, head] += (a * np.asarray(wanted[b])).sum() / a.sum() / 2
                scores["abs"][layer, head] += (1 - difference.mean() * 7) / 2
    for measure, expected in scores.items():
        got = jax.jit(
            detect_head, static_argnames=("detection_pattern", "error_measure", "exclude_bos", "exclude_current_token")
        )(as_read(pattern), TOKENS, name, exclude_bos=bos, exclude_current_token=current, error_measure=measure)
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_a_perfect_head_scores_one_and_a_custom_pattern_is_any_pattern():
    perfect = previous_token_pattern(TOKENS).at[:, 0, 0].set(1)
    pattern = jnp.stack([perfect, jnp.broadcast_to(jnp.eye(7), (2, 7, 7))], axis=1)[None]  # one layer, two heads
    np.testing.assert_allclose(detect_head(as_read(pattern), TOKENS, perfect), [[1, 0.5 / 7 * 2]], atol=1e-6)
    np.testing.assert_allclose(detect_head(as_read(pattern), TOKENS, perfect[0], error_measure="abs")[0, 0], 1)
    np.testing.assert_allclose(detect_head(as_read(pattern), TOKENS, jnp.eye(7))[0, 1], 1)


def test_padding_counts_for_nothing():
    """A row padded on the left scores as the row by itself."""
    short = attention(1, (2, 1, 3, 5, 5))
    padded = attention(2, (2, 1, 3, 7, 7))
    padded[..., 2:, :] = 0
    padded[..., 2:, 2:] = short
    mask = jnp.asarray([[False, False, True, True, True, True, True]])
    for measure in ("mul", "abs"):
        for name in NAMES:
            options = {"error_measure": measure, "exclude_bos": name == "previous_token_head"}
            alone = detect_head(as_read(short), TOKENS[:1, 2:], name, **options)
            together = detect_head(as_read(padded), TOKENS[:1], name, **options, mask=mask)
            np.testing.assert_allclose(together, alone, atol=1e-6)


def test_the_shipped_models_heads(call):
    """stdlib-small has one previous-token head, in layer 1, and induction heads in the layers after it: random tokens
    said twice show which."""
    model, tokenizer = load("stdlib-small")
    tokens = repeated_tokens(jax.random.key(0), vocab_size=2048, bos_id=tokenizer.bos_id, rows=4, length=30)
    assert tokens.shape == (4, 61)
    np.testing.assert_array_equal(tokens[:, 1:31], tokens[:, 31:])
    acts = call(read(model, needed(model, detect_head), output=False), tokens)
    previous, induction = diagonal_scores(acts, -1), diagonal_scores(acts, 1 - 30)
    assert {(1, 4)} == {tuple(map(int, at)) for at in np.argwhere(previous > 0.9)}
    heads = {(2, 1), (2, 2), (3, 1), (3, 4), (3, 5)}
    assert heads == {tuple(map(int, at)) for at in np.argwhere(induction > 0.4)}
    detected = detect_head(acts, tokens, "induction_head", exclude_bos=True)
    assert set(np.argsort(-detected.ravel())[:5].tolist()) == {8 * layer + head for layer, head in heads}
    assert detect_head(acts, tokens, "previous_token_head")[1, 4] > 0.9


def test_mistakes():
    acts = as_read(attention())
    with pytest.raises(UserError, match="induction_head, or give a pattern"):
        detect_head(acts, TOKENS, "induction")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"is \[7, 7\] or \[2, 7, 7\], got \(3, 3\)"):
        detect_head(acts, TOKENS, jnp.eye(3))
    with pytest.raises(UserError, match="choose from mul, abs"):
        detect_head(acts, TOKENS, "induction_head", error_measure="l2")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="attention looks back"):
        diagonal_scores(acts, 1)
