"""Laws of probes as edits: both layouts, float32 and bfloat16, jit, grad and vmap, regions and layers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import toy

from jax_interp import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.probes import (
    All,
    LabelledTokens,
    LinearProbe,
    MassMean,
    PairProbe,
    SetScore,
    SpliceProbe,
    class_shift,
    fit_probes,
    gather,
    project_out,
    stacked_probes,
    steer,
)
from jax_interp.probes.probe import Probe
from jax_interp.surgery import Add, Clamp, Each, at, edit, grad_at, load_edits, read, replan, save_edits

SITE, D, DEPTH, VOCAB = "blocks.1.resid_post", 16, 3, 40
TOKENS = jax.random.randint(jax.random.key(0), (3, 7), 0, VOCAB)
SCORE_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}
call = jax.jit(lambda model, tokens: model(tokens))


def linear(seed: int = 0, *layers: int) -> LinearProbe:
    rng = np.random.default_rng(seed)
    w, b = rng.normal(size=(*layers, D)), rng.normal(size=layers)
    return LinearProbe(*(jnp.asarray(a, jnp.float32) for a in (w, b, np.zeros(layers))))


def paired(seed: int = 0) -> PairProbe:
    w = np.random.default_rng(seed).normal(size=(2, D))
    return PairProbe(jnp.asarray(w, jnp.float32), jnp.asarray([0.5, -1.0], jnp.float32), jnp.zeros(()))


@pytest.fixture(scope="module", params=["scanned float32", "unrolled float32", "scanned bfloat16"])
def model(request):
    layout, dtype = request.param.split()
    return replan(
        jax.tree.map(lambda w: w.astype(dtype), toy(d=D, vocab=VOCAB, layers=DEPTH)),
        "*" if layout == "unrolled" else (),
    )


@pytest.fixture(params=[linear(), paired()], ids=["linear", "pair"])
def probe(request):
    return request.param


def scores(model, probe, site=SITE):
    """The scores of an edited model, from the activations themselves, and how far rounding may move them."""
    _, acts = call(read(model, site), TOKENS)
    x = acts[site].astype(jnp.float32)
    dtype = str(acts[site].dtype)
    size = float(jnp.linalg.norm(probe.direction()) * jnp.max(jnp.linalg.norm(x, axis=-1)))
    return np.asarray(probe.score(x)), SCORE_TOLERANCE[dtype] * size


def test_a_spliced_probe_names_its_score_and_changes_no_bit(model, probe):
    spliced = edit(model, at(SITE, SpliceProbe(probe)))
    output, acts = call(read(spliced, f"{SITE}.probe"), TOKENS)
    np.testing.assert_array_equal(output, call(model, TOKENS))
    expected, tolerance = scores(model, probe)
    np.testing.assert_allclose(acts[f"{SITE}.probe"], expected, atol=tolerance / 50)
    assert acts[f"{SITE}.probe"].dtype == jnp.float32


def test_an_edited_score_is_the_score_after_the_least_change(model, probe):
    spliced = edit(model, at(SITE, SpliceProbe(probe)))
    before, (_, acts) = scores(model, probe)[0], call(read(model, SITE), TOKENS)
    changed = edit(spliced, at(f"{SITE}.probe", Clamp(5.0, 5.0), pos=[1, 3]))
    after, tolerance = scores(changed, probe)
    expected = before.copy()
    expected[:, [1, 3]] = 5.0
    np.testing.assert_allclose(after, expected, atol=tolerance)
    moved = call(read(changed, SITE), TOKENS)[1][SITE]
    kept = [0, 2, 4, 5, 6]
    np.testing.assert_array_equal(moved[:, kept], acts[SITE][:, kept])
    if moved.dtype == jnp.float32:  # along the direction: no change is shorter
        step = np.asarray(moved - acts[SITE])[:, [1, 3]]
        w = np.asarray(probe.direction())
        np.testing.assert_allclose(
            step, (step @ w / (w @ w))[..., None] * w, atol=1e-4 * np.abs(np.asarray(acts[SITE])).max()
        )


def test_setting_the_score(model, probe):
    target = jnp.linspace(-2, 2, 7)[None, :] * jnp.ones((3, 1))
    for value, expected in ((3.0, np.full((3, 7), 3.0)), (target, target)):
        after, tolerance = scores(edit(model, at(SITE, SetScore(probe, value))), probe)
        np.testing.assert_allclose(after, expected, atol=tolerance)


def test_steering_changes_the_score_by_the_squared_length(model, probe):
    w = probe.direction()
    before, tolerance = scores(model, probe)
    shift = 0.7 * float(w @ w)
    after = scores(edit(model, at(SITE, steer(probe, 0.7), where=jnp.arange(7)[None, :] > 2)), probe)[0]
    np.testing.assert_allclose(after, before + np.where(np.arange(7) > 2, shift, 0), atol=tolerance)


def test_projecting_out_makes_the_score_constant(model, probe):
    after, tolerance = scores(edit(model, at(SITE, project_out(probe))), probe)
    assert np.ptp(after) <= 2 * tolerance
    assert np.ptp(scores(model, probe)[0]) > 10 * tolerance or tolerance > 1


def test_one_probe_for_each_layer(model):
    sites = [f"blocks.{layer}.resid_post" for layer in range(DEPTH)]
    probes = linear(1, DEPTH)
    spliced = edit(model, at("blocks.*.resid_post", Each(SpliceProbe(probes))))
    output, acts = call(read(spliced, "blocks.*.resid_post.probe"), TOKENS)
    np.testing.assert_array_equal(output, call(model, TOKENS))
    for layer, site in enumerate(sites):
        one = jax.tree.map(lambda a, layer=layer: a[layer], probes)
        expected, tolerance = scores(model, one, site)
        np.testing.assert_allclose(acts[f"{site}.probe"], expected, atol=tolerance)
        cleaned = edit(model, at("blocks.*.resid_post", Each(project_out(probes))))
        assert np.ptp(scores(cleaned, one, site)[0]) <= 2 * tolerance
        fixed = edit(model, at("blocks.*.resid_post", Each(SetScore(probes, 2.0))))
        np.testing.assert_allclose(scores(fixed, one, site)[0], 2.0, atol=tolerance)


def test_gradients_and_sweeps(model):
    """d logit / d amount from autodiff is the finite difference; a sweep is one program."""
    probe = linear()
    f = lambda amount: call(edit(model, at(SITE, steer(probe, amount))), TOKENS)[0, -1, 3].astype(jnp.float32)
    amounts = jnp.linspace(-0.5, 0.5, 3)
    swept = jax.vmap(f)(amounts)
    np.testing.assert_allclose(swept, [f(a) for a in amounts], rtol=0.05, atol=0.05)
    target = lambda value: jnp.sum(call(edit(model, at(SITE, SetScore(probe, value))), TOKENS).astype(jnp.float32))
    assert np.isfinite(jax.grad(target)(1.0))
    spliced = edit(model, at(SITE, SpliceProbe(probe)))
    of_score = grad_at(spliced, SITE)(lambda logits: logits[0, -1, 3].astype(jnp.float32))(TOKENS)
    assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in jax.tree.leaves(of_score))
    if call(model, TOKENS).dtype == jnp.float32:
        slope = (f(jnp.float32(1e-2)) - f(jnp.float32(-1e-2))) / 2e-2
        np.testing.assert_allclose(jax.grad(f)(jnp.float32(0.0)), slope, rtol=0.02, atol=1e-3)


def test_edits_of_probes_are_saved_with_edits(tmp_path):
    model, probe = toy(d=D, vocab=VOCAB, layers=DEPTH), linear()
    some = at(SITE, SetScore(probe, 3.0), pos=2), at("blocks.2.resid_post", SpliceProbe(probe))
    loaded = load_edits(save_edits(tmp_path / "e.safetensors", some), types=[SetScore, SpliceProbe, LinearProbe])
    np.testing.assert_array_equal(call(edit(model, loaded), TOKENS), call(edit(model, some), TOKENS))


def test_the_shift_of_a_class_brings_its_mean_to_the_other():
    rng = np.random.default_rng(0)
    y = (np.arange(200) % 3 == 0).astype(np.int32)
    x = (rng.normal(size=(200, D)) + y[:, None]).astype(np.float32)
    x[7], weight = np.nan, np.ones(200, np.float32)
    weight[7] = 0
    probe, keep = linear(), weight > 0
    shift = class_shift(probe, jnp.asarray(x), jnp.asarray(y), jnp.asarray(weight))
    means = [probe.score(jnp.asarray(x[keep & (y == c)])).mean() for c in (0, 1)]
    moved = probe.score(jnp.asarray(x[keep & (y == 0)]) + shift[None, :]).mean()
    np.testing.assert_allclose(moved, means[1], rtol=1e-3, atol=1e-3)


def test_probes_of_all_layers_from_one_fit():
    model = toy(d=D, vocab=VOCAB, layers=DEPTH)
    tokens = np.asarray(jax.random.randint(jax.random.key(1), (24, 6), 0, VOCAB))
    mask = np.ones(tokens.shape, bool)
    data = LabelledTokens("random", tokens, mask, mask, (tokens[:, 0] % 2).astype(np.int32), ("even", "odd"))
    fitted = fit_probes(MassMean(), gather(model, data, "blocks.*.resid_post", All()), seeds=(0, 1))
    probes = stacked_probes(fitted, seed=1)
    spliced = edit(model, at("blocks.*.resid_post", Each(SpliceProbe(probes))))
    found = call(read(spliced, "blocks.*.resid_post.probe"), TOKENS)[1]
    for site in fitted.axes["site"]:
        expected, tolerance = scores(model, fitted.probe(site=site, seed=1), site)
        np.testing.assert_allclose(found[f"{site}.probe"], expected, atol=tolerance)
    with pytest.raises(UserError, match="seed"):
        stacked_probes(fitted)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Quadratic(Probe):
    threshold: jax.Array

    def score(self, x, read=None):
        return jnp.sum(x * x, axis=-1)


def test_a_probe_without_a_direction_is_read_and_never_written():
    model, probe = toy(d=D, vocab=VOCAB, layers=DEPTH), Quadratic(jnp.zeros(()))
    spliced = edit(model, at(SITE, SpliceProbe(probe)))
    assert call(read(spliced, f"{SITE}.probe"), TOKENS)[1][f"{SITE}.probe"].shape == TOKENS.shape
    for refused in (
        lambda: call(edit(spliced, at(f"{SITE}.probe", Add(jnp.ones(()), 1.0))), TOKENS),
        lambda: call(edit(model, at(SITE, SetScore(probe, 0.0))), TOKENS),
        lambda: steer(probe),
        lambda: project_out(probe),
    ):
        with pytest.raises(UserError, match="not linear"):
            refused()
