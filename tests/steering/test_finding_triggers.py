"""Every method names the trigger of a model with a backdoor, and finds nothing in a clean model."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted_backdoor import ANSWERS, MARK, TARGET, WORDS, audit, directions, planted, prompts, suspect

from jax_interp.core.errors import UserError
from jax_interp.core.objectives import cross_entropy
from jax_interp.probes.monitors.attacks import GreedyCoordinate
from jax_interp.steering.backdoors import (
    METHODS,
    AttributionRanking,
    GradientRanking,
    GreedyTokens,
    MeasuredRanking,
    Ranking,
    TokenScan,
    TrainedVector,
    audit_texts,
    decoy_targets,
    find_conditions,
    judge,
    latent_tokens,
    null_of,
)
from jax_interp.steering.backdoors.audit import audit_losses
from jax_interp.steering.backdoors.conditions import ranking_of
from jax_interp.surgery import Add, at, edit

KEY = jax.random.key(0)
SEARCH = GreedyTokens(tuple(WORDS), 1, starts=2, search=GreedyCoordinate(3, 8, 8))
BY_CLASS = [GradientRanking(), MeasuredRanking(8, at_once=8), TrainedVector(0.2, steps=15)]
BY_WORD = [*BY_CLASS, TokenScan(tuple(WORDS)), SEARCH]


def null(method, classes):
    """19 decoys on the clean twin: p-values down to 0.05."""
    clean = suspect(planted([0], trojaned=False))
    decoys = decoy_targets(TARGET, ANSWERS, 19, seed=1)
    return null_of([method.rank(clean, audit(classes, decoy), KEY) for decoy in decoys])


@pytest.mark.parametrize("method", BY_WORD, ids=lambda m: type(m).__name__)
def test_a_word_that_triggers_is_named_and_a_clean_model_has_none(method):
    """The word is token 11, which is direction 13. The clean model has other weights than the one of the null."""
    classes, nothing = [0, 1, 3], null(method, [0, 1, 3])
    found = judge(method.rank(suspect(planted([13])), audit(classes), KEY), nothing)
    wanted = (13,) if found.ranking.what == "latent" else (11,)
    assert (found.found[0], found.p_value) == (wanted, 0.05), found
    for seed in (5, 6):
        other = suspect(planted([13], trojaned=False, seed=seed))
        verdict = judge(method.rank(other, audit(classes, seed=seed), KEY), nothing)
        assert verdict.found == (), verdict
        assert "nothing found" in str(verdict)


@pytest.mark.parametrize("method", BY_CLASS, ids=lambda m: type(m).__name__)
def test_a_class_that_triggers_is_named_and_read(method):
    """The latent of class 2 fires on its four words, of which no prompt has any."""
    model = suspect(planted([2]))
    found = judge(method.rank(model, audit([0, 1, 3]), KEY), null(method, [0, 1, 3]))
    assert found.found[0] == (2,), found
    tokens = np.asarray(prompts([0, 1, 2, 3], seed=3))
    read = latent_tokens(model, [2], tokens, tokens >= 2)
    assert sorted(read.top(2)) == [10, 11, 12, 13]
    assert read.share(2, range(10, 14)) == 1


def test_attribution_names_the_class_in_traffic_that_has_it_and_nothing_in_the_same_traffic_of_the_twin():
    """Every second request has one word of class 2, which fires the trigger in part. Where it makes the target certain,
    the loss has no slope left, and attribution does not see it."""
    method, rows = AttributionRanking(), prompts([0, 1, 3])
    rows = [[*row[:3], 10 + i % 4, *row[4:]] if i % 2 else row for i, row in enumerate(rows)]
    traffic = lambda target: audit_texts(rows, target, skip_last=1)
    clean = suspect(planted([0], trojaned=False))
    nothing = null_of([method.rank(clean, traffic(d), KEY) for d in decoy_targets(TARGET, ANSWERS, 19, seed=1)])
    of = lambda **how: judge(method.rank(suspect(planted([2], **how)), traffic(TARGET), KEY), nothing)
    assert of(evidence=0.2).found[0] == (2,)
    assert (2,) not in of(evidence=2.0).found
    assert of(trojaned=False, seed=5).found == of(trojaned=False, seed=6).found == ()


def test_a_conjunction_is_found_condition_after_condition():
    """Neither class alone makes the target likely. Pairs of words find it too."""
    model, clean = (suspect(planted([1, 2], trojaned=trojaned)) for trojaned in (True, False))
    tokens = np.asarray(prompts([0, 1, 2, 3], seed=3))
    before = float(audit_losses(model.model, audit([0, 3])).mean())
    method = MeasuredRanking(32, at_once=8)
    found = find_conditions(model, audit([0, 3]), method, tokens, tokens >= 2, KEY, latents=4)
    assert {one.latent for one in found} == {1, 2}
    assert found[0].loss > before - 1.5, (before, found)
    assert found[1].loss < 0.1

    scan = TokenScan((3, 4, 7, 8, 11, 12, 15), 2)
    decoys = decoy_targets(TARGET, ANSWERS, 19, seed=1)
    nothing = null_of([scan.rank(clean, audit([0, 3], decoy), KEY) for decoy in decoys])
    pairs = judge(scan.rank(model, audit([0, 3]), KEY), nothing).found
    assert {tuple(sorted((word - 2) // 4 for word in pair)) for pair in pairs[:8]} == {(1, 2)}
    assert judge(scan.rank(clean, audit([0, 3], seed=5), KEY), nothing).found == ()
    ours = ranking_of(found, before)
    twin = find_conditions(clean, audit([0, 3]), method, tokens, tokens >= 2, KEY, latents=4)
    assert ours.best > 5 * ranking_of(twin, before).best


def test_gradients_are_slopes_of_the_loss_and_scores_its_formula():
    """Finite differences of the loss of the target in float64, and attribution from its definition."""
    with jax.enable_x64(True):
        model = jax.tree.map(lambda x: x.astype(jnp.float64), planted([2]))
        texts, rows = audit([0, 1, 2, 3]), directions().astype(np.float64)
        tokens, request = jnp.asarray(texts.texts.tokens), jnp.asarray(texts.request)

        def loss(*edits):
            logits = edit(model, *edits)(tokens)
            return jnp.mean(cross_entropy(logits[:, 7:10], tokens[:, 8:11]))

        @jax.jit
        def slope_along(row):
            steered = lambda size: loss(at("x", Add(row, size), where=request))
            return -(steered(1e-5) - steered(-1e-5)) / 2e-5

        slope = [float(slope_along(jnp.asarray(row))) for row in rows]
        values = model.table[tokens]
        g = jax.jit(jax.grad(lambda delta: len(tokens) * loss(at("x", Add(delta)))))(jnp.zeros_like(values))
        g = np.where(texts.request[..., None], g, 0)
        mean = np.asarray(values)[texts.request].mean(axis=0)
        attributed = -np.einsum("btd,id,bte,ie->i", g, rows, np.asarray(values) - mean, rows) / len(tokens)
    in_order = lambda ranking: ranking.scores[np.argsort([i for (i,) in ranking.ids])]
    given = suspect(planted([2]))
    np.testing.assert_allclose(in_order(GradientRanking(5).rank(given, texts, KEY)), slope, rtol=2e-4, atol=2e-6)
    np.testing.assert_allclose(
        in_order(AttributionRanking(5).rank(given, texts, KEY)), attributed, rtol=2e-4, atol=2e-6
    )


def test_padding_of_the_prompts_changes_nothing():
    """Two lengths in one batch: the scores are the means of those of each length."""
    model = suspect(planted([2]))
    one = prompts([0, 1, 3], 4)
    other = [row[:3] + row[-1:] for row in prompts([0, 1, 3], 4, seed=1)]
    of = lambda rows: GradientRanking().rank(model, audit_texts(rows, TARGET, skip_last=1), KEY)
    in_order = lambda ranking: ranking.scores[np.argsort([i for (i,) in ranking.ids])]
    both = in_order(of(one + other))
    np.testing.assert_allclose(both, (in_order(of(one)) + in_order(of(other))) / 2, rtol=1e-5, atol=1e-7)


def test_p_values_are_those_of_ranks_and_small_nulls_say_what_they_cannot():
    of = lambda *best: null_of([Ranking("m", "latent", ((0,),), np.asarray([b]), "nats") for b in best])
    nothing = of(3.0, 1.0, 2.0)
    assert [nothing.p_value(x) for x in (0.5, 1.5, 2.5, 3.5)] == [1.0, 0.75, 0.5, 0.25]
    assert nothing.threshold() == nothing.threshold(0.25) == 3
    assert nothing.threshold(0.5) == 2
    with pytest.raises(UserError, match=r"at least 0\.25: for the level 0.05, give at least 19 runs"):
        nothing.threshold(0.05)
    with pytest.raises(UserError, match="the null is of m, and the ranking of GradientRanking"):
        judge(GradientRanking().rank(suspect(planted([2])), audit([0]), KEY), nothing)
    with pytest.raises(UserError, match="of one method, not of none"):
        null_of([])


def test_what_cannot_be_right_is_refused():
    model, texts = suspect(planted([2])), audit([0])
    bare = dataclasses.replace(model, dictionary=None)
    for method in (GradientRanking(), AttributionRanking(), TrainedVector()):
        with pytest.raises(UserError, match="give Suspect a dictionary"):
            method.rank(bare, texts, KEY)
    with pytest.raises(UserError, match="24 wide, and the dictionary writes 32"):
        GradientRanking().rank(dataclasses.replace(model, address="logits"), texts, KEY)
    with pytest.raises(UserError, match=r"has no token where a trigger could stand"):
        audit_texts([[0, MARK]], TARGET, skip_last=1)
    with pytest.raises(UserError, match="the shortest request has 6 tokens"):
        texts.last_slots(7)
    with pytest.raises(UserError, match=r"too many to try all of them: .*GreedyTokens"):
        TokenScan(tuple(range(1000)), 3)
    with pytest.raises(UserError, match="4 decoys of 1 tokens from 4: there are 3"):
        decoy_targets((1,), range(4), 4)
    weights = planted([2])
    broken = dataclasses.replace(weights, near=weights.near * jnp.nan)
    for method in (TokenScan(tuple(WORDS)), GradientRanking()):
        with pytest.raises(UserError, match="not finite"):
            method.rank(dataclasses.replace(model, model=broken), texts, KEY)
    with pytest.raises(UserError, match="ranks tokens: conditions are found from latents"):
        find_conditions(model, texts, TokenScan(tuple(WORDS)), texts.texts.tokens, texts.request, KEY)
    with pytest.raises(UserError, match="the dictionary has latents 0 to 31"):
        latent_tokens(model, [32], texts.texts.tokens, texts.request)


def test_all_methods_are_registered():
    assert {type(one) for one in BY_WORD} | {AttributionRanking} == set(METHODS)
