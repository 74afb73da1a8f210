"""Every figure on data where the answer is known, and the published variants that get it wrong."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import batch_at, toy

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.activations import TopK
from jax_interp.dictionaries.evaluation.downstream import Identity, SelfCheckError, check_identity
from jax_interp.dictionaries.evaluation.evaluate import evaluate
from jax_interp.dictionaries.evaluation.reconstruction import (
    Reconstruction,
    add_batch_sums,
    batch_sums,
    mean_from_sums,
)
from jax_interp.dictionaries.evaluation.sparsity import Density
from jax_interp.dictionaries.forms import Dictionary, init_sae
from jax_interp.surgery import read

ADDRESS = "blocks.1.resid_post"
BATCHES = [batch_at(i) for i in range(3)]


def to_itself(decode, encode=lambda x: x):
    return SimpleNamespace(encode=encode, decode=decode)


def sums(dictionary, *arrays):
    return jax.jit(partial(batch_sums, dictionary))(*arrays)


def measure(dictionary, x, keep=None, chunks=3):
    """The streamed figures of `dictionary` over the rows `x`."""
    keep = np.ones(len(x), bool) if keep is None else keep
    total, of_batch = None, jax.jit(partial(batch_sums, dictionary))
    for rows, kept in zip(np.array_split(x, chunks), np.array_split(keep, chunks)):
        rows = jnp.asarray(rows, jnp.float32)
        total = add_batch_sums(total, of_batch(rows, jnp.asarray(kept), jnp.asarray(SHIFT, jnp.float32)))
    return total


RNG = np.random.default_rng(0)
OFFSET = 20 * RNG.standard_normal(24)
X = RNG.standard_normal((700, 24)) * np.linspace(0.2, 2, 24) + OFFSET
SHIFT = X[:10].mean(0)


def test_invariants_of_the_fraction_of_variance_unexplained():
    mean = X.mean(0)
    exact = Reconstruction.from_sums(measure(to_itself(lambda z: z), X))
    assert exact.fvu == exact.sse == 0
    constant = Reconstruction.from_sums(
        measure(to_itself(lambda z: jnp.broadcast_to(jnp.asarray(mean, z.dtype), z.shape)), X)
    )
    np.testing.assert_allclose(constant.fvu, 1, rtol=1e-5)
    np.testing.assert_allclose(constant.mse_d * 24, constant.sse)
    noisy = to_itself(lambda z: z + 0.3)
    for factor in (1.0, 50.0):  # scaling everything changes nothing
        scaled = to_itself(lambda z, factor=factor: z + jnp.float32(0.3 * factor))
        total = None
        x = jnp.asarray(factor * X, jnp.float32)
        total = add_batch_sums(total, sums(scaled, x, jnp.ones(700, bool), x.mean(0)))
        want = 24 * 0.3**2 / ((X - mean) ** 2).sum(1).mean()
        np.testing.assert_allclose(Reconstruction.from_sums(total).fvu, want, rtol=1e-4)
    np.testing.assert_allclose(Reconstruction.from_sums(measure(noisy, X)).sse, 24 * 0.3**2, rtol=1e-4)


def test_a_large_mean_costs_no_digits():
    x = (RNG.standard_normal((500, 8)) + 3000).astype(np.float32)
    x64 = x.astype(np.float64)
    total = add_batch_sums(None, sums(to_itself(lambda z: z - 0.5), jnp.asarray(x), jnp.ones(500, bool), x[0]))
    want = 8 * 0.25 / ((x64 - x64.mean(0)) ** 2).sum(1).mean()
    np.testing.assert_allclose(Reconstruction.from_sums(total).fvu, want, rtol=1e-5)
    np.testing.assert_allclose(mean_from_sums(total, x[0]), x64.mean(0), rtol=1e-7)


def test_the_wrong_published_variants_differ():
    """On x̂ = x + noise + constant: variant 1 takes E over d of E[x_d²] for the squared mean (SAELens up to 6.18,
    SAEBench 0.6.0), variant 2 centres the residual (dictionary_learning)."""
    noise = RNG.standard_normal(X.shape)
    table = jnp.asarray(X + noise + 0.7, jnp.float32)
    total = add_batch_sums(
        None, sums(to_itself(lambda z: table), jnp.asarray(X, jnp.float32), jnp.ones(700, bool), SHIFT)
    )
    ours = 1 - Reconstruction.from_sums(total).fvu
    residual = noise + 0.7
    true = 1 - (residual**2).sum() / ((X - X.mean(0)) ** 2).sum()
    np.testing.assert_allclose(ours, true, rtol=1e-4)
    squared_second_moment = 1 - (residual**2).sum(1).mean() / ((X**2).sum(1).mean() - ((X**2).mean(0).mean()) ** 2)
    centred_residual = 1 - residual.var(0).sum() / X.var(0).sum()
    assert squared_second_moment > 1  # an "explained variance" above 1
    assert centred_residual > true + 0.1  # blind to the constant
    assert abs(squared_second_moment - ours) > 0.1


@pytest.mark.parametrize("c", [0.25, 1.0, 1.7])
def test_gamma_of_a_rescaled_reconstruction_is_the_factor(c):
    figures = Reconstruction.from_sums(measure(to_itself(lambda z: jnp.float32(c) * z), X))
    np.testing.assert_allclose([figures.gamma, figures.l2_ratio, figures.cosine], [c, c, 1], rtol=1e-5)


def test_gamma_is_one_for_a_projection_which_the_norm_ratio_calls_shrinkage():
    basis = jnp.asarray(np.linalg.qr(RNG.standard_normal((24, 6)))[0], jnp.float32)
    centred = X - OFFSET
    figures = Reconstruction.from_sums(measure(to_itself(lambda z: z @ basis.T, lambda x: x @ basis), centred))
    np.testing.assert_allclose(figures.gamma, 1, rtol=1e-4)
    assert figures.l2_ratio < 0.9
    sse = ((centred - centred @ np.asarray(basis) @ np.asarray(basis).T) ** 2).sum(1).mean()
    np.testing.assert_allclose(figures.sse, sse, rtol=1e-4)


def test_sparsity_and_density_of_a_known_code():
    codes = np.zeros((1000, 5))
    codes[:, 0] = 2.0
    codes[:100, 1] = -3.0
    codes[:5, 2] = 1.0
    codes[-1, 3] = 7.0  # on a row that is not kept
    keep = np.arange(1000) < 999
    W_dec = jnp.asarray(np.diag([1.0, 2.0, 3.0, 4.0, 5.0]), jnp.float32)
    dictionary = SimpleNamespace(encode=lambda x: x, decode=lambda z: z @ W_dec, W_dec=W_dec)
    total = None
    for rows, kept in zip(np.array_split(codes, 4), np.array_split(keep, 4)):
        batch = sums(dictionary, jnp.asarray(rows, jnp.float32), jnp.asarray(kept), jnp.zeros(5))
        total = add_batch_sums(total, batch)
    figures, density = Reconstruction.from_sums(total), Density.from_sums(total)
    assert figures.tokens == density.window == 999
    np.testing.assert_allclose(figures.l0, (999 + 100 + 5) / 999)
    np.testing.assert_allclose(figures.l1, (2 * 999 + 3 * 100 + 5) / 999, rtol=1e-6)
    np.testing.assert_allclose(figures.l1_weighted, (2 * 999 + 6 * 100 + 15) / 999, rtol=1e-6)
    assert (density.features, density.dead, density.above_1_percent, density.above_10_percent) == (5, 2, 2, 2)
    edges, counts = np.asarray(density.log10_edges), np.asarray(density.counts)
    assert counts.sum() == 3
    for fires in (999, 100, 5):
        i = min(np.searchsorted(edges, np.log10(fires / 999), side="right") - 1, len(counts) - 1)
        assert counts[i] == 1


def test_rescaling_a_latent_changes_only_the_plain_l1():
    sae = init_sae(jax.random.key(0), 24, 96, TopK(4))
    factor = jnp.linspace(0.5, 3, 96)
    scaled = Dictionary(sae.W_enc, sae.b_enc, sae.W_dec / factor[:, None], sae.b_dec, sae.activation)
    shrunk = SimpleNamespace(encode=lambda x: sae.encode(x) * factor[None], decode=scaled.decode, W_dec=scaled.W_dec)
    a, b = (dataclasses.asdict(Reconstruction.from_sums(measure(d, X - OFFSET))) for d in (sae, shrunk))
    assert abs(a.pop("l1") - b.pop("l1")) > 0.1
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, err_msg=name)


def reference_loss(model, transform):
    """Cross-entropies by hand in float64, the value at ADDRESS changed by `transform` at kept positions only."""
    E, U = np.asarray(model.E, np.float64), np.asarray(model.U, np.float64)
    losses, by_position, log_ps = [], np.zeros((2, 15)), []
    for tokens, keep in BATCHES:
        tokens, keep = np.asarray(tokens), np.asarray(keep)
        x = E[tokens]
        for i, block in enumerate(model.blocks):
            before = np.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
            x = x + np.tanh((x + before) @ np.asarray(block.W, np.float64))
            if i == 1:
                x = np.where(keep[..., None], transform(x), x)
        logits = (x @ U)[:, :-1]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        loss = -np.take_along_axis(log_p, tokens[:, 1:, None], -1)[..., 0]
        counted = keep[:, :-1] & keep[:, 1:]
        losses.append(loss[counted])
        log_ps.append(log_p[counted])
        by_position += np.stack([np.where(counted, loss, 0).sum(0), counted.sum(0)])
    with np.errstate(invalid="ignore"):
        return np.concatenate(losses).mean(), by_position[0] / by_position[1], np.concatenate(log_ps)


def test_losses_equal_a_float64_reference():
    model, factor = toy(), 0.6
    dictionary = Shrink(jnp.float32(factor))
    result = evaluate(model, ADDRESS, dictionary, BATCHES)
    loss = result.cross_entropy
    kept = [np.asarray(read(model, ADDRESS, output=False)(t)[ADDRESS])[np.asarray(k)] for t, k in BATCHES]
    mean = np.concatenate(kept).astype(np.float64).mean(0)
    clean, clean_by_position, p = reference_loss(model, lambda x: x)
    spliced, spliced_by_position, q = reference_loss(model, lambda x: factor * x)
    zero, _, _ = reference_loss(model, np.zeros_like)
    average, _, _ = reference_loss(model, lambda x: np.broadcast_to(mean, x.shape))
    near = {"rtol": 1e-5}
    np.testing.assert_allclose(loss.clean, clean, **near)
    np.testing.assert_allclose(loss.spliced, spliced, **near)
    np.testing.assert_allclose(loss.zero_ablated, zero, **near)
    np.testing.assert_allclose(loss.mean_ablated, average, **near)
    for name, ablated in (("zero", zero), ("mean", average)):
        assert ablated < clean, "random predictions of random tokens: each ablation helps"
        assert np.isnan(getattr(loss, f"recovered_{name}"))
        assert f"{name} ablation changes the loss by {ablated - clean:+.2g}" in loss.undefined[f"recovered_{name}"]
    np.testing.assert_allclose(loss.kl_spliced, (np.exp(p) * (p - q)).sum(-1).mean(), rtol=1e-4)
    np.testing.assert_allclose(loss.clean_by_position, clean_by_position, rtol=1e-5)
    np.testing.assert_allclose(loss.spliced_by_position, spliced_by_position, rtol=1e-5)
    assert np.isnan(loss.clean_by_position[0])  # BOS makes no prediction that counts
    assert loss.predictions == sum(int((k[:, :-1] & k[:, 1:]).sum()) for _, k in BATCHES)
    np.testing.assert_allclose(result.reconstruction.gamma, factor, rtol=1e-5)
    text = json.dumps(result.to_json(), allow_nan=False)
    assert json.loads(text)["cross_entropy"]["clean_by_position"][0] is None


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Shrink:
    factor: jax.Array

    def encode(self, x):
        return x

    def decode(self, z):
        return z * self.factor


def test_anchors_identity_recovers_all_and_the_two_ablations_nothing():
    model = toy()
    exact = evaluate(model, ADDRESS, Identity(), BATCHES)
    assert exact.cross_entropy.spliced == exact.cross_entropy.clean
    assert exact.cross_entropy.kl_spliced == 0
    assert exact.cross_entropy.kl_score_zero == exact.cross_entropy.kl_score_mean == 1
    zero = evaluate(model, ADDRESS, Shrink(jnp.float32(0)), BATCHES)
    assert zero.cross_entropy.kl_score_zero == pytest.approx(0, abs=1e-6)  # two programs for one thing
    assert zero.cross_entropy.spliced == pytest.approx(zero.cross_entropy.zero_ablated, abs=1e-6)


def test_what_stands_at_padding_is_in_no_figure():
    model, sae = toy(), init_sae(jax.random.key(0), 16, 64, TopK(4))
    other = [(jnp.where((tokens == 1) & ~keep, 17, tokens), keep) for tokens, keep in BATCHES]
    a, b = (evaluate(model, ADDRESS, sae, batches).to_json() for batches in (BATCHES, other))
    assert a == b
    # and the split into batches is only a matter of rounding
    whole = [tuple(jnp.concatenate(part) for part in zip(*BATCHES, strict=True))]
    c = evaluate(model, ADDRESS, sae, whole).to_json()
    for group in ("reconstruction", "cross_entropy"):
        for name, value in a[group].items():
            if value is not None and not isinstance(value, list | dict):
                np.testing.assert_allclose(c[group][name], value, rtol=1e-4, err_msg=name)
    assert a["density"] == c["density"]


def test_a_model_that_ignores_what_its_site_returns_does_not_pass():
    @register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Rounding:
        inner: object

        def __call__(self, tokens, *, taps=()):
            out = self.inner(tokens, taps=taps)
            edited = any("resid_post" in str(tap) for tap in taps)
            return out * (1 + 1e-6) if edited else out

    check_identity(toy(), ADDRESS, *BATCHES[0])
    with pytest.raises(SelfCheckError, match=r"blocks\.1\.resid_post"):
        check_identity(Rounding(toy()), ADDRESS, *BATCHES[0])


def test_batches_with_nothing_to_measure_are_refused():
    model, sae = toy(), init_sae(jax.random.key(0), 16, 64, TopK(4))
    tokens, keep = BATCHES[0]
    with pytest.raises(UserError, match="no batches"):
        evaluate(model, ADDRESS, sae, [])
    with pytest.raises(UserError, match="False at every position"):
        evaluate(model, ADDRESS, sae, [(tokens, jnp.zeros_like(keep))])
    with pytest.raises(UserError, match="shape of its tokens"):
        evaluate(model, ADDRESS, sae, [(tokens, keep[0])])
