"""One pass over a text, for any scores: it does not matter how the text is cut into batches."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import batch_at, toy

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dashboards import InputTokens, OnToken, Passages, PredictedTokens, Scores, TopWindows, collect
from jax_interp.surgery import read

BATCHES = [batch_at(i) for i in range(3)]
TOGETHER = [tuple(jnp.concatenate([batch[i] for batch in BATCHES]) for i in range(2))]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Probe:
    """Three directions, whose scores can be negative; rounded, so that some are equal."""

    W: jax.Array

    def __call__(self, model, tokens):
        logits, acts = read(model, "blocks.1.resid_post")(tokens)
        x = acts["blocks.1.resid_post"].reshape(tokens.size, -1)
        return Scores(jnp.round(x @ self.W), x[:, :3], logits)


PROBE = Probe(jax.random.normal(jax.random.key(3), (16, 3)))
STATISTICS = {
    "windows": TopWindows(9, before=2, after=1, threshold=-jnp.inf),
    "one each": TopWindows(5, before=2, after=1, one_per_sequence=True),
    "inputs": InputTokens(),
    "predicted": PredictedTokens(),
    "on token": OnToken(23),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_how_the_text_is_cut_does_not_matter(name):
    statistics = {name: STATISTICS[name]}
    whole, parts = (collect(PROBE, toy(), batches, statistics)[name] for batches in (TOGETHER, BATCHES))
    for field, value in vars(whole).items():
        if value is None:
            assert getattr(parts, field) is None
            continue
        np.testing.assert_allclose(getattr(parts, field), value, rtol=1e-4, atol=1e-5, err_msg=field)


def test_the_lowest_scores_and_ties():
    """With the sign turned and no threshold: the lowest scores, negative ones too, the earlier of equal ones first."""
    windows = TopWindows(400, before=0, after=0, threshold=-jnp.inf)
    lowest = lambda model, tokens: 5 - PROBE(model, tokens).values
    found = collect(lowest, toy(), TOGETHER, {"": windows})[""]
    (tokens, keep), scores = TOGETHER[0], np.asarray(lowest(toy(), TOGETHER[0][0]))
    kept = np.flatnonzero(keep)
    for unit in range(3):
        order = kept[np.argsort(-scores[kept, unit], kind="stable")]
        np.testing.assert_array_equal(found.peak[unit, : len(order)], scores[order, unit])
        np.testing.assert_array_equal(found.tokens[unit, : len(order), 0], tokens.reshape(-1)[order])
        assert (found.tokens[unit, len(order) :] == -1).all()
        assert (found.peak[unit, len(order) :] == 0).all()


def test_sums_over_many_batches_lose_nothing():
    """Scores are such that sums within a batch are exact in float32. Their sums over all batches are not."""
    rng = np.random.default_rng(0)
    table = rng.integers(1, 2**14, (8, 3)) / 1024
    scores = lambda table, tokens: table[tokens.reshape(-1)]
    batches = [(rng.integers(0, 8, (2, 8)), rng.random((2, 8)) < 0.9) for _ in range(1500)]
    found = collect(scores, jnp.asarray(table, jnp.float32), batches, {"": OnToken(3)})[""]
    tokens, keep = (np.stack(parts) for parts in zip(*batches))
    elsewhere = tokens[keep & (tokens != 3)]
    assert found.count == (np.sum(keep & (tokens == 3)), len(elsewhere))
    np.testing.assert_array_equal(found.mean, [table[3], table[elsewhere].sum(axis=0) / len(elsewhere)])
    np.testing.assert_array_equal(found.rate, np.ones((2, 3)))
    assert np.float32(np.sum(table[elsewhere], axis=0)).astype(float).tolist() != table[elsewhere].sum(axis=0).tolist()


@pytest.mark.parametrize("one_per_sequence", [False, True])
def test_of_equal_scores_the_larger_activation_comes_first(one_per_sequence):
    windows = TopWindows(24, before=0, after=0, one_per_sequence=one_per_sequence)
    found = collect(PROBE, toy(), TOGETHER, {"": windows})[""]
    assert found.activations is not None
    there = found.tokens[..., 0] >= 0
    key = np.stack([found.peak, np.abs(found.activations[..., 0])])
    for unit in range(3):
        first, second = key[:, unit, :-1], key[:, unit, 1:]
        ordered = (first[0] > second[0]) | ((first[0] == second[0]) & (first[1] >= second[1]))
        assert ordered[there[unit, 1:]].all()


def test_what_a_statistic_needs():
    no_logits = lambda model, tokens: PROBE(model, tokens).values
    with pytest.raises(UserError, match="give vocab="):
        collect(no_logits, toy(), BATCHES, {"": InputTokens()})
    with pytest.raises(UserError, match="Scores with logits"):
        collect(no_logits, toy(), BATCHES, {"": PredictedTokens()})
    with pytest.raises(UserError, match="no batches"):
        collect(no_logits, toy(), [], {"": Passages()})


def test_another_probe_of_the_same_shape_compiles_nothing():
    traced = []

    @register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Counted(Probe):
        def __call__(self, model, tokens):
            traced.append(None)
            return super().__call__(model, tokens)

    for seed in range(3):
        probe = Counted(jax.random.normal(jax.random.key(seed), (16, 3)))
        collect(probe, toy(), BATCHES, {"": OnToken(20 + seed), "windows": TopWindows(threshold=float(seed))})
    assert len(traced) == 1
