"""Every operator against float64 NumPy, at its edges, in every dtype; its gradients; batches and meshes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import LLAMA_LIKE, peaky

from jax_interp.core.errors import UserError
from jax_interp.models.sharding import rules
from jax_interp.steering import OPERATORS, Steer, SteeringVector
from jax_interp.surgery import at, call, edit
from jax_interp.surgery.value_tokens import WHOLE_TEXT
from jax_interp.training.sharding import make_mesh, shard, shard_batch

UNCHANGED_AT_ZERO = ("add", "ablate", "rotate", "add_keeping_norm")
D = 7


def reference(name: str, x: np.ndarray, v: np.ndarray, s: float) -> np.ndarray:
    """The operators as their definitions say, for one vector x, in float64."""
    x, v = np.asarray(x, np.float64), np.asarray(v, np.float64)
    norm = np.linalg.norm(v)
    if norm == 0:
        return x
    u = v / norm
    c = x @ u
    if name == "rotate":
        rest = x - c * u
        if np.linalg.norm(rest) <= 1e-12 * max(np.linalg.norm(x), 1e-300):
            return x
        w = rest / np.linalg.norm(rest)
        angle = np.clip(np.arctan2(rest @ w, c) - s, 0, np.pi)
        return np.linalg.norm(x) * (np.cos(angle) * u + np.sin(angle) * w)
    if name == "add_keeping_norm":
        y = x + s * v
        return y * np.linalg.norm(x) / np.linalg.norm(y) if np.linalg.norm(y) > 1e-12 * np.linalg.norm(x) else x
    return {
        "add": x + s * v,
        "ablate": x - s * c * u,
        "ablate_then_add": x - c * u + s * v,
        "at_least": x + max(s * norm - c, 0) * u,
        "at_most": x + min(s * norm - c, 0) * u,
    }[name]


def cases() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of x, v and s: random ones of all sizes, and the edges."""
    rng = np.random.default_rng(0)
    x, v = rng.standard_normal((40, D)), rng.standard_normal((40, D))
    x[:10] *= 10.0 ** rng.integers(-4, 5, (10, 1))
    s = rng.normal(0, 2, 40)
    x[10:14], v[10:14] = x[:4], 0.0  # no vector
    x[14:18] = 0.0
    x[18:22] = v[18:22] * np.array([[1.0], [-1.0], [2.0], [-0.5]])  # parallel
    x[22:26] = v[22:26] + 1e-3 * rng.standard_normal((4, D))  # nearly parallel
    s[26:30] = 0.0
    s[30], x[31] = 1e-4, -s[31] * v[31]  # what is added cancels x
    return x, v, s


def steered(name, x, v, s):
    return Steer(v[:, None], s[:, None], name)(x[:, None], tokens_of(x))[:, 0]


def tokens_of(x):
    return dataclasses.replace(WHOLE_TEXT, axes=("batch", "pos", "d_model"))


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_their_definitions(name):
    x, v, s = cases()
    with jax.enable_x64():
        y = np.asarray(jax.jit(steered, static_argnums=0)(name, *map(jnp.asarray, (x, v, s))))
    expected = np.stack([reference(name, *row) for row in zip(x, v, s, strict=True)])
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12 * np.abs(x).max(axis=1, keepdims=True).max())
    x32, v32, s32 = (np.asarray(a, np.float32) for a in (x, v, s))
    # Rounding puts a row that cancels, or is parallel, on either side of the edge: there only its size is known.
    exact = np.ones(40, bool)
    exact[[*range(18, 22), 31]] = False
    y32 = np.asarray(steered(name, *map(jnp.asarray, (x32, v32, s32))))
    expected = np.stack([reference(name, *row) for row in zip(x32, v32, s32, strict=True)])
    size = np.linalg.norm(x, axis=1, keepdims=True) + np.abs(s)[:, None] * np.linalg.norm(v, axis=1, keepdims=True)
    # Next to the direction, the angle across it has 1e-3 of the digits.
    near = (np.arange(40) >= 22) & (np.arange(40) < 26) & (name == "rotate")
    tolerance = np.where(near, 3e-3, 3e-6)[:, None]
    assert (np.abs(y32 - expected) <= tolerance * size + 1e-30)[exact].all()
    assert np.isfinite(y32).all()
    np.testing.assert_array_equal(y32[10:14], x32[10:14])
    if name in UNCHANGED_AT_ZERO:
        np.testing.assert_array_equal(y32[26:30], x32[26:30])
    if name == "rotate":
        np.testing.assert_array_equal(y32[14:22], x32[14:22])
    if name in ("rotate", "add_keeping_norm"):
        norm = lambda a: np.linalg.norm(np.asarray(a, np.float64), axis=1)
        assert (np.abs(norm(y32) - norm(x32)) <= tolerance[:, 0] * norm(x32)).all()


