"""What a sampler does to words: closed forms on a table of next tokens, and the frequencies of what is drawn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import LLAMA_LIKE, peaky

from jax_interp.core.errors import UserError
from jax_interp.models import Greedy, Sample
from jax_interp.models.generation.sampling_bias import drawn_shares, word_bias, word_log_probs


def table(p):
    """A model whose next token depends on the last one: row -> probabilities."""
    logits = jnp.log(jnp.maximum(jnp.asarray(p, jnp.float32), 1e-30))
    return jax.tree_util.Partial(lambda logits, tokens: logits[tokens], logits)


START, A, B, C, ONE, TWO = range(6)
NAMES = table([
    [0, 0.2, 0.4, 0.4, 0, 0],
    [1, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0.5, 0.5],
    [0, 0, 0, 0, 0.5, 0.5],
    [1, 0, 0, 0, 0, 0],
    [1, 0, 0, 0, 0, 0],
])  # fmt: skip
WORDS = [(A,), (B, ONE), (B, TWO), (C, ONE), (C, TWO)]


@pytest.mark.parametrize(
    ("choose", "alone", "shared"),
    [
        (Sample(), 0.2, 0.2),
        (Sample(0.8), 0.1737, 0.2066),
        (Sample(0.5), 0.1111, 0.2222),
        (Sample(0.1), 0.0005, 0.2499),
        (Sample(top_k=2), 0.0, 0.25),
        (Sample(top_p=0.7), 0.0, 0.25),
    ],
)
def test_five_names_as_likely_one_of_them_a_single_token(choose, alone, shared):
    """B. Long's example: mass moves to words that share a first token."""
    bias = word_bias(NAMES, [START], WORDS, choose)
    np.testing.assert_allclose(bias.plain, 0.2, atol=1e-6)
    np.testing.assert_allclose(bias.drawn, [alone] + [shared] * 4, atol=5e-5)
    np.testing.assert_allclose(bias.tempered, 0.2, atol=1e-6)  # words as likely stay so at any temperature
    q = np.asarray([alone] + [shared] * 4)
    np.testing.assert_allclose(bias.kl, np.sum(q * np.log(np.maximum(q, 1e-12) / 0.2)), atol=5e-3)
    np.testing.assert_allclose(bias.mean(bias.n_tokens, "plain"), 1.8, atol=1e-6)
    np.testing.assert_allclose(bias.mean(bias.n_tokens), alone + 8 * shared, atol=1e-3)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_word_of_k_tokens_is_sharpened_k_times(k):
    p, t = 0.7, 0.6
    coin = table([[p, 1 - p]] * 2)
    bias = word_bias(coin, [0], [(0,) * k, (1,) * k], Sample(t))
    one, other = p ** (1 / t), (1 - p) ** (1 / t)
    np.testing.assert_allclose(bias.plain, [p**k, (1 - p) ** k], rtol=1e-5)
    np.testing.assert_allclose(bias.drawn, [(x / (one + other)) ** k for x in (one, other)], rtol=1e-5)
    # of the two words alone, the ratio is that of the tempered words: the token's, k times
    np.testing.assert_allclose(bias.drawn[0] / bias.drawn[1], (p / (1 - p)) ** (k / t), rtol=1e-4)
    np.testing.assert_allclose(bias.tempered[0] / bias.tempered[1], (p / (1 - p)) ** (k / t), rtol=1e-4)


@pytest.mark.slow
def test_what_is_drawn_has_the_exact_distribution():
    model, prompt = peaky(LLAMA_LIKE), [5, 9, 33]
    first = np.argsort(-np.asarray(word_log_probs(model, prompt, [(i,) for i in range(64)], Sample())))[:3]
    words = [(int(first[0]), int(j)) for j in first] + [(int(first[1]),), (int(first[2]),)]
    for choose in (Sample(), Sample(0.7, top_k=5)):
        exact = np.exp(word_log_probs(model, prompt, words, choose))
        shares = drawn_shares(model, prompt, words, choose, jax.random.key(0), 4000)
        np.testing.assert_allclose(shares, exact, atol=4 * np.sqrt(0.25 / 4000))
    assert word_log_probs(model, prompt, [(int(first[0]),)], Greedy())[0] == 0


def test_words_that_do_not_exclude_each_other_are_refused():
    with pytest.raises(UserError, match="begins with the word"):
        word_bias(NAMES, [START], [(B,), (A,), (B, ONE)], Sample())
    with pytest.raises(UserError, match="at least one token"):
        word_bias(NAMES, [START], [()], Sample())
