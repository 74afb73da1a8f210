"""The sparse arithmetic against dense float64 written from the equations."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations import BatchTopK, GroupMax, TopK
from jax_interp.dictionaries.activations.select import top_k
from jax_interp.dictionaries.forms import Dictionary, init_sae
from jax_interp.dictionaries.losses import AuxK, Forward, Reconstruction, total
from jax_interp.dictionaries.losses.aux_k import default_k_aux
from jax_interp.dictionaries.sparse import products as sparse
from jax_interp.dictionaries.sparse import segment_sum as sums

F64 = jnp.float64


def topk_aux_loss(sae, x, dead, variance, k_aux):
    """(loss, aux without its coefficient) of one batch."""
    code = sae.code(x)
    progress = jnp.zeros((), x.dtype)
    forward = Forward(sae, x, x, code, sae.reconstruct(code), dead, variance, progress, jax.random.key(0))
    value, parts = total((Reconstruction(), AuxK(k=k_aux)), forward)
    return value, parts["aux_k"] * 32


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def dense_loss(params, x, dead, variance, k, k_aux):
    """Specs A4 on dense arrays by plain autodiff: masks from a full sort, no sparse code anywhere."""

    def largest(pre, k):
        return pre >= jnp.sort(pre, axis=1)[:, -k][:, None]

    pre = (x - params["b_dec"][None]) @ params["W_enc"] + params["b_enc"][None]
    z = jnp.where(largest(pre, k), jax.nn.relu(pre), 0.0)
    error = x - z @ params["W_dec"] - params["b_dec"][None]
    recon = (error**2).sum(1).mean() / variance
    if not dead.any():
        return recon, jnp.zeros(())
    fixed = jax.lax.stop_gradient(error)
    masked = jnp.where(dead[None], pre, -jnp.inf)
    chosen = largest(masked, min(k_aux, int(dead.sum()))) & dead[None]
    e_hat = jnp.where(chosen, jax.nn.relu(pre), 0.0) @ params["W_dec"]
    aux = ((fixed - e_hat) ** 2).sum() / ((fixed - fixed.mean(0, keepdims=True)) ** 2).sum()
    return recon + aux / 32, aux


def as_dict(sae):
    return {name: getattr(sae, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}


def random_sae(key, d, m, k, dtype):
    keys = jax.random.split(key, 3)
    sae = init_sae(keys[0], d, m, TopK(k), jax.random.normal(keys[1], (d,), dtype), dtype=dtype)
    b_enc = jax.random.normal(keys[2], (m,), dtype) / 10
    return Dictionary(sae.W_enc, b_enc, sae.W_dec, sae.b_dec, sae.activation)


@pytest.mark.parametrize(
    "n_dead", [pytest.param(0, marks=pytest.mark.slow), 3, pytest.param(20, marks=pytest.mark.slow), 60]
)  # none; within k_aux; within 4 k_aux; beyond
def test_loss_and_gradient_equal_the_dense_float64_reference(x64, n_dead):
    d, m, k, k_aux, rows = 12, 96, 5, 8, 150
    key = jax.random.key(n_dead)
    sae = random_sae(key, d, m, k, F64)
    x = jax.random.normal(jax.random.fold_in(key, 1), (rows, d), F64)
    dead = jnp.zeros(m, bool).at[jax.random.permutation(key, m)[:n_dead]].set(True)
    variance = jnp.asarray(7.0, F64)

    def ours(sae):
        return topk_aux_loss(sae, x, dead, variance, k_aux)

    (loss, aux), grad = jax.jit(jax.value_and_grad(ours, has_aux=True))(sae)
    reference = jax.value_and_grad(lambda p: dense_loss(p, x, dead, variance, k, k_aux), has_aux=True)
    (want, want_aux), want_grad = reference(as_dict(sae))
    np.testing.assert_allclose(loss, want, rtol=1e-12)
    np.testing.assert_allclose(aux, want_aux, rtol=1e-12)
    for name, g in as_dict(grad).items():
        np.testing.assert_allclose(g, want_grad[name], rtol=1e-9, atol=1e-12, err_msg=name)
    # and in float32 to float32's precision
    low = jax.tree.map(lambda a: a.astype(jnp.float32), sae)
    fn = jax.grad(lambda s: topk_aux_loss(s, x.astype(jnp.float32), dead, jnp.float32(7.0), k_aux)[0])
    for name, g in as_dict(jax.jit(fn)(low)).items():
        np.testing.assert_allclose(g, want_grad[name], atol=3e-6, err_msg=name)


@pytest.mark.parametrize("shape", [(40, 3), (2048, 32), (4096, 16), (1000, 8), (64, 64)])
def test_top_k_is_lax_top_k_to_the_bit_ties_included(shape):
    n, k = shape
    rng = np.random.default_rng(0)
    for x in (rng.standard_normal((9, n)).round(1), np.zeros((4, n)), -np.abs(rng.standard_normal((5, n)))):
        x = jnp.asarray(x, jnp.float32)
        got, want = jax.jit(lambda x: top_k(x, k))(x), jax.lax.top_k(x, k)
        assert (got[0] == want[0]).all()
        assert (got[1] == want[1]).all()


@pytest.mark.parametrize(
    ("rows", "m", "k", "d", "seed"), [(1, 33, 9, 2, 0), pytest.param(300, 64, 7, 5, 2, marks=pytest.mark.slow)]
)
def test_sparse_products_equal_dense_ones(rows, m, k, d, seed):
    rng = np.random.default_rng(seed)
    skew = rng.random(m) ** 8  # features fire very unevenly
    indices = np.stack([rng.choice(m, k, replace=False, p=skew / skew.sum()) for _ in range(rows)])
    values = rng.standard_normal((rows, k)) * (rng.random((rows, k)) < 0.8)
    g, W = rng.standard_normal((rows, d)), rng.standard_normal((m, d))
    z = np.zeros((rows, m))
    np.put_along_axis(z, indices, values, axis=1)
    v, g32, W32 = (jnp.asarray(a, jnp.float32) for a in (values, g, W))
    i = jnp.asarray(indices, jnp.int32)
    near = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(sparse.sparse_matmul(v, i, W32), z @ W, **near)
    np.testing.assert_allclose(sparse.sparse_dot(g32, i, W32), np.take_along_axis(g @ W.T, indices, 1), **near)
    np.testing.assert_allclose(sparse.sparse_outer(v, i, g32, m), z.T @ g, **near)
    np.testing.assert_allclose(sparse.sparse_outer(v, i, g32, m, transpose=True), g.T @ z, **near)
    np.testing.assert_array_equal(sparse.to_dense(v, i, m), z.astype(np.float32))
    # the same code as a list of entries
    entries = v.reshape(-1), jnp.repeat(jnp.arange(rows, dtype=jnp.int32), k), i.reshape(-1)
    np.testing.assert_allclose(sparse.decode_entries(*entries, W32, rows), z @ W, **near)
    dots = sparse.entries_dot(g32, *entries[1:], W32).reshape(rows, k)
    np.testing.assert_allclose(dots, np.take_along_axis(g @ W.T, indices, 1), **near)
    np.testing.assert_allclose(sparse.entries_outer(*entries, g32, m), z.T @ g, **near)
    np.testing.assert_allclose(sparse.entries_outer(*entries, g32, m, transpose=True), g.T @ z, **near)


def test_what_is_gathered_elsewhere_than_on_a_cpu_is_bounded(monkeypatch):
    """The forms for accelerators, on the CPU: the same numbers, and no gathered block beyond the bound."""
    rows, m, k, d, bound = 23, 40, 4, 6, 5 * 4 * 6
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, cpu, default: default(*args))
    monkeypatch.setattr(sparse, "GATHERED", bound)
    rng = np.random.default_rng(0)
    indices = np.stack([rng.choice(m, k, replace=False) for _ in range(rows)])
    values, g, W = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, k), (rows, d), (m, d)))
    z = np.zeros((rows, m), np.float32)
    np.put_along_axis(z, indices, values, axis=1)
    i, entry = jnp.asarray(indices, jnp.int32), jnp.repeat(jnp.arange(rows, dtype=jnp.int32), k)
    along = np.take_along_axis(g @ W.T, indices, 1)
    for product, args, want in (
        (sparse.sparse_matmul, (jnp.asarray(values), i, jnp.asarray(W)), z @ W),
        (sparse.sparse_dot, (jnp.asarray(g), i, jnp.asarray(W)), along),
        (sparse.entries_dot, (jnp.asarray(g), entry, i.reshape(-1), jnp.asarray(W)), along.reshape(-1)),
    ):
        np.testing.assert_allclose(product(*args), want, rtol=1e-5, atol=1e-5)
        found = re.findall(r"f32\[([0-9,]+)\] = gather", str(jax.make_jaxpr(product)(*args)))
        assert found
        assert max(np.prod([int(n) for n in shape.split(",")]) for shape in found) <= bound


def test_all_entries_on_one_feature_are_all_counted():
    rows, d = 700, 3
    v, i = jnp.ones((rows, 1)), jnp.full((rows, 1), 5, jnp.int32)
    out = sparse.sparse_outer(v, i, jnp.ones((rows, d)), 64)
    np.testing.assert_array_equal(out, np.where(np.arange(64)[:, None] == 5, rows, 0) * np.ones((1, d)))


def test_sorting_by_pairs_agrees_with_sorting_packed_words():
    indices = jax.random.randint(jax.random.key(0), (50, 4), 0, 1000)
    packed = sums.sort_entries(indices.reshape(-1), 1000)
    pairs = sums.sort_entries(indices.reshape(-1), 2**31 - 1)  # too many features for one 32-bit word
    for a, b in zip(packed, pairs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_output_has_the_dtype_of_the_input():
    sae = random_sae(jax.random.key(1), 16, 128, 6, jnp.float32)
    assert sae(jnp.ones((3, 5, 16), jnp.bfloat16)).dtype == jnp.bfloat16


def test_initialisation_is_tied_and_of_unit_norm():
    sae = init_sae(jax.random.key(0), 8, 32, TopK(4))
    np.testing.assert_allclose(jnp.linalg.norm(sae.W_dec, axis=1), np.ones(32), rtol=1e-6)
    np.testing.assert_array_equal(sae.W_enc, sae.W_dec.T)
    with pytest.raises(UserError, match="k=40 latents of n_features=32"):
        TopK(40).init(32, jnp.float32)


def test_k_aux_is_a_power_of_two_near_half_of_d():
    assert [default_k_aux(d, 10**6) for d in (2, 256, 512, 768, 4096)] == [1, 128, 256, 256, 2048]
    assert default_k_aux(256, 100) == 100


def test_k_aux_is_of_one_value_where_several_are_written():
    sae = dataclasses.replace(random_sae(jax.random.key(1), 24, 64, 3, jnp.float32), write_sites=3)
    x, y_hat, dead = jax.random.normal(jax.random.key(2), (20, 24)), jnp.zeros((20, 24)), jnp.ones(64, bool)
    one = jnp.float32(1)
    forward = Forward(sae, x, x, sae.training_code(x), y_hat, dead, one, one, jax.random.key(0))
    assert AuxK()(forward) == AuxK(k=4)(forward) != AuxK(k=8)(forward)


def test_a_limit_is_a_smaller_k():
    """What a sweep over k maps over: one program, of the largest k."""
    sae = random_sae(jax.random.key(1), 8, 64, 6, jnp.float32)
    x = jax.random.normal(jax.random.key(2), (20, 8))
    limited = lambda n: dataclasses.replace(sae, activation=TopK(6, limit=n)).encode(x)
    many = jax.vmap(limited)(jnp.asarray([2.0, 6.0]))
    np.testing.assert_array_equal(many[0], dataclasses.replace(sae, activation=TopK(2)).encode(x))
    np.testing.assert_array_equal(many[1], sae.encode(x))


def test_weighted_choices_do_not_depend_on_how_a_latent_is_scaled_against_its_row():
    sae = random_sae(jax.random.key(1), 8, 64, 5, jnp.float32)
    sae = dataclasses.replace(sae, activation=TopK(5, weighted=True))
    x, c = jax.random.normal(jax.random.key(2), (20, 8)), jnp.exp(jax.random.normal(jax.random.key(3), (64,)))
    scaled = Dictionary(sae.W_enc * c[None], sae.b_enc * c, sae.W_dec / c[:, None], sae.b_dec, sae.activation)
    np.testing.assert_allclose(scaled.encode(x), sae.encode(x) * c[None], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scaled(x), sae(x), rtol=1e-4, atol=1e-5)


def test_programs_do_not_grow_with_a_large_k():
    """That the sums are right whatever k leaves over of its groups is tested as well."""
    rng = np.random.default_rng(0)
    W, length = jnp.asarray(rng.standard_normal((300, 6)), jnp.float32), {}
    for k in (40, 45, 256, 261):
        indices = jnp.asarray([rng.permutation(300)[:k] for _ in range(4)], jnp.int32)
        values = jnp.asarray(rng.standard_normal((4, k)), jnp.float32)
        length[k] = len(jax.jit(sparse.sparse_matmul).lower(values, indices, W).as_text())
        want = np.asarray(sparse.to_dense(values, indices, 300), np.float64) @ np.asarray(W, np.float64)
        np.testing.assert_allclose(sparse.sparse_matmul(values, indices, W), want, rtol=1e-4, atol=1e-4)
    assert length[256] < 1.05 * length[40]
    assert length[261] < 1.05 * length[45]


@pytest.mark.parametrize("activation", [TopK(4), TopK(4, weighted=True), GroupMax(4), BatchTopK(4)])
def test_no_gradient_is_added_up_by_scattering_off_the_cpu(activation):
    """Additions to one place in an order that changes from run to run would end a run's bits' being the same: what is
    scattered on a GPU is entries of the dense code, each of which has a place of its own."""
    rows, d, m = 24, 8, 64
    sae = init_sae(jax.random.key(0), d, m, activation.init(m, jnp.float32))

    def loss(sae, x):
        return jnp.sum((x - sae.reconstruct(sae.training_code(x))) ** 2)

    lowered = jax.jit(jax.grad(loss)).trace(sae, jnp.ones((rows, d))).lower(lowering_platforms=("cuda",)).as_text()
    scattered = re.findall(r"stablehlo.scatter.*?\n *\}\) : .*? -> tensor<(.*?)xf32>", lowered, re.DOTALL)
    assert set(scattered) == {f"{rows}x{m}"}