@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_are_finite_everywhere_and_right_where_they_exist(name):
    x, v, s = cases()
    mix = np.random.default_rng(1).standard_normal(D)
    loss = lambda x, v, s: jnp.sum(jax.vmap(lambda *row: steered(name, *(a[None] for a in row))[0])(x, v, s) @ mix)
    with jax.enable_x64():
        arrays = [jnp.asarray(a) for a in (x, v, s)]
        found = jax.jit(jax.grad(loss, (0, 1, 2)))(*arrays)
        assert all(jnp.isfinite(g).all() for g in found)
        smooth = np.r_[0:10, 26:31, 32:40] if name not in ("at_least", "at_most") else np.r_[0:10, 32:40]
        if name == "rotate":  # where the turn ends, the angle stays
            cosines = np.sum(x * v, 1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(v, axis=1) + 1e-300)
            angles = np.arccos(np.clip(cosines, -1, 1))
            smooth = smooth[np.abs(np.clip(angles - s, 0, np.pi) - (angles - s))[smooth] == 0]
        for i in smooth:
            row = [x[i], v[i], np.float64(s[i])]
            for k, gradient in enumerate(found):
                step = 1e-6 * max(1.0, np.abs(row[k]).max())
                there = np.atleast_1d(row[k])
                for j in range(min(len(there), 3)):
                    moved = []
                    for sign in (1, -1):
                        other = there.copy()
                        other[j] += sign * step
                        one = list(row)
                        one[k] = other if np.ndim(row[k]) else other[0]
                        moved.append(reference(name, *one) @ mix)
                    slope = (moved[0] - moved[1]) / (2 * step)
                    got = np.atleast_1d(np.asarray(gradient[i]))[j]
                    assert abs(got - slope) <= 1e-5 * max(1.0, abs(slope), np.abs(x[i]).max()), (i, k, j)


def test_a_vector_of_zeros_can_be_trained():
    """The gradient of what is added is the strength, also at the vector 0, where training begins."""
    x = jnp.ones((2, 1, D))
    loss = lambda v: jnp.sum(Steer(v, 3.0)(x, tokens_of(x)))
    np.testing.assert_array_equal(jax.grad(loss)(jnp.zeros(D)), np.full(D, 6.0, np.float32))


@pytest.mark.parametrize("name", OPERATORS)
def test_nan_stays(name):
    x, v = jnp.ones((1, D)).at[0, 2].set(jnp.nan), jnp.arange(1.0, D + 1)[None]
    assert jnp.isnan(steered(name, x, v, jnp.ones(1))[0, 2])
    assert jnp.isnan(steered(name, jnp.ones((1, D)), v, jnp.full(1, jnp.nan))).all()
    assert jnp.isnan(steered(name, jnp.ones((1, D)), v.at[0, 0].set(jnp.nan), jnp.ones(1)))[0, 0]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", OPERATORS)
