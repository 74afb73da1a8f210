"""APD's losses against the same equations written out for a toy model of superposition."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_tms import TIED, pentagon, sparse, tiny

from jax_interp.core.errors import UserError
from jax_interp.decomposition.apd import (
    APDConfig,
    TrainedAPD,
    attributions,
    batch_top_k,
    component_masks,
    load_apd,
    save_apd,
    with_threshold,
)
from jax_interp.decomposition.apd.evaluate import evaluate_apd, features_of_apd, linearity_of_apd, mask_components
from jax_interp.decomposition.apd.losses import apd_losses, lp_attribution
from jax_interp.decomposition.apd.spectrum import products, spectra
from jax_interp.decomposition.apd.train import apd_step, init_state, initial_decomposition
from jax_interp.decomposition.components import Components, Decomposed
from jax_interp.decomposition.config import DecompositionConfig, Schedule
from jax_interp.decomposition.linearity import GridSettings, LinearitySettings, oracle_decomposition
from jax_interp.decomposition.masks import Mask, masked_output
from jax_interp.decomposition.matrices import weight_of
from jax_interp.decomposition.storage import load_decomposition, save_decomposition
from jax_interp.decomposition.train import Trained
from jax_interp.decomposition.train import initial_decomposition as spd_template
from jax_interp.toys.resid_mlp import ResidMLPConfig, init_resid_mlp

TOP_K = 0.211


def written_out(config, A, B, x, W, b):
    """Braun et al. 2025 for `relu(x W Wᵀ + b)`, whose two matrices share `P_c = A_c B_c`: scores of components, their
    top k of the batch, and the three losses."""
    P = jnp.einsum("cfm,cmd->cfd", A, B)
    pre = x @ W @ W.T + b[None]
    slope = (pre > 0).astype(jnp.float32)
    first = jnp.einsum("bf,cfd,od->bco", x, P, W)  # what P_c in the place of W contributes to output o
    second = jnp.einsum("bf,fd,cod->bco", x, W, P)  # in the place of Wᵀ
    scores = jnp.sum((slope[:, None, :] * (first + second)) ** 2, axis=-1)
    least = jnp.sort(scores.reshape(-1))[-int(TOP_K * len(x))]
    mask = jax.lax.stop_gradient((scores >= least).astype(jnp.float32))
    kept = jnp.einsum("bc,cfd->bfd", mask, P)
    y = jax.nn.relu(jnp.einsum("bf,bfd,bod->bo", x, kept, kept) + b[None])
    size = jnp.einsum("cfm,cfm->cm", A, A) * jnp.einsum("cmd,cmd->cm", B, B)
    found = {
        "parameter_match": jnp.mean((W - P.sum(0)) ** 2),
        "top_k_reconstruction": jnp.mean((y - jax.nn.relu(pre)) ** 2),
        "simplicity": jnp.einsum("bc,cm->", mask, jnp.sqrt(size + 1e-16)) / (len(x) * W.size),
    }
    total = found["parameter_match"] + found["top_k_reconstruction"] + config.simplicity * found["simplicity"]
    return total, (found, scores, mask)


def test_losses_and_gradients_are_the_equations():
    """Scores, mask, each loss and the gradient; float32, so up to its rounding."""
    model, config = pentagon(), APDConfig(tied=TIED, top_k=TOP_K)
    x = sparse(jax.random.key(5), 512)
    pair = init_state(config, model, seed=3).components["linear1"]
    A, B = pair.V.reshape(5, config.C, config.rank).transpose(1, 0, 2), pair.U.reshape(config.C, config.rank, 2)
    (total, (found, scores, mask)), expected = jax.value_and_grad(
        lambda A, B: written_out(config, A, B, x, model.linear1.weight, model.linear2.bias), (0, 1), has_aux=True
    )(A, B)
    decomposed = Decomposed(model, {"linear1": pair}, TIED)
    got = attributions(decomposed, config.rank, x)
    np.testing.assert_allclose(got, scores, rtol=1e-4, atol=1e-6)
    assert (np.asarray(batch_top_k(got, TOP_K)) == np.asarray(mask)).all()

    (loss, metrics), grads = jax.value_and_grad(
        lambda pair: apd_losses(config, Decomposed(model, {"linear1": pair}, TIED), x), has_aux=True
    )(pair)
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    for name, value in found.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    flat = Components(expected[0].transpose(1, 0, 2).reshape(5, -1), expected[1].reshape(-1, 2))
    np.testing.assert_allclose(grads.V, flat.V, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grads.U, flat.U, rtol=1e-4, atol=1e-6)


def test_components_start_xavier_normal():
    """A_c `[5, 3]` and B_c `[3, 2]` with deviation √(2 / (d_in + d_out)) each; of many components, to 3 %."""
    config = APDConfig(tied=TIED, C=400)
    pair = init_state(config, pentagon()).components["linear1"]
    assert np.isclose(float(pair.V.std()), (2 / 8) ** 0.5, rtol=0.03)
    assert np.isclose(float(pair.U.std()), (2 / 5) ** 0.5, rtol=0.03)


def test_attributions_are_slopes_of_the_output():
    """`A_c = Σ_o (∂f_o / ∂m_c)²` at the target, m_c the mask of component c in every matrix and Δ kept: of a tied
    toy, and of two layers in a stack."""
    layers = init_resid_mlp(jax.random.key(0), ResidMLPConfig(4, 6, n_layers=2, d_mlp=3))
    for model, config in (
        (pentagon(), APDConfig(tied=TIED)),
        (layers, APDConfig(("blocks.*.mlp",), C=3, rank=2)),
    ):
        parts = initial_decomposition(config, model, 1)
        x = sparse(jax.random.key(2), 16, n=5 if config.tied else 4, p=0.5)

        def output(m, parts=parts, config=config, x=x):
            masks = component_masks(parts, jnp.broadcast_to(m, (len(x), config.C)), config.rank)
            whole = {n: Mask(mask.components, jnp.ones((*mask.components.shape[:-1], 1))) for n, mask in masks.items()}
            return masked_output(parts, whole, x)

        slopes = jax.jit(jax.jacfwd(output))(jnp.ones(config.C))
        got = jax.jit(attributions, static_argnums=1)(parts, config.rank, x)
        np.testing.assert_allclose(got, np.sum(np.square(slopes), axis=1), rtol=1e-4, atol=1e-6)


def perfect(rank: int = 2) -> Decomposed:
    """The pentagon taken apart by hand, feature by feature: component i is row i of W, its other ranks empty."""
    model = pentagon()
    V, U = jnp.repeat(jnp.eye(5), rank, axis=1), jnp.repeat(model.linear1.weight, rank, axis=0)
    first = (jnp.arange(5 * rank) % rank == 0).astype(jnp.float32)
    return Decomposed(model, {"linear1": Components(V * first[None], U * first[:, None])}, TIED)


def alone(batch: int = 24) -> jax.Array:
    """One feature on in each row, so little that no other output rises above the bias."""
    which, value = jax.random.split(jax.random.key(7))
    on = jax.nn.one_hot(jax.random.randint(which, (batch,), 0, 5), 5)
    return on * jax.random.uniform(value, (batch, 1), minval=0.4, maxval=0.6)


def test_a_perfect_decomposition_has_no_errors():
    """One component a row is needed and found; without it, nothing comes out."""
    config = APDConfig(tied=TIED, rank=2, top_k=1.0)
    x = alone()
    trained = with_threshold(config, perfect(), x)
    np.testing.assert_array_equal(trained.kept(x), x > 0)
    found = evaluate_apd(config, trained, x)
    near = lambda value, want, atol=1e-10: np.testing.assert_allclose(value, want, atol=atol)
    near([found["error"]["top_k"], found["error"]["unmasked"], found["faithfulness"]], 0)
    near(found["losses"]["top_k_reconstruction"], found["error"]["top_k"])
    near(found["error_unrecovered"]["zero"], 1)
    assert (found["l0"], found["alive"]) == (1.0, 5)
    near(found["rate"], np.mean(np.asarray(x) > 0, axis=0), 1e-7)
    near(found["singular_values"]["linear1"], [[1.134, 0.0]] * 5, 1e-6)
    assert set(found["singular_values"]) == {"linear1"}, "a twin's are the same"

    W = trained.model.target.linear1.weight
    oracle = oracle_decomposition(trained.model, {"linear1": (jnp.eye(5), W), "linear2": (W.T, jnp.eye(5))})
    few = LinearitySettings(samples=2, ks=(1,), adversary_steps=(4,), pairs=4)
    report = linearity_of_apd(trained, x, oracle=oracle, settings=few)
    near([report.strict.normalised, report.all_on.normalised, report.scrub.normalised], 0)
    near([report.strict.excess, report.union[1].excess], 0)
    assert (report.l0, report.rank) == (1.0, 10)
    assert report.anti.normalised > 0.1
    assert report.scrub.raw == 0 or report.anti_over_scrub > 1e6  # the quotient by an exact 0 is not defined

    features = features_of_apd(trained, 5, oracle=oracle, active=(1,), settings=GridSettings(4, cap=4))
    assert features["identity_error"] == 0
    assert np.argmax(features["probe"], axis=1).tolist() == [0, 1, 2, 3, 4]
    near([row["excess"] for row in features["composites"]], 0)


def test_a_threshold_keeps_the_top_k_of_its_batch():
    config, x = APDConfig(tied=TIED, top_k=0.4), sparse(jax.random.key(1), 64, p=0.3)
    model = initial_decomposition(config, pentagon(), 2)
    trained = with_threshold(config, model, x)
    kept = np.asarray(jax.jit(TrainedAPD.kept)(trained, x))
    np.testing.assert_array_equal(kept, jax.jit(lambda m, x: batch_top_k(attributions(m, 3, x), 0.4))(model, x))
    assert kept.sum() == int(0.4 * 64)
    np.testing.assert_array_equal(with_threshold(APDConfig(tied=TIED, top_k=None), model, x).kept(x), 1)


def test_components_are_taken_away_whole():
    """What is run with a component off is the model without its product in every matrix, of every layer."""
    model = init_resid_mlp(jax.random.key(0), ResidMLPConfig(4, 6, n_layers=2, d_mlp=3))
    parts = initial_decomposition(APDConfig(("blocks.*.mlp",), C=3, rank=2), model, 1)
    able, x = mask_components(parts, 2, least=1e-6), jax.random.normal(jax.random.key(3), (5, 4))
    assert able.count == 3
    assert able.ranks.tolist() == [2 * 4] * 3
    mask = jnp.array([1.0, 0.0, 1.0])
    P = products(parts, 2)
    W = {name: jnp.einsum("c,lcio->lio", mask, P[f"blocks.*.mlp.{name}"]) for name in ("up", "down")}
    r = x @ model.embed.weight
    for layer in range(2):
        r = r + jax.nn.relu(r @ W["up"][layer]) @ W["down"][layer]
    got = able.run(jnp.broadcast_to(mask, (5, 3)), x)
    np.testing.assert_allclose(got, r @ model.embed.weight.T, rtol=1e-4, atol=1e-5)
    assert list(spectra(parts, 2)) == [f"blocks.{layer}.mlp.{name}" for layer in (0, 1) for name in ("down", "up")]
    one = spectra(parts, 2)["blocks.1.mlp.up"]
    best = np.einsum("c,ci,co->cio", one.values[:, 0], one.reads, one.writes)
    off = np.linalg.norm(np.asarray(P["blocks.*.mlp.up"][1]) - best, axis=(1, 2))
    np.testing.assert_allclose(off, one.values[:, 1], rtol=1e-4, err_msg="nothing of rank one is nearer")


def test_a_saved_decomposition_is_the_same(tmp_path):
    config, x = APDConfig(tied=TIED, top_k=0.4), sparse(jax.random.key(1), 64)
    model = pentagon()
    trained = with_threshold(config, initial_decomposition(config, model, 2), x)
    path = tmp_path / "apd.safetensors"
    save_apd(path, trained, config)
    loaded, settings = load_apd(path, model)
    assert (settings, loaded.rank) == (config, config.rank)
    jax.tree.map(np.testing.assert_array_equal, loaded, trained)
    with pytest.raises(UserError, match=r"is of another model: components.linear1.V is \(5, 15\), this one needs"):
        load_apd(path, tiny(n=4))
    with pytest.raises(UserError, match="is a APDConfig, not a DecompositionConfig"):
        load_decomposition(path, model)
    spd = DecompositionConfig(tied=TIED, C=2)
    save_decomposition(tmp_path / "spd", Trained(spd_template(spd, model), ()), spd)
    with pytest.raises(UserError, match="is a DecompositionConfig, not a APDConfig"):
        load_apd(tmp_path / "spd", model)
    with pytest.raises(UserError, match="no decomposition at"):
        load_apd(tmp_path / "none", model)


def test_ties_at_the_least_are_kept_and_nothing_is_not():
    """Of ten rows .5 a row: five. One positive of fifty is all there is to keep; of equal ones all are."""
    one = jnp.zeros((10, 5)).at[3, 2].set(1.0)
    np.testing.assert_array_equal(batch_top_k(one, 0.5), one > 0)
    assert not batch_top_k(jnp.zeros((10, 5)), 0.5).any()
    assert int(batch_top_k(jnp.full((10, 5), 2.0), 0.5).sum()) == 50
    ranked = jnp.arange(50.0).reshape(10, 5)
    np.testing.assert_array_equal(batch_top_k(ranked, 0.5), ranked >= 45)


def resid(layers=2):
    """Six features in seven dimensions, four neurons a layer, components of rank 2 of all matrices."""
    model = init_resid_mlp(jax.random.key(0), ResidMLPConfig(6, 7, layers, 4))
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (5, 6)), jnp.float32)
    return model, x


RESID = APDConfig(("blocks.*.mlp",), C=3, rank=2, top_k=1.0, activations=("blocks.*.mlp.post",),
                  activation_reconstruction=0.5)  # fmt: skip


def forward(model, x, up, down):
    """A residual MLP in float64, with these matrices (of each row, where they have an axis for rows): the output, and
    the neurons of each layer."""
    E = np.asarray(model.embed.weight, np.float64)
    r, posts = np.asarray(x, np.float64) @ E, []
    apply = lambda v, W: np.einsum("bi,bio->bo" if W.ndim == 3 else "bi,io->bo", v, W)
    for W_in, W_out in zip(up, down, strict=True):
        post = np.maximum(apply(r, W_in), 0)
        posts.append(post)
        r = r + apply(post, W_out)
    return r @ E.T, posts


def test_attributions_and_activations_of_stacked_blocks():
    """What each component does to an output in the target, at first order, summed over layers and both matrices: the
    change of output for a small share of it added, by central differences in float64. And the neurons of the model of
    the components kept, mean square over rows and neurons of all layers."""
    model, x = resid()
    parts = Decomposed(model, init_state(RESID, model, seed=1).components)
    exact = lambda name: np.asarray(weight_of(model, name), np.float64)
    up, down = exact("blocks.*.mlp.up"), exact("blocks.*.mlp.down")

    def components(name):
        V, U = (np.asarray(a, np.float64) for a in (parts.of(name).V, parts.of(name).U))
        return np.einsum("licm,lcmo->clio", V.reshape(*V.shape[:2], 3, 2), U.reshape(V.shape[0], 3, 2, -1))

    P_up, P_down = components("blocks.*.mlp.up"), components("blocks.*.mlp.down")
    eps, want = 1e-6, []
    for c in range(3):
        more, less = (forward(model, x, up + s * P_up[c], down + s * P_down[c])[0] for s in (eps, -eps))
        want.append((((more - less) / (2 * eps)) ** 2).sum(axis=1))
    got = attributions(parts, 2, x)
    np.testing.assert_allclose(got, np.stack(want, axis=1), rtol=1e-4, atol=1e-6)

    _, found = apd_losses(RESID, parts, x)
    mask = np.asarray(batch_top_k(got, 1.0), np.float64)
    assert mask.sum() == 5
    kept = lambda P: np.einsum("bc,clio->lbio", mask, P)
    output, posts = forward(model, x, kept(P_up), kept(P_down))
    target, right = forward(model, x, up, down)
    off = np.mean([(a - b) ** 2 for a, b in zip(posts, right, strict=True)])
    np.testing.assert_allclose(found["activation_reconstruction"], off, rtol=1e-4)
    np.testing.assert_allclose(found["top_k_reconstruction"], np.mean((output - target) ** 2), rtol=1e-4)


def test_minimality_of_attributions_by_hand():
    """(|A| / outputs)^{p/2} over components, the mean of two rows: with p = 1 roots, 1 + 2 and 3 + 0; with p = 2, 1 + 4
    and 9 + 0."""
    scores = jnp.asarray([[2.0, 8.0], [18.0, 0.0]])
    np.testing.assert_allclose(lp_attribution(scores, 2, 1.0), 3.0, rtol=1e-6)
    np.testing.assert_allclose(lp_attribution(scores, 2, 2.0), 7.0, rtol=1e-6)


def test_unit_norm_keeps_to_the_sphere():
    """A step begins with columns of norm 1, whatever they were, and the gradient that it takes, which Adam's first
    moment is a tenth of, is at right angles to them; U is as it would be."""
    model, x = resid()
    config = dataclasses.replace(RESID, unit_norm=True, schedule=Schedule(1e-3, "constant"))
    state = init_state(config, model, seed=1)
    after, _ = jax.jit(partial(apd_step, config))(state, x, model)
    has_moments = lambda part: hasattr(part, "mu")
    moment = next(filter(has_moments, jax.tree.leaves(after.opt, is_leaf=has_moments))).mu
    for name, pair in state.components.items():
        unit = np.asarray(pair.V, np.float64)
        unit = unit / np.linalg.norm(unit, axis=-2, keepdims=True)
        assert np.abs(np.asarray(after.components[name].V) - unit).max() < 1.1e-3  # Adam's first step is of the rate
        along = np.abs((np.asarray(moment[name].V) * unit).sum(axis=-2))
        assert along.max() < 1e-5 * np.abs(moment[name].V).max()
        assert np.abs(moment[name].V).max() > 0
