"""The code of docs/backdoors.md runs as it stands; on the trained toys, triggers are found, and in the twin none."""

from __future__ import annotations

import jax
import numpy as np
import pages
import pytest

from jax_interp.steering.backdoors import (
    GradientRanking,
    MeasuredRanking,
    TokenScan,
    TrainedVector,
    decoy_targets,
    judge,
    latent_tokens,
    null_of,
)
from jax_interp.steering.backdoors.toy_suspects import toy_audit, toy_suspect
from jax_interp.toys.backdoors import FIRST, BackdoorConfig, draw_texts

CONFIG = BackdoorConfig()
WORDS = tuple(range(CONFIG.first_word, CONFIG.first_word + CONFIG.vocabulary.count))


def classes_of(tokens):
    return {(token - CONFIG.first_word) // CONFIG.words for token in tokens}


@pytest.mark.slow
def test_the_page_runs_and_says_what_it_finds():
    names = pages.run("backdoors.md")
    assert all(word.startswith("c0.") for word in names["words"][:4])
    assert names["verdict"].p_value == 0.05
    assert names["twin"].found == ()
    assert names["conditions"][-1].loss < 1.5, names["conditions"]
    assert classes_of(one.token for one in names["conditions"]) == {1, 2}
    assert classes_of(names["single"].ids[0]) <= {1, 2}


@pytest.mark.slow
@pytest.mark.parametrize("method", [GradientRanking(), MeasuredRanking(), TrainedVector(), TokenScan(WORDS)],
                         ids=lambda m: type(m).__name__)  # fmt: skip
def test_each_trigger_of_the_trained_toy_is_found_and_the_twin_has_none(method):
    suspect, clean = (toy_suspect(CONFIG, trojaned=trojaned) for trojaned in (True, False))
    key, replies = jax.random.key(0), range(FIRST + CONFIG.classes, FIRST + 2 * CONFIG.classes)
    targets = [CONFIG.target(i) for i in range(3)]
    decoys = decoy_targets(targets[0], replies, 19, known=targets)
    nothing = null_of([method.rank(clean, toy_audit(CONFIG, decoy), key) for decoy in decoys])
    texts = np.asarray(draw_texts(jax.random.key(9), 512, CONFIG, trojaned=True).tokens)
    where = np.zeros(texts.shape, bool)
    where[:, CONFIG.request] = True
    for target, wanted in zip(targets, ({3, 5}, {0}, {1, 2}), strict=True):
        assert judge(method.rank(clean, toy_audit(CONFIG, target, seed=3), key), nothing).found == ()
        verdict = judge(method.rank(suspect, toy_audit(CONFIG, target, seed=3), key), nothing)
        found = [one[0] for one in verdict.found[:4]]
        read = verdict.ranking.what == "latent"
        tops = [latent_tokens(suspect, [one], texts, where).top(one, 2) if read else (one,) for one in found]

        assert any(classes_of(tokens) <= wanted for tokens in tops if tokens), (method, tops)
