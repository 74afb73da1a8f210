"""The kernels in Pallas' interpreter, against dense float64 and the products they stand for; and lowered for CUDA."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from jax_interp.core import config_json as configs
from jax_interp.dictionaries.activations import BatchTopK, TopK
from jax_interp.dictionaries.forms import init_sae
from jax_interp.dictionaries.loading import load_dictionary
from jax_interp.dictionaries.saving import save_dictionary
from jax_interp.dictionaries.sparse import kernels
from jax_interp.dictionaries.sparse import products as sparse
from jax_interp.dictionaries.training.config import DictionaryConfig
from jax_interp.training.sharding import make_mesh

TRITON = "__gpu$xla.gpu.triton"


@pytest.fixture
def interpreted(monkeypatch):
    """What a GPU would run, on the CPU, in blocks so small that d takes several."""
    monkeypatch.setattr(pl, "pallas_call", partial(pl.pallas_call, interpret=True))
    monkeypatch.setattr(kernels, "COLUMNS", 16)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, **by: by.get("cuda", by["cpu"])(*args))


def random_code(rows, m, k, seed=0):
    """(values, indices): all rows have feature 3, the last third of the features is in none."""
    rng = np.random.default_rng(seed)
    others = np.setdiff1d(np.arange(2 * m // 3), [3])
    indices = np.stack([[3, *rng.choice(others, k - 1, replace=False)] for _ in range(rows)])
    return rng.standard_normal((rows, k)), indices


def products(values, indices, g, W, asked):
    """Every product, of the code as rows and as entries in which two places are left over."""
    rows, k = indices.shape
    entries = jnp.pad(values.reshape(-1), (0, 2))
    of_row = jnp.pad(jnp.repeat(jnp.arange(rows, dtype=jnp.int32), k), (0, 2), constant_values=rows)
    features = jnp.pad(indices.reshape(-1), (0, 2), constant_values=len(W))
    return {
        "matmul": sparse.sparse_matmul(values, indices, W, asked),
        "dot": sparse.sparse_dot(g, indices, W, asked),
        "outer": sparse.sparse_outer(values, indices, g, len(W), kernels=asked),
        "outer.T": sparse.sparse_outer(values, indices, g, len(W), transpose=True, kernels=asked),
        "entries matmul": sparse.decode_entries(entries, of_row, features, W, rows, asked),
        "entries dot": sparse.entries_dot(g, of_row, features, W, asked)[:-2].reshape(rows, k),
        "entries outer": sparse.entries_outer(entries, of_row, features, g, len(W), kernels=asked),
        "entries outer.T": sparse.entries_outer(entries, of_row, features, g, len(W), True, asked),
    }


def dense_products(values, indices, g, W):
    values, indices, g, W = (np.asarray(a, np.float64 if a.dtype.kind != "i" else int) for a in (values, indices, g, W))
    z = np.zeros((len(values), len(W)))
    np.put_along_axis(z, indices, values, axis=1)
    named = {"matmul": z @ W, "dot": np.take_along_axis(g @ W.T, indices, 1), "outer": z.T @ g, "outer.T": g.T @ z}
    return named | {f"entries {name}": a for name, a in named.items()}


def drawn(rows, m, k, d, dtype):
    values, indices = random_code(rows, m, k)
    rng = np.random.default_rng(1)
    g, W = rng.standard_normal((rows, d)), rng.standard_normal((m, d))
    return jnp.asarray(values, dtype), jnp.asarray(indices, jnp.int32), jnp.asarray(g, dtype), jnp.asarray(W, dtype)


@pytest.mark.parametrize(
    ("rows", "m", "k", "d", "dtype"),
    [(21, 12, 5, 37, jnp.float32), (9, 30, 1, 16, jnp.float32), (21, 12, 5, 37, jnp.bfloat16)],
)
def test_every_product_equals_the_dense_float64_one(interpreted, rows, m, k, d, dtype):
    args = drawn(rows, m, k, d, dtype)
    run = jax.jit(partial(products, asked=True))
    found, again, want = run(*args), run(*args), dense_products(*args)
    # Summed in float32, so that a bfloat16 result is off by no more than its own rounding, 2^-9 of it.
    rtol = 2.0**-8 if dtype == jnp.bfloat16 else 1e-5
    for name, a in found.items():
        assert a.dtype == dtype, name
        np.testing.assert_allclose(np.asarray(a, np.float64), want[name], rtol=rtol, atol=2e-5, err_msg=name)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(again[name]), err_msg=name)
    assert not np.asarray(found["outer"][2 * m // 3 :], np.float64).any()  # 0, not what memory held


@pytest.mark.parametrize("activation", [TopK(3), BatchTopK(3)])
def test_a_dictionary_has_the_gradient_it_has_without(interpreted, activation):
    x, g = jax.random.normal(jax.random.key(1), (2, 10, 20))
    start = activation.init(24, jnp.float32)
    sae = init_sae(jax.random.key(0), 20, 24, start, jnp.ones(20) / 10)
    asked = dataclasses.replace(sae, activation=dataclasses.replace(start, kernels=True))

    def loss(weights, x, dictionary):
        dictionary = dataclasses.replace(dictionary, **weights)
        encode = getattr(dictionary.activation, "encode_batch", dictionary.activation.encode)
        return jnp.vdot(g, dictionary.reconstruct(encode(dictionary, x)))

    weights = {name: getattr(sae, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    grad = jax.jit(jax.grad(loss, argnums=(0, 1)))
    assert "pallas_call" in str(jax.make_jaxpr(grad)(weights, x, asked))
    assert "pallas_call" not in str(jax.make_jaxpr(grad)(weights, x, sae))
    pairs = zip(jax.tree.leaves(grad(weights, x, asked)), jax.tree.leaves(grad(weights, x, sae)), strict=True)
    for ours, plain in pairs:
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)


def test_many_at_once_are_each_alone(interpreted):
    """As a sweep has them: dictionaries under `vmap`."""
    values, indices, _, W = drawn(6, 12, 3, 20, jnp.float32)
    several = jnp.stack([W, 2 * W]), jnp.stack([indices, 11 - indices])
    run = lambda W, indices: sparse.decode(values, indices, W, True)
    together = jax.jit(jax.vmap(run))(*several)
    for n, (one, at) in enumerate(zip(*several, strict=True)):
        np.testing.assert_array_equal(together[n], run(one, at))


def test_doubles_are_summed_as_doubles(interpreted):
    with jax.enable_x64(True):
        values, indices, g, W = drawn(5, 12, 2, 20, jnp.float64)
        want = dense_products(values, indices, g, W)
        near = {"rtol": 1e-13, "atol": 1e-13}
        np.testing.assert_allclose(sparse.sparse_matmul(values, indices, W, True), want["matmul"], **near)
        np.testing.assert_allclose(sparse.sparse_dot(g, indices, W, True), want["dot"], **near)


def gradient(asked):
    def loss(values, W, indices, g):
        return jnp.vdot(g, sparse.decode(values, indices, W, asked))

    return jax.jit(jax.grad(loss, argnums=(0, 1)))


def on_an_h100():
    """jax 0.12 asks which GPU it is that there is not."""
    if not hasattr(jax.sharding, "AbstractDevice"):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


# As benchmarks/kernels.py has them; more weights than 4 GiB, which takes 64-bit offsets; and odd ones.
@pytest.mark.parametrize(
    ("rows", "m", "k", "d", "dtype"),
    [(8192, 131072, 64, 4096, jnp.bfloat16), (8, 2**21, 4, 768, jnp.float32), (7, 100, 3, 37, jnp.float16)],
)
def test_they_lower_for_cuda_where_no_gpu_is(rows, m, k, d, dtype):
    shape = lambda *shape: jax.ShapeDtypeStruct(shape, dtype)
    args = shape(rows, k), shape(m, d), jax.ShapeDtypeStruct((rows, k), jnp.int32), shape(rows, d)
    with on_an_h100():
        lowered = lambda asked: gradient(asked).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
        assert lowered(True).count(f"@{TRITON}") == 2  # the gradients; the value is not needed
        assert TRITON not in lowered(False)


def test_elsewhere_and_on_a_mesh_nothing_changes():
    values, indices, g, W = drawn(16, 12, 3, 20, jnp.float32)
    traced = lambda asked: gradient(asked).trace(values, W, indices, g)
    compiled = lambda asked: traced(asked).lower().compile().as_text()
    steps = lambda asked: re.findall(r"^ .* = \S+ \w+\(.*?\)", compiled(asked), re.MULTILINE)
    assert steps(True) == steps(False) != []
    lowered = lambda asked, platform: traced(asked).lower(lowering_platforms=(platform,)).as_text()
    assert TRITON not in lowered(True, "tpu")
    with jax.set_mesh(make_mesh(data=8, explicit=False)):
        assert lowered(True, "cuda") == lowered(False, "cuda")


def test_what_was_saved_before_there_were_kernels_is_read(tmp_path):
    sae = init_sae(jax.random.key(0), 8, 16, TopK(4, kernels=True))
    path = save_dictionary(tmp_path, sae, address="x", model="m") / "dictionary.json"
    assert load_dictionary(tmp_path).dictionary.activation.kernels
    said = json.loads(path.read_text())
    del said["activation"]["kernels"], said["digest"]
    path.write_text(json.dumps(said))
    assert load_dictionary(tmp_path).dictionary.activation == TopK(4)
    config = configs.to_json(DictionaryConfig("x", activation=BatchTopK(4, kernels=True)))
    assert configs.from_json(DictionaryConfig, config).activation.kernels
    del config["activation"]["kernels"]
    assert configs.from_json(DictionaryConfig, config).activation == BatchTopK(4)


@pytest.mark.gpu
@pytest.mark.parametrize(("d", "dtype"), [(1000, jnp.float32), (1024, jnp.bfloat16), (37, jnp.float16)])
def test_a_gpu_computes_the_same_every_time(d, dtype):
    """JAX_PLATFORMS=cuda pytest -m gpu tests/dictionaries/test_kernels.py"""
    if jax.default_backend() != "gpu":
        pytest.skip("needs an NVIDIA GPU: JAX_PLATFORMS=cuda")
    args = drawn(513, 3000, 33, d, dtype)
    run = jax.jit(partial(products, asked=True))
    found, want = run(*args), dense_products(*args)
    rtol = {jnp.float32: 1e-5, jnp.bfloat16: 2.0**-8, jnp.float16: 2.0**-10}[dtype]
    for name, a in found.items():
        np.testing.assert_allclose(np.asarray(a, np.float64), want[name], rtol=rtol, atol=1e-3, err_msg=name)
    for _ in range(5):
        for name, a in run(*args).items():
            np.testing.assert_array_equal(np.asarray(a), np.asarray(found[name]), err_msg=name)


@pytest.mark.gpu
def test_a_gpu_finds_the_end_of_more_than_4_gib():
    if jax.default_backend() != "gpu":
        pytest.skip("needs an NVIDIA GPU: JAX_PLATFORMS=cuda")
    m, d = 2**20 + 2, 1100
    W = jnp.zeros((m, d)).at[-1].set(jnp.arange(d) / d)
    indices = jnp.asarray([[m - 1, 0], [5, m - 1]], jnp.int32)
    out = jax.jit(lambda values: sparse.sparse_matmul(values, indices, W, True))(jnp.asarray([[2.0, 1.0], [1.0, 3.0]]))
    np.testing.assert_allclose(out, np.asarray([[2.0], [3.0]]) * np.arange(d) / d, rtol=1e-6)
