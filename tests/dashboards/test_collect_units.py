"""A page's statistics are those of a computation over all positions at once, however the text is cut and padded.

Scores are small integers of both signs, so that sums are exact and many scores are equal.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.dashboards.collect_features import collect_units
from jax_interp.dashboards.collector import Reading, collect
from jax_interp.dashboards.options import PageOptions
from jax_interp.dashboards.statistics import CoFiring, UniformWindows
from jax_interp.dashboards.statistics.co_firing import most_alike, most_alike_in_samples
from jax_interp.training.interrupt import Interrupted

UNITS, VOCAB, LENGTH = 7, 12, 10
OPTIONS = PageOptions(
    top=6, sample=16, uniform=5, quantiles=4, per_quantile=3, before=3, after=2, piece=3, neighbours=0, co_firing=3
)
RNG = np.random.default_rng(0)
TABLE = RNG.integers(-6, 20, (VOCAB, UNITS)) * (RNG.random((VOCAB, UNITS)) < 0.4)
TABLE[:, 0] = 0  # a dead unit
TABLE[:, 1] = abs(TABLE[:, 1])
TOKENS = RNG.integers(0, VOCAB, (24, LENGTH))
KEEP = RNG.random((24, LENGTH)) < 0.85
KEEP[5] = False


def lookup(table, tokens):
    return table[tokens.reshape(-1)]


def pages(batches, options=OPTIONS, reading=Reading()):  # noqa: B008  (frozen)
    return collect_units(lookup, jnp.asarray(TABLE, jnp.float32), batches, options, reading=reading)


def cut(*sizes, tokens=TOKENS, keep=KEEP):
    ends = np.cumsum(sizes)
    assert ends[-1] == len(tokens)
    return list(zip(np.split(tokens, ends[:-1]), np.split(keep, ends[:-1])))


WHOLE = pages(cut(24))
PLACES = np.argwhere(KEEP)  # (sequence, position) in reading order
SCORES = TABLE[TOKENS[KEEP]]  # [kept position, unit]


def same(one, other):
    assert [name for name, _ in one.arrays()] == [name for name, _ in other.arrays()]
    for (name, a), (_, b) in zip(one.arrays(), other.arrays()):
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert one.tokens_seen == other.tokens_seen


def test_figures_of_all_positions_at_once():
    on = SCORES != 0
    assert WHOLE.tokens_seen == KEEP.sum()
    np.testing.assert_array_equal(WHOLE.firings, on.sum(0))
    np.testing.assert_array_equal(WHOLE.min_activation, np.minimum(SCORES.min(0), 0))
    for unit in range(UNITS):
        active = SCORES[on[:, unit], unit]
        assert WHOLE.max_activation[unit] == (active.max() if len(active) else 0)
        np.testing.assert_allclose(WHOLE.mean_activation_when_on[unit], active.mean() if len(active) else 0, rtol=1e-6)
        edges, counts = WHOLE.activation_histogram.edges, WHOLE.activation_histogram.counts[unit]
        bins = itertools.pairwise(edges)  # a bin holds its edge that is nearer to 0
        inside = [(a <= active) & (active < b) if b > 0 else (a < active) & (active <= b) for a, b in bins]
        np.testing.assert_array_equal(counts, np.sum(inside, axis=1))
        assert counts.sum() == len(active)


def group(data, label):
    return next(one for one in data.examples if one.label == label)


def test_the_strongest_of_both_ends():
    for label, sign in (("top", 1), ("lowest", -1)):
        windows = group(WHOLE, label).windows
        for unit in range(UNITS):
            rows = np.flatnonzero(sign * SCORES[:, unit] > 0)
            rows = rows[np.argsort(-sign * SCORES[rows, unit], kind="stable")][: OPTIONS.top]
            np.testing.assert_array_equal(windows.peak[unit, : len(rows)], SCORES[rows, unit])
            np.testing.assert_array_equal(windows.place[unit, : len(rows)], PLACES[rows])
            assert (windows.place[unit, len(rows) :] == -1).all()
            assert (windows.tokens[unit, len(rows) :] == -1).all()


def test_windows_are_the_text_around_the_place():
    padded, kept = np.pad(TOKENS, ((0, 0), (3, 2))), np.pad(KEEP, ((0, 0), (3, 2)))
    for one in WHOLE.examples:
        for unit, k in np.argwhere(one.windows.place[..., 0] >= 0):
            sequence, position = one.windows.place[unit, k]
            span = slice(position, position + 6)
            tokens = np.where(kept[sequence, span], padded[sequence, span], -1)
            np.testing.assert_array_equal(one.windows.tokens[unit, k], tokens)
            np.testing.assert_array_equal(one.windows.scores[unit, k], np.where(tokens >= 0, TABLE[tokens, unit], 0))


def test_quantile_groups_divide_the_sample():
    """Units with at most `sample` firings have exact quantiles: group q holds ranks ⌊mq/Q⌋ to ⌊m(q+1)/Q⌋."""
    few = dataclasses.replace(OPTIONS, sample=240, per_quantile=60, uniform=240)
    data = pages(cut(24), few)
    labels = [one.label for one in data.examples if one.label.startswith("quantile")]
    assert labels == ["quantile 0.75–1", "quantile 0.5–0.75", "quantile 0.25–0.5", "quantile 0–0.25"]
    for unit in range(UNITS):
        active = np.sort(SCORES[SCORES[:, unit] != 0, unit])
        m = len(active)
        for q, label in enumerate(reversed(labels)):
            windows = group(data, label).windows
            shown = windows.peak[unit][windows.place[unit, :, 0] >= 0]
            np.testing.assert_array_equal(shown, active[m * q // 4 : m * (q + 1) // 4][::-1])
        uniform = group(data, "uniform").windows
        np.testing.assert_array_equal(np.sort(uniform.peak[unit][uniform.place[unit, :, 0] >= 0]), active)


@pytest.mark.parametrize("sizes", [(1,) * 24, (5, 12, 7), (23, 1)])
def test_how_the_text_is_cut_changes_no_bit(sizes):
    same(pages(cut(*sizes)), WHOLE)


def test_padding_never_counts():
    """Longer padding at the end, tokens of other text where nothing is kept: the same figures."""
    tokens = np.concatenate([np.where(KEEP, TOKENS, 3), np.full((24, 4), 5)], axis=1)
    keep = np.pad(KEEP, ((0, 0), (0, 4)))
    same(pages(cut(9, 15, tokens=tokens, keep=keep)), WHOLE)
    nothing = (np.full((3, LENGTH), 5), np.zeros((3, LENGTH), bool))
    same(pages([*cut(24), nothing]), WHOLE)


def test_empty_sequences_inside_the_text_change_only_the_numbers_of_sequences():
    nothing = (np.full((3, LENGTH), 5), np.zeros((3, LENGTH), bool))
    (first, second) = cut(9, 15)
    for one, other in zip(pages([first, nothing, second]).examples, WHOLE.examples):
        np.testing.assert_array_equal(one.windows.tokens, other.windows.tokens)
        place = other.windows.place.copy()
        place[..., 0] += 3 * (place[..., 0] >= 9)
        np.testing.assert_array_equal(one.windows.place, place)


def test_every_firing_is_equally_likely_in_the_sample():
    """Over 400 seeds each of n firings is in the sample of k about 400 k/n times (a binomial, z below 4.5)."""
    unit, k, seeds = 3, 6, 400
    rows = np.flatnonzero(SCORES[:, unit])
    counts = dict.fromkeys(map(tuple, PLACES[rows].tolist()), 0)
    table = jnp.asarray(TABLE[:, [unit]], jnp.float32)
    for seed in range(seeds):
        sample = collect(lookup, table, cut(11, 13), {"": UniformWindows(k, 0, 0, seed=seed)})[""]
        assert (np.diff(sample.keys[0]) >= 0).all()
        for place in sample.windows.place[0].tolist():
            counts[tuple(place)] += 1
    p = k / len(rows)
    z = (np.asarray(list(counts.values())) - seeds * p) / np.sqrt(seeds * p * (1 - p))
    assert abs(z).max() < 4.5
    assert abs(z.std() - 1) < 0.25


def test_co_firing_is_counted():
    on = (SCORES != 0).astype(int)
    both = on.T @ on
    found = collect(lookup, jnp.asarray(TABLE, jnp.float32), cut(9, 15), {"": CoFiring()})[""]
    np.testing.assert_array_equal(found, both)
    union = on.sum(0)[:, None] + on.sum(0)[None] - both
    jaccard = np.where(np.eye(UNITS) > 0, 0, both / np.maximum(union, 1))
    np.testing.assert_allclose(WHOLE.co_firing.values, -np.sort(-jaccard, axis=1)[:, :3], rtol=1e-6)
    assert WHOLE.co_firing.measure == "Jaccard index"
    assert (WHOLE.co_firing.units[0] == -1).all()


def test_co_firing_from_samples():
    """Exact where the samples hold every firing; otherwise within four standard errors of √(J(1 - J)/k)."""
    rng = np.random.default_rng(1)
    on = rng.random((3000, 8)) < rng.random(8) * 0.5
    on[:, 1] = on[:, 0] & (rng.random(3000) < 0.7)
    on[:, 2] = on[:, 0]
    score = lambda table, tokens: table[tokens.reshape(-1)]
    tokens, keep = np.arange(3000).reshape(30, 100), np.ones((30, 100), bool)
    for k, worst in ((3000, 1e-6), (256, 4)):
        statistics = {"sample": UniformWindows(k, 0, 0), "both": CoFiring()}
        found = collect(score, jnp.asarray(on, jnp.float32), [(tokens, keep)], statistics)
        units, exact = most_alike(found["both"], 8)
        estimated_units, estimated = most_alike_in_samples(found["sample"].keys, 8)
        assert (estimated_units[[0, 2], 0] == [2, 0]).all()
        for unit in range(8):
            there = [estimated_units[unit].tolist().index(other) for other in units[unit] if other >= 0]
            J = exact[unit][units[unit] >= 0]
            error = abs(estimated[unit][there] - J)
            assert (error <= (worst if k == 3000 else worst * np.sqrt(J * (1 - J) / k) + 1e-9)).all()


class Killed(Exception):
    pass


def stops_after(batches, n, how):
    for i, batch in enumerate(batches):
        if i == n:
            how()
        yield batch


def kill():
    raise Killed


def test_a_killed_pass_goes_on_with_the_same_bits(tmp_path):
    batches, reading = cut(*(3,) * 8), Reading(tmp_path, save_every=0.0)
    for n in (2, 5):
        with pytest.raises(Killed):
            pages(stops_after(batches, n, kill), reading=reading)
    same(pages(batches, reading=reading), WHOLE)
    same(pages(iter(batches), reading=reading), WHOLE)  # the pass is complete: nothing is computed


def test_a_signal_saves_and_stops(tmp_path):
    batches, reading = cut(*(3,) * 8), Reading(tmp_path, save_every=1e9)
    with pytest.raises(Interrupted, match="saved in"):
        pages(stops_after(batches, 3, lambda: os.kill(os.getpid(), signal.SIGINT)), reading=reading)
    with pytest.raises(UserError, match="not the one of the pass"):
        pages(cut(4, *(2,) * 10), reading=reading)
    same(pages(batches, reading=reading), WHOLE)


def test_the_state_of_another_pass_is_refused(tmp_path):
    batches, reading = cut(12, 12), Reading(tmp_path)
    pages(batches, reading=reading)
    with pytest.raises(UserError, match="other statistics"):
        pages(batches, dataclasses.replace(OPTIONS, top=7), reading)
    with pytest.raises(UserError, match="other model"):
        collect_units(lookup, jnp.asarray(TABLE, jnp.float32) + 1, batches, OPTIONS, reading=reading)
    (tmp_path / "pass.safetensors").write_bytes((tmp_path / "pass.safetensors").read_bytes()[:-3])
    with pytest.raises(UserError, match="damaged"):
        pages(batches, reading=reading)


def test_wrong_text_and_scores_are_refused():
    tokens, keep = TOKENS[:2], KEEP[:2]
    for batch, message in (
        ((tokens.astype(float), keep), "give integers"),
        ((tokens[0], keep[0]), "give integers"),
        ((tokens, keep[:, :-1]), "give booleans"),
        ((tokens, keep.astype(int)), "give booleans"),
    ):
        with pytest.raises(UserError, match=message):
            pages([batch])
    with pytest.raises(UserError, match="no batches"):
        pages([])
    table = jnp.asarray(TABLE, jnp.float32).at[:, 2].set(jnp.nan)
    with pytest.raises(UserError, match=r"scores at kept positions of batch 0 are NaN"):
        collect_units(lookup, table, cut(12, 12), OPTIONS)
    with pytest.raises(UserError, match="unit 7 of 7"):
        pages(cut(24), dataclasses.replace(OPTIONS, units=(1, 7)))
    for wrong in ({"units": (1, 1)}, {"units": ()}, {"units": (-1, 2)}):
        with pytest.raises(UserError, match="units="):
            pages(cut(24), dataclasses.replace(OPTIONS, **wrong))


def test_some_units_are_rows_of_all_units():
    units = (4, 1, 6)
    some = pages(cut(24), dataclasses.replace(OPTIONS, units=units, co_firing=0))
    np.testing.assert_array_equal(some.firings, WHOLE.firings[list(units)])
    for one, other in zip(some.examples, WHOLE.examples):
        np.testing.assert_array_equal(one.windows.place, other.windows.place[list(units)])


@pytest.mark.parametrize("threshold", [0.0, 3.5])
def test_a_threshold_counts_what_is_above_it(threshold):
    data = pages(cut(24), dataclasses.replace(OPTIONS, threshold=threshold))
    np.testing.assert_array_equal(data.firings, (abs(SCORES) > threshold).sum(0))
    for one in data.examples:
        peak = one.windows.peak[one.windows.place[..., 0] >= 0]
        assert (abs(peak) > threshold).all()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text():
    """The bytes of all arrays on the device are the same at every batch once two batches have been read."""
    sizes = []

    def batches():
        for _ in range(10):
            gc.collect()
            sizes.append(sum(array.nbytes for array in jax.live_arrays()))
            yield TOKENS[:4], KEEP[:4]

    pages(batches())
    assert len(set(sizes[2:])) == 1
