"""The first features of a code, decoded for several numbers of them at once, against float64 in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.dictionaries.activations.select import first_true_positions
from jax_interp.dictionaries.codes import BatchCode, DenseCode, EntryCode, RowCode
from jax_interp.dictionaries.nested import decode_nested

ROWS, M, D = 11, 40, 6
ENDS = [1, 13, 13, 30]  # two the same, and features beyond the last


def codes():
    """{kind: (code of values, values, the same dense)}; the list of entries has places left over."""
    rng = np.random.default_rng(0)
    z = np.where(rng.random((ROWS, M)) < 0.2, rng.standard_normal((ROWS, M)), 0)
    indices = np.stack([rng.permutation(M)[:5] for _ in range(ROWS)])
    of_rows = rng.standard_normal((ROWS, 5))
    of_rows_dense = np.zeros((ROWS, M))
    np.put_along_axis(of_rows_dense, indices, of_rows, axis=1)
    rows, features = first_true_positions(jnp.asarray(z != 0), 200)
    entries = np.append(z[z != 0], np.zeros(200 - (z != 0).sum()))
    pre = jnp.zeros(200)
    return {
        "dense": (lambda v: DenseCode(v, v), z, z),
        "rows": (lambda v: RowCode(v, jnp.asarray(indices, jnp.int32)), of_rows, of_rows_dense),
        "batch": (lambda v: BatchCode(v, rows, features, ROWS), entries, z),
        "entries": (lambda v: EntryCode(values=v, rows=rows, features=features, n_rows=ROWS, pre=pre), entries, z),
    }


@pytest.mark.parametrize("kind", ["dense", "rows", "batch", "entries"])
@pytest.mark.parametrize("traced", [False, True])
def test_values_and_gradients_are_those_of_the_first_columns(kind, traced):
    with jax.enable_x64(True):
        code_of, values, z = codes()[kind]
        rng = np.random.default_rng(1)
        W, g = rng.standard_normal((M, D)), rng.standard_normal((len(ENDS), ROWS, D))

        def decoded(values, W, ends):
            return jnp.stack(decode_nested(code_of(values), W, ends if traced else ENDS))

        out, back = jax.vjp(jax.jit(decoded), jnp.asarray(values), jnp.asarray(W), jnp.asarray(ENDS, jnp.int32))
        of_values, of_W, _ = back(jnp.asarray(g))
        # A code's dense form is linear in its values: the gradient of the values is that of z where they stand.
        of_z = jax.vjp(lambda v: code_of(v).dense(M), jnp.asarray(values))[1]
        want_z, want_W = np.zeros((ROWS, M)), np.zeros((M, D))
        for i, n in enumerate(ENDS):
            np.testing.assert_allclose(out[i], z[:, :n] @ W[:n], rtol=1e-12, atol=1e-12)
            want_z[:, :n] += g[i] @ W[:n].T
            want_W[:n] += z[:, :n].T @ g[i]
        np.testing.assert_allclose(of_W, want_W, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(of_values, of_z(jnp.asarray(want_z))[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["dense", "batch"])
def test_a_feature_is_decoded_once(kind):
    """Four parts of the features cost about what the whole costs, forward and backward, and not four times it."""
    code_of, values, _ = codes()[kind]
    W = jnp.ones((M, 64))

    def loss(values, W, ends):
        return sum(jnp.sum(part**2) for part in decode_nested(code_of(values), W, ends))

    values = jnp.asarray(values, jnp.float32)
    of = lambda ends: jax.jit(jax.grad(lambda v, W: loss(v, W, ends), (0, 1))).lower(values, W).compile()
    flops = lambda ends: (of(ends).cost_analysis() or {})["flops"]
    assert flops([10, 20, 30, 40]) < 2.5 * flops([40])
