"""The choice of a direction: scores against one candidate at a time in float64, a planted direction, and what fails."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp import UserError
from jax_interp.core.leaves import flatten, unflatten
from jax_interp.probes import Nth, from_tokens
from jax_interp.steering.finding import find_directions
from jax_interp.steering.finding.selection import Criteria, select_direction
from jax_interp.surgery import Add, ProjectOut, at, edit
from jax_interp.training.meshes import make_mesh
from tests.small_models import GPT2_LIKE, peaky

REFUSE, HARMFUL, HARMLESS = 3, np.arange(10, 20), np.arange(20, 30)
D = GPT2_LIKE.d_model
RULES = (Nth(-1), Nth(-2))


@pytest.fixture(scope="module")
def planted():
    """A model, and a direction that its harmful tokens have and its refusal reads."""
    writes = (".o.weight", ".o.bias", ".down.weight", ".down.bias")
    leaves = {name: x * 0.1 if name.endswith(writes) else x for name, x in flatten(peaky(GPT2_LIKE)).items()}
    r = np.linalg.qr(np.random.default_rng(1).normal(size=(D, 1)))[0][:, 0].astype(np.float32)
    embed = next(name for name in leaves if name.startswith("embed"))
    table = leaves[embed] - jnp.outer(leaves[embed] @ r, jnp.asarray(r))  # other tokens have nothing of the direction
    leaves[embed] = table.at[HARMFUL].add(4 * r)
    leaves[embed] = leaves[embed].at[REFUSE].add(5 * r)  # the embedding is the unembedding too
    return unflatten(peaky(GPT2_LIKE), leaves), r


def prompts(seed: int, n: int = 12):
    """Prompts of 4 or 6 tokens that end with two harmful or two harmless tokens."""
    rng = np.random.default_rng(seed)
    tokens, mask = np.zeros((n, 6), np.int32), np.zeros((n, 6), bool)
    for row in range(n):
        length = 4 + 2 * (row % 3 == 0)
        ends = rng.choice(HARMFUL if row % 2 else HARMLESS, 2)
        tokens[row, :length] = [*rng.integers(30, 60, length - 2), *ends]
        mask[row, :length] = True
    return from_tokens(tokens, mask, label=np.arange(n) % 2, classes=("harmless", "harmful"))


@pytest.fixture(scope="module")
def candidates(planted):
    return find_directions(planted[0], prompts(0), sites="blocks.*.resid_pre", rules=RULES)


@pytest.fixture(scope="module")
def held_out():
    return prompts(1)


LOOSE = Criteria(kl=10.0, induced=-100.0, depth=1.0)


@pytest.fixture(scope="module")
def chosen(planted, candidates, held_out):
    return select_direction(planted[0], candidates, held_out, [REFUSE, 4], criteria=LOOSE, batch=5, at_once=2)


@jax.jit
def logits(model, tokens, mask, edits):
    return edit(model, *edits)(tokens, mask=mask)


def next_token(model, data, edits=()):
    """Log probabilities after each prompt, in float64."""
    found = np.asarray(logits(model, data.tokens, data.mask, tuple(edits)), np.float64)
    last = found[np.arange(len(data)), data.mask.sum(axis=1) - 1]
    return (
        last
        - np.log(np.exp(last - last.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
        - last.max(axis=1, keepdims=True)
    )


def score(log_p):
    p = np.exp(log_p[:, [REFUSE, 4]]).sum(axis=1)
    return (np.log(p + 1e-8) - np.log(1 - p + 1e-8)).mean()


def test_scores_are_those_of_one_candidate_at_a_time(planted, candidates, held_out, chosen):
    model, _ = planted
    harmful, harmless = (held_out.take(held_out.labels == label) for label in (1, 0))
    assert chosen.positive == pytest.approx(score(next_token(model, harmful)), abs=1e-4)
    assert chosen.neutral == pytest.approx(score(next_token(model, harmless)), abs=1e-4)
    before = next_token(model, harmless)
    assert len(chosen.table) == 3 * len(RULES)
    for number, candidate in enumerate(chosen.table):
        v = jnp.asarray(candidates.vectors.reshape(-1, D)[number])
        without = [at(f"blocks.*.{name}", ProjectOut(v)) for name in ("resid_pre", "attn_out", "mlp_out")]
        after = next_token(model, harmless, without)
        kl = (np.exp(before) * (before - after)).sum(axis=1).mean()
        assert candidate.ablated == pytest.approx(score(next_token(model, harmful, without)), abs=1e-3)
        assert candidate.kl == pytest.approx(kl, abs=1e-3)
        assert candidate.induced == pytest.approx(
            score(next_token(model, harmless, [at(candidate.site, Add(v))])), abs=1e-3
        )
    assert chosen.candidate.ablated == min(candidate.ablated for candidate in chosen.table)


def test_the_planted_direction_is_chosen(planted, candidates, held_out):
    model, r = planted
    criteria = Criteria(kl=3.0, induced=-100.0)
    found = select_direction(model, candidates, held_out, [REFUSE, 4], criteria=criteria, batch=5, at_once=2)
    v = found.direction / np.linalg.norm(found.direction)
    assert v @ r > 0.8
    assert found.candidate.layer < int(0.8 * 3)
    assert found.candidate.ablated < found.positive - 1
    assert found.candidate.induced > found.neutral + 1
    assert list(found.vector().vectors) == [found.candidate.site]
    harmful = held_out.take(held_out.labels == 1)
    assert score(next_token(model, harmful, found.ablation())) == pytest.approx(found.candidate.ablated, abs=1e-3)


def test_candidates_that_fail_are_counted(planted, candidates, held_out, chosen):
    model, _ = planted
    strict = Criteria(kl=0.0, induced=0.0)
    with pytest.raises(UserError, match=r"none of 6 candidates passes: 2 are after the first 80% of 3 blocks; 4 of"):
        select_direction(model, candidates, held_out, [REFUSE, 4], criteria=strict, batch=5, at_once=2)
    vectors = candidates.vectors.copy()
    vectors[0, 0] = np.nan
    some = dataclasses.replace(candidates, vectors=vectors)
    found = select_direction(model, some, held_out, [REFUSE, 4], criteria=LOOSE, batch=5, at_once=2)
    assert (found.skipped, chosen.skipped) == (1, 0)
    assert all(
        a.ablated == pytest.approx(b.ablated, abs=1e-4) for a, b in zip(found.table[1:], chosen.table[1:], strict=True)
    )


def test_what_is_refused(planted, candidates, held_out):
    model, _ = planted
    with pytest.raises(UserError, match="different token ids between 0 and"):
        select_direction(model, candidates, held_out, [REFUSE, REFUSE])
    with pytest.raises(UserError, match="prompts of two classes"):
        select_direction(model, candidates, held_out.take(held_out.labels == 1), [REFUSE])
    elsewhere = find_directions(model, prompts(0), sites="blocks.*.attn_out", rules=Nth(-1))
    with pytest.raises(UserError, match="at resid_pre or at resid_post, not at attn_out"):
        select_direction(model, elsewhere, held_out, [REFUSE])
    with pytest.raises(UserError, match="depth=0"):
        Criteria(depth=0)


@pytest.mark.slow
@pytest.mark.parametrize("axes", [{"data": 2}, {"fsdp": 2}, {"tensor": 2}])
def test_a_mesh_changes_nothing(planted, candidates, held_out, chosen, axes):
    several = select_direction(
        planted[0], candidates, held_out, [REFUSE, 4], criteria=LOOSE, batch=6, at_once=2, place=make_mesh(**axes)
    )
    assert several.chosen == chosen.chosen
    for one, other in zip(chosen.table, several.table, strict=True):
        np.testing.assert_allclose(
            [one.ablated, one.kl, one.induced], [other.ablated, other.kl, other.induced], atol=1e-3
        )
