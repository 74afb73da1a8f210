"""Ablation and steering grids, the means that ablation needs, and the two directions on gates whose answer is known."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.circuits import LogitDifference, baseline, make_contrast, normalised
from jax_interp.circuits.sweeps import Grid, ablate, dataset_means, interventions, patch, steer, sweep
from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.models import Config, init
from jax_interp.surgery import Add, Replace, Resample, Site, Zero, at, call, edit, read

CONFIG = Config(n_layers=2, d_model=16, n_heads=4, n_kv_heads=2, d_mlp=0, vocab_size=40, n_ctx=16)
MODEL = init(CONFIG, jax.random.key(0))
CLEAN, CORRUPTED = (jax.random.randint(jax.random.key(i), (2, 6), 0, 40) for i in (1, 2))
METRIC = LogitDifference(jnp.asarray([3, 4]), 7)
CONTRAST = make_contrast(CLEAN, CORRUPTED, METRIC)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Gate:
    """Two inputs, one at each position, and their conjunction or disjunction as the logit of token 1."""

    is_and: bool = dataclasses.field(metadata={"static": True})

    def __call__(self, tokens, *, taps=()):
        site = Site.open(taps)
        on = site("inputs", tokens.astype(jnp.float32)[..., None])[..., 0]
        out = jnp.min(on, axis=1) if self.is_and else jnp.max(on, axis=1)
        return site.close(jnp.stack([jnp.zeros_like(out), out], axis=-1)[:, None])


@pytest.mark.parametrize(
    ("is_and", "direction", "expected"),
    [
        (True, "denoise", [0, 0, 1]),
        (True, "noise", [0, 0, 0]),
        (False, "denoise", [1, 1, 1]),
        (False, "noise", [1, 1, 0]),
    ],
)
def test_denoising_finds_what_suffices_and_noising_what_is_needed(is_and, direction, expected):
    """The AND and OR gates of Heimersheim & Nanda 2024 (arXiv:2404.15255): A alone, B alone, both."""
    gate, contrast = Gate(is_and), make_contrast([[1, 1]], [[0, 0]], LogitDifference(1, 0))
    clean, corrupted = baseline(gate, contrast)
    source, target = contrast.runs(direction)
    donor = read(gate, "inputs", output=False)(source)["inputs"]
    f = lambda where: contrast.metric(edit(gate, at("inputs", Replace(donor), where=where[None]))(target))
    found = sweep(f, {"where": jnp.asarray([[True, False], [False, True], [True, True]])})
    np.testing.assert_allclose(normalised(found.values[:, 0], clean[0], corrupted[0]), expected)
    alone = patch(gate, contrast, Grid("inputs", ("pos",)), direction=direction)
    np.testing.assert_allclose(alone.normalised().values, expected[:2])


def test_zero_and_resample_ablations_are_single_runs():
    zero = ablate(MODEL, CONTRAST, "head_out", Zero())
    expected = METRIC(call(edit(MODEL, at("blocks.1.attn.z", Zero(), head=3)), CLEAN))
    np.testing.assert_allclose(zero.values.sel(layer=1, head=3).values, expected, atol=1e-6)
    resampled = ablate(MODEL, CONTRAST, "resid_pre", Resample(jnp.asarray([1, 0])), only={"layer": [1], "pos": [4]})
    expected = METRIC(call(edit(MODEL, at("blocks.1.resid_pre", Resample(jnp.asarray([1, 0])), pos=4)), CLEAN))
    np.testing.assert_allclose(resampled.values.values[0, 0], expected, atol=1e-6)
    assert zero.direction == "noise"


def test_an_edit_that_compares_tokens_sees_all_of_them(monkeypatch):
    monkeypatch.setattr(interventions, "_WORTH_A_PROGRAM", 1)
    average = lambda x: jnp.broadcast_to(x.mean(1, keepdims=True), x.shape)
    found = ablate(MODEL, CONTRAST, "resid_pre", average, only={"layer": [1], "pos": [1, 4]})
    expected = METRIC(call(edit(MODEL, at("blocks.1.resid_pre", average, pos=4)), CLEAN))
    np.testing.assert_allclose(found.values.values[0, 1], expected, atol=1e-6)


def test_steering_adds_each_vector_with_each_coefficient():
    vectors = jax.random.normal(jax.random.key(5), (3, 16))
    found = steer(MODEL, CONTRAST, vectors, [-2.0, 0.0, 4.0], direction="noise")
    assert {name: len(labels) for name, labels in found.values.axes.items()} == {
        "vector": 3, "coefficient": 3, "layer": 2, "prompt": 2,
    }  # fmt: skip
    expected = METRIC(call(edit(MODEL, at("blocks.1.resid_post", Add(vectors[2], 4.0))), CLEAN))
    np.testing.assert_allclose(found.values.sel(vector=2, coefficient=2, layer=1).values, expected, atol=1e-5)
    np.testing.assert_allclose(found.change().sel(coefficient=1).values, np.zeros((3, 2, 2)), atol=1e-6)
    each = steer(MODEL, CONTRAST, jnp.stack([vectors[:2], vectors[1:]]), [4.0], direction="noise", only={"layer": [1]})
    np.testing.assert_allclose(each.values.values[1, 0, 0], expected, atol=1e-5)
    with pytest.raises(UserError, match=r"\[vector, d\]"):
        steer(MODEL, CONTRAST, vectors[0], [1.0])


BATCHES = [
    (jax.random.randint(jax.random.key(i), (3, n), 0, 40), jnp.arange(n)[None] >= jnp.asarray([[0], [1], [3]]))
    for i, n in ((7, 6), (8, 5))
]
TEMPLATES = [["a", "b", "a"], ["b", "b", "c"]]


def tokens_by_hand(address):
    """(value, position, group) of every real token."""
    for (tokens, mask), groups in zip(BATCHES, TEMPLATES):
        values = np.asarray(call(read(MODEL, address, output=False), tokens, mask=mask)[address])
        for row, group in enumerate(groups):
            for pos, column in enumerate(np.flatnonzero(np.asarray(mask)[row])):
                yield values[:, row, column], pos, group


@pytest.mark.parametrize("by", ["position", "dataset"])
def test_a_dataset_mean_counts_real_tokens_only(by):
    address = "blocks.*.attn.z"
    means = dataset_means(MODEL, [address, "blocks.0.resid_pre"], BATCHES, by=by, groups=TEMPLATES)
    assert means.groups == ("a", "b", "c")
    for g, group in enumerate(means.groups):
        for pos in range(means.counts.shape[1]):
            counts = lambda p: by == "dataset" or p == pos  # noqa: B023
            mine = [value for value, p, name in tokens_by_hand(address) if name == group and counts(p)]
            assert means.counts[g, pos] == len(mine)
            if mine:
                np.testing.assert_allclose(means.means[address][:, g, pos], np.mean(mine, axis=0), rtol=1e-4, atol=1e-6)
    assert means.means["blocks.0.resid_pre"].shape[0] == 1


def test_mean_ablation_gives_each_token_the_mean_of_its_position_and_template():
    batches, mask = [(CLEAN, None), (CORRUPTED, None)], jnp.ones((2, 6), bool).at[0, :2].set(False)
    means = dataset_means(MODEL, "blocks.*.attn.z", [tokens for tokens, _ in batches], groups=[["a", "b"], ["b", "b"]])
    contrast = make_contrast(CLEAN, CORRUPTED, METRIC, mask=mask)
    found = ablate(MODEL, contrast, "head_out", means, groups=["b", "a"], only={"layer": [1], "head": [2]})
    values = means.means["blocks.*.attn.z"][1]
    rows = np.stack([values[1][[0, 0, 0, 1, 2, 3]], values[0]])  # the first prompt has two tokens of padding
    expected = METRIC(call(edit(MODEL, at("blocks.1.attn.z", Replace(rows), head=2)), CLEAN, mask=mask))
    np.testing.assert_allclose(found.values.values[0, 0], expected, atol=1e-6)


def test_means_that_do_not_exist_are_refused():
    short = dataset_means(MODEL, "blocks.*.attn.z", [CLEAN[:, :4]])
    with pytest.raises(UserError, match="no mean"):
        ablate(MODEL, CONTRAST, "head_out", short)
    with pytest.raises(UserError, match="no mean of"):
        ablate(MODEL, CONTRAST, "resid_pre", short)
    with pytest.raises(UserError, match="no token"):
        dataset_means(MODEL, "blocks.*.attn.z", [])
    with pytest.raises(UserError, match="one value for each token"):
        dataset_means(MODEL, "blocks.*.attn.pattern", [CLEAN])
    with pytest.raises(UserError, match="2 entries for a batch of 3"):
        dataset_means(MODEL, "blocks.*.attn.z", BATCHES, groups=[["a", "b"], ["a"]])
    grouped = dataset_means(MODEL, "blocks.*.attn.z", [CLEAN], groups=[["a", "b"]])
    with pytest.raises(UserError, match="the groups 'a', 'b'"):
        ablate(MODEL, CONTRAST, "head_out", grouped, groups=["a", "z"])
