"""Deep causal transcoding: planted factors are recovered, and a linear map gives its singular values."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_model import linear, mapped
from small_models import GPT2_LIKE, peaky

from jax_interp.core.errors import UserError
from jax_interp.steering.elicitation import Between, DctConfig, between_on, calibrated_radius, dct
from jax_interp.surgery import Add, at, edit, values_at
from jax_interp.training import QUIET
from jax_interp.training.meshes import make_mesh

TO = Between("embed", "target")
ONE = [[1]]
D, OUT = 10, 8


def planted(factors: int = 3):
    """Orthonormal v and u, and weights."""
    rng = np.random.default_rng(0)
    basis = lambda n: np.linalg.qr(rng.standard_normal((n, n)))[0][:factors]
    return basis(D), basis(OUT), np.array([3.0, 2.0, 1.5])


def quadratic(x, v, u, weights):
    along = jnp.einsum("bpd,fd->bpf", x, v, precision="highest")
    return jnp.einsum("bpf,fk->bpk", 0.5 * weights[None, None] * along**2, u, precision="highest")


def exponential(x, v, u, weights):
    along = jnp.einsum("bpd,fd->bpf", x, v, precision="highest")
    return jnp.einsum("bpf,fk->bpk", weights[None, None] * jnp.expm1(along), u, precision="highest")


def same_rows(got, want, signed=True):
    inner = np.sum(np.asarray(got) * want, axis=1)
    np.testing.assert_allclose(inner if signed else np.abs(inner), 1, atol=2e-4)


@pytest.mark.parametrize("projections", [OUT, 5])
def test_a_linear_map_gives_its_singular_vectors(projections):
    """With as many projections as entries for any map; with fewer, for a map of this rank."""
    rng = np.random.default_rng(1)
    J = rng.standard_normal((OUT, D)) if projections == OUT else rng.standard_normal((OUT, 3)) @ rng.normal(size=(3, D))
    U, sigma, V = np.linalg.svd(J)
    config = DctConfig(TO, "linear", factors=3, radius=2.0, projections=projections, null=200)
    found = dct(config, mapped(linear, J, d=D), ONE, log=QUIET)
    np.testing.assert_allclose(found.weights, sigma[:3], rtol=1e-4)
    same_rows(found.inputs, V[:3], signed=False)
    same_rows(found.outputs * np.sign(np.sum(found.inputs * V[:3], axis=1))[:, None], U.T[:3])
    np.testing.assert_allclose(found.changes, 2 * found.inputs @ J.T, atol=1e-4)
    # E‖Jv‖² of a random unit vector is ‖J‖² / d
    np.testing.assert_allclose(np.mean(found.null**2), (sigma**2).sum() / D, rtol=0.2)
    assert found.null.max() < sigma[0]


def test_planted_quadratic_factors_are_recovered():
    v, u, weights = planted()
    config = DctConfig(TO, "quadratic", factors=3, radius=1.0, iterations=12, start="random", null=8)
    found = dct(config, mapped(quadratic, v, u, weights, d=D), ONE, log=QUIET)
    np.testing.assert_allclose(found.weights, weights, rtol=1e-4)
    same_rows(found.inputs, v, signed=False)
    same_rows(found.outputs, u)
    assert (found.null < found.weights[-1]).all()


@pytest.mark.parametrize("start", ["random", "jacobian"])
def test_planted_exponential_factors_are_recovered_with_their_sign(start):
    """With R = 1 the weights are the planted ones."""
    v, u, weights = planted()
    config = DctConfig(TO, "exponential", factors=3, radius=1.0, iterations=40, start=start, projections=OUT, null=8)
    found = dct(config, mapped(exponential, v, u, weights, d=D), ONE, log=QUIET)
    np.testing.assert_allclose(found.weights, weights, rtol=2e-3)
    same_rows(found.inputs, v)
    same_rows(found.outputs, u)
    np.testing.assert_allclose(found.scores, found.weights**2)
    best = found.towards(u[2])
    np.testing.assert_allclose(best.scores[0], weights[2] * math.expm1(1.0), rtol=2e-3)
    same_rows(best.vectors[:1], v[2:])


def test_the_calibrated_norm_has_a_closed_form():
    """Δ = Jθ + c‖θ‖² w: the ratio at R is R |c| ‖w‖ / rms ‖Jv‖; with J orthogonal it is R |c|."""
    J, w = np.linalg.qr(np.random.default_rng(2).standard_normal((D, D)))[0], np.eye(D)[0]
    square = lambda x, J, w: linear(x, J) + 0.2 * jnp.sum(x**2, axis=-1, keepdims=True) * w[None, None]
    model = mapped(square, J, w, d=D)
    found = calibrated_radius(model, between_on(TO, model, ONE), jax.random.key(0))
    np.testing.assert_allclose(found, 0.5 / 0.2, rtol=1e-4)
    flat = mapped(linear, J, d=D)
    with pytest.raises(UserError, match="linear in the vectors"):
        calibrated_radius(flat, between_on(TO, flat, ONE), jax.random.key(0))


CONFIG = dataclasses.replace(GPT2_LIKE, d_model=16, d_mlp=24, vocab_size=31)
INNER = Between("blocks.1.mlp_out", "blocks.2.resid_post", last=2)
PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6]]


@pytest.fixture(scope="module")
def model():
    return peaky(CONFIG)


@pytest.mark.slow
def test_linear_factors_of_a_transformer_are_those_of_its_jacobian(model):
    """The Jacobian is that of the whole model, prompt by prompt without padding."""
    found = dct(DctConfig(INNER, "linear", 4, 1.0, projections=16, null=4), model, PROMPTS, log=QUIET)

    def mean(theta):
        target = lambda m, tokens: values_at(m, INNER.target)(tokens)[INNER.target][0, -2:].mean(axis=0)
        of = lambda prompt: target(edit(model, at(INNER.source, Add(theta))), jnp.asarray([prompt]))
        return sum(of(prompt) for prompt in PROMPTS) / 2

    J = np.asarray(jax.jit(jax.jacfwd(mean))(jnp.zeros(16)))
    np.testing.assert_allclose(found.weights, np.linalg.svd(J)[1][:4], rtol=1e-3)
    np.testing.assert_allclose(found.inputs @ J.T, found.weights[:, None] * found.outputs, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["quadratic", "exponential"])
@pytest.mark.parametrize("axes", [{"data": 2}, {"fsdp": 2}, {"tensor": 2}], ids=str)
def test_a_mesh_finds_what_one_device_finds_and_a_run_resumes(model, kind, axes, tmp_path):
    config = DctConfig(INNER, kind, 4, 2.0, iterations=3, null=8, projections=16)
    whole = dct(config, model, PROMPTS, log=QUIET)
    there = dct(config, model, PROMPTS, place=make_mesh(**axes), run=tmp_path / "run", log=QUIET)
    np.testing.assert_allclose(there.scores, whole.scores, rtol=5e-3)
    np.testing.assert_allclose(there.null, whole.null, rtol=1e-3)
    again = dct(config, model, PROMPTS, place=make_mesh(**axes), run=tmp_path / "run", log=QUIET)  # all steps are done
    np.testing.assert_array_equal(again.inputs, there.inputs)


@pytest.mark.slow
def test_exponential_factors_of_a_transformer_have_more_effect_than_random_vectors(model):
    found = dct(DctConfig(INNER, factors=6, projections=16), model, PROMPTS, log=QUIET)
    assert found.radius > 0
    size = lambda x: np.linalg.norm(x, axis=1)
    assert size(found.changes).max() > size(found.null_changes).max()
    same_rows(found.inputs, found.inputs)


def test_what_cannot_be_decomposed_is_refused(model):
    with pytest.raises(UserError, match="need as many projections"):
        dct(DctConfig(INNER, "linear", 5, 1.0, projections=4), model, PROMPTS, log=QUIET)
    with pytest.raises(UserError, match="cannot be orthogonal"):
        dct(DctConfig(INNER, factors=17, radius=1.0), model, PROMPTS, log=QUIET)
    with pytest.raises(UserError, match="kind='cubic'"):
        DctConfig(INNER, "cubic")  # type: ignore[arg-type]
