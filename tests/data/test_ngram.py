"""Kneser-Ney: distributions that sum to one, and an independent implementation with dicts, from the formulas."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.data.ngram import fit_kneser_ney, modified_discounts

BOS = 0


def documents(seed, count, vocab):
    """Markov text, so that n-grams of every order repeat."""
    rng = np.random.default_rng(seed)
    successors = rng.integers(1, vocab, (vocab, 3))
    out = []
    for _ in range(count):
        document = [BOS]
        for _ in range(int(rng.integers(1, 40))):
            odd = rng.random() < 0.2
            document.append(int(rng.integers(1, vocab) if odd else successors[document[-1], rng.integers(0, 3)]))
        out.append(document)
    return out


def reference(docs, vocab, order):
    """p(w | history) by recursion over dictionaries, straight from Chen & Goodman."""
    grams = [Counter() for _ in range(order + 1)]
    left = [defaultdict(set) for _ in range(order + 1)]
    for document in docs:
        for n in range(1, order + 1):
            for i in range(len(document) - n + 1):
                gram = tuple(document[i : i + n])
                grams[n][gram] += 1
                if i > 0:
                    left[n][gram].add(document[i - 1])
    counts: list[dict] = [{}]
    for n in range(1, order + 1):
        counts.append(
            {
                gram: (count if n == order or gram[0] == BOS else len(left[n][gram]))
                for gram, count in grams[n].items()
                if gram != (BOS,)
            }
        )
    discounts = [None]
    for n in range(1, order + 1):
        of = Counter(counts[n].values())
        if all(of[k] for k in (1, 2, 3, 4)):
            y = of[1] / (of[1] + 2 * of[2])
            found = [k - (k + 1) * y * of[k + 1] / of[k] for k in (1, 2, 3)]
            discounts.append(found if all(0 <= d <= k for k, d in enumerate(found, 1)) else [0.5, 1.0, 1.5])
        else:
            discounts.append([0.5, 1.0, 1.5])

    def p(word, history):
        if history is None:
            return 1 / vocab
        n = len(history) + 1
        lower = history[1:] if history else None
        extensions = {gram[-1]: c for gram, c in counts[n].items() if gram[:-1] == history}
        total = sum(extensions.values())
        if not total:
            return p(word, lower)
        taken = {w: discounts[n][min(c, 3) - 1] if c else 0.0 for w, c in extensions.items()}
        own = extensions.get(word, 0) - taken.get(word, 0.0)
        return own / total + sum(taken.values()) / total * p(word, lower)

    return p


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_matches_an_independent_implementation(order):
    vocab = 12
    docs, unseen = documents(0, 60, vocab), documents(1, 4, vocab)
    model = fit_kneser_ney(np.concatenate(docs), vocab_size=vocab, bos_id=BOS, order=order)
    p = reference(docs, vocab, order)
    for document in unseen + docs[:2]:
        ours = model.log_probs(np.asarray(document))
        assert np.isnan(ours[0])
        for i in range(1, len(document)):
            history = tuple(document[max(0, i - order + 1) : i])
            assert math.isclose(ours[i], math.log(p(document[i], history)), rel_tol=1e-9)


@pytest.mark.parametrize("order", [1, 3, 5])
def test_probabilities_sum_to_one(order):
    """For seen, unseen, short and long contexts."""
    rng, vocab = np.random.default_rng(2), 30
    docs = documents(3, 80, vocab)
    model = fit_kneser_ney(np.concatenate(docs).astype(np.uint16), vocab_size=vocab, bos_id=BOS, order=order)
    contexts = [[BOS]] + [docs[i][: 1 + i % 7] for i in range(10)]
    contexts += [[BOS, *rng.integers(1, vocab, 6)] for _ in range(10)]
    for context in contexts:
        p = model.distribution(context)
        assert p.min() > 0
        assert abs(p.sum() - 1) < 1e-12


def test_log_probs_are_those_of_the_distribution_and_documents_are_apart():
    vocab = 20
    docs = documents(4, 50, vocab)
    model = fit_kneser_ney(np.concatenate(docs), vocab_size=vocab, bos_id=BOS, order=4)
    a, b = (np.asarray(d) for d in documents(5, 2, vocab))
    both = model.log_probs(np.concatenate([a, b]))
    np.testing.assert_array_equal(both, np.concatenate([model.log_probs(a), model.log_probs(b)]))
    for i in range(1, len(a)):
        assert both[i] == pytest.approx(math.log(model.distribution(a[:i])[a[i]]), rel=1e-12)


def test_a_small_example_by_hand():
    """Unigrams of "a b a c": continuation is not used in the highest order, so counts 2, 1, 1 less 1, .5, .5."""
    model = fit_kneser_ney(np.asarray([BOS, 1, 2, 1, 3]), vocab_size=5, bos_id=BOS, order=1)
    # Counts of counts n3 = n4 = 0, so the discounts fall back to .5, 1, 1.5: (2 - 1 + .5 + .5 = 2 of 4 go to 1/5).
    expected = np.asarray([0, 1, 0.5, 0.5, 0]) / 4 + 2 / 4 / 5
    np.testing.assert_allclose(model.distribution([BOS]), expected, rtol=1e-12)
    assert model.discounts == ((0.5, 1.0, 1.5),)


def test_discounts_of_known_counts_of_counts():
    counts = np.repeat([1, 2, 3, 4], [40, 15, 8, 5])
    y = 40 / 70
    assert modified_discounts(counts) == pytest.approx((1 - 2 * y * 15 / 40, 2 - 3 * y * 8 / 15, 3 - 4 * y * 5 / 8))


def test_text_must_begin_with_bos():
    with pytest.raises(UserError, match="BOS"):
        fit_kneser_ney(np.asarray([1, 2, 3]), vocab_size=4, bos_id=BOS)
    model = fit_kneser_ney(np.asarray([BOS, 1, 2]), vocab_size=4, bos_id=BOS, order=2)
    with pytest.raises(UserError, match="BOS"):
        model.log_probs(np.asarray([1]))