def test_half_precision_rounds_once(name, dtype):
    """The value in a half precision model is the float64 value, rounded once."""
    rng = np.random.default_rng(2)
    x, v = (jnp.asarray(rng.standard_normal((400, D)), dtype) for _ in range(2))
    s = jnp.asarray(rng.normal(0, 1, 400), jnp.float32)
    y = steered(name, x, v, s).astype(dtype)
    assert y.dtype == dtype
    rows = zip(*(np.asarray(a.astype(jnp.float32), np.float64) for a in (x, v, s)), strict=True)
    expected = jnp.asarray(np.stack([reference(name, *row) for row in rows]), jnp.float32).astype(dtype)
    assert np.mean(np.asarray(y == expected)) > 0.995
    gap = np.abs(np.asarray(y, np.float64) - np.asarray(expected, np.float64))
    assert (gap <= 2 * float(jnp.finfo(dtype).eps) * np.abs(np.asarray(expected, np.float64)) + 1e-4).all()


@pytest.fixture(scope="module")
def model():
    return peaky(LLAMA_LIKE)


TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 64, (4, 6)), jnp.int32)
SEVERAL = ("add", "rotate", "add_keeping_norm", "at_most")


def edits_of(vectors, strengths):
    """A different operator in each place."""
    places = [f"blocks.{i}.resid_post" for i in range(3)] + ["blocks.1.attn.z"]
    width = lambda place, v: v[..., : LLAMA_LIKE.d_head] if place.endswith("z") else v
    shaped = lambda place, v: v[:, :, None] if place.endswith("z") and v.ndim == 3 else v
    return [
        at(place, Steer(width(place, shaped(place, vectors)), strengths, name))
        for place, name in zip(places, SEVERAL, strict=True)
    ]


def test_rows_have_their_own_vectors_and_strengths(model):
    rng = np.random.default_rng(4)
    vectors = jnp.asarray(rng.standard_normal((4, 1, 32)), jnp.float32)
    strengths = jnp.asarray([[0.5], [-1.0], [0.0], [2.0]])
    together = call(edit(model, edits_of(vectors, strengths)), TOKENS)
    for row in range(4):
        alone = call(edit(model, edits_of(vectors[row, 0], strengths[row, 0])), TOKENS[row : row + 1])
        np.testing.assert_allclose(together[row], alone[0], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "auto"])
def test_a_mesh_changes_nothing(model, explicit):
    rng = np.random.default_rng(4)
    vectors = jnp.asarray(rng.standard_normal((4, 1, 32)), jnp.float32)
    strengths = jnp.asarray([[0.5], [-1.0], [0.0], [2.0]])
    expected = call(edit(model, edits_of(vectors, strengths)), TOKENS)
    mesh = make_mesh(data=2, tensor=2, explicit=explicit)
    with jax.set_mesh(mesh):
        placed, there = shard(model, rules(model.config), mesh), shard_batch(TOKENS, mesh)
        found = call(edit(placed, edits_of(vectors, strengths)), there)
    np.testing.assert_allclose(jax.device_get(found), expected, atol=2e-5)


def test_shapes_that_could_mean_two_things_are_refused(model):
    address, v = "blocks.1.resid_post", jnp.ones(32)
    for strength in (jnp.ones(4), jnp.ones((4, 6)), jnp.ones((4, 1, 1))):
        with pytest.raises(UserError, match=r"one for each row, \[batch, 1\]"):
            edit(model, at(address, Steer(v, strength)))(TOKENS)
    with pytest.raises(UserError, match=r"one for each row, \[batch, 1, d\]"):
        edit(model, at(address, Steer(jnp.ones((6, 32)))))(TOKENS)
    with pytest.raises(UserError, match=r"one for each row, \[batch, 1, 1, d\]"):
        edit(model, at("blocks.1.attn.z", Steer(jnp.ones((4, 1, 8)))))(TOKENS)
    with pytest.raises(UserError, match="no operator 'turn'"):
        SteeringVector({address: v}).using("turn")
