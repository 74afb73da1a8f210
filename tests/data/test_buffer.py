"""The shuffle buffer: every row leaves exactly once, uniformly, under jit, and a saved buffer goes on the same."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_interp.data.buffer import draw, empty_buffer, push
from jax_interp.errors import UserError

push_, draw_ = jax.jit(push), jax.jit(draw, static_argnums=2)


def numbered(first, count):
    return jnp.arange(first, first + count, dtype=jnp.float32)[:, None] * jnp.ones((1, 3), jnp.float32)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=12), st.integers(0, 100))
def test_rows_are_conserved(operations, seed):
    """Whatever is pushed and drawn, what came out and what is inside are together what went in, each once."""
    buffer, inside, out, count = empty_buffer(24, 3), [], [], 0
    for i, (skip, pushing) in enumerate(operations):
        if pushing:
            keep = jnp.arange(6) >= skip
            buffer, dropped = push_(buffer, numbered(count, 6), keep)
            went_in = list(range(count + skip, count + 6))
            room = 24 - len(inside)
            assert int(dropped) == max(0, len(went_in) - room)
            inside += went_in[:room]
            count += 6
        else:
            buffer, rows, real = draw_(buffer, jax.random.key(seed + i), 5)
            rows, real = np.asarray(rows), np.asarray(real)
            assert real.sum() == min(5, len(inside))
            assert (rows[~real] == 0).all()
            drawn = rows[real][:, 0].astype(int).tolist()
            out += drawn
            assert set(drawn) <= set(inside)
            inside = [x for x in inside if x not in set(drawn)]
        assert int(buffer.filled) == len(inside)
        held = np.asarray(buffer.rows)[: len(inside)]
        assert (held == held[:, :1]).all()
        assert sorted(held[:, 0].astype(int).tolist()) == sorted(inside)
    assert len(out) == len(set(out))


def test_draws_are_uniform():
    """Every held row is drawn equally often, and so is every pair (chi-square within 5 sigma)."""
    buffer, _ = push(empty_buffer(16, 1), jnp.arange(10, dtype=jnp.float32)[:, None])
    _, rows, _ = jax.vmap(lambda key: draw(buffer, key, 3))(jax.random.split(jax.random.key(0), 20_000))
    rows = np.asarray(rows)[..., 0].astype(int)
    for place in range(3):  # in random order, so each place is uniform by itself
        counts = np.bincount(rows[:, place], minlength=10)
        chi2 = ((counts - 2000) ** 2 / 2000).sum()
        assert chi2 < 9 + 5 * np.sqrt(18)
    pairs = np.zeros((10, 10))
    for a in range(3):
        for b in range(3):
            np.add.at(pairs, (rows[:, a], rows[:, b]), a != b)
    off = pairs[~np.eye(10, dtype=bool)]
    expected = 20_000 * 6 / 90
    assert (pairs.diagonal() == 0).all()
    assert abs(off / expected - 1).max() < 6 / np.sqrt(expected)


def test_a_scan_over_a_saved_buffer_goes_on_with_the_same_bits():
    def step(buffer, i):
        buffer, _ = push(buffer, jnp.ones((4, 2), jnp.float32) * i.astype(jnp.float32))
        buffer, rows, _ = draw(buffer, jax.random.fold_in(jax.random.key(7), i), 4)
        return buffer, rows

    start, _ = push(empty_buffer(32, 2), jnp.zeros((16, 2), jnp.float32))
    whole_end, whole = jax.lax.scan(step, start, jnp.arange(10))
    middle, first = jax.lax.scan(step, start, jnp.arange(4))
    saved = jax.tree.map(np.asarray, middle)
    end, second = jax.lax.scan(step, jax.tree.map(jnp.asarray, saved), jnp.arange(4, 10))
    np.testing.assert_array_equal(whole, np.concatenate([first, second]))
    jax.tree.map(np.testing.assert_array_equal, whole_end, end)


def test_residence_is_geometric():
    """With f rows held and n drawn and pushed a step, a row stays f / n draws on average."""

    def step(buffer, i):
        buffer, rows, _ = draw(buffer, jax.random.fold_in(jax.random.key(1), i), 8)
        buffer, _ = push(buffer, jnp.full((8, 1), i, jnp.float32))
        return buffer, i.astype(jnp.float32) - rows[:, 0]

    start, _ = push(empty_buffer(64, 1), jnp.full((64, 1), -1.0, jnp.float32))
    _, age = jax.lax.scan(step, start, jnp.arange(1000))
    assert abs(float(jnp.mean(age[100:])) - 8) < 0.5


def test_impossible_sizes_are_refused():
    with pytest.raises(UserError, match="capacity 4"):
        draw(empty_buffer(4, 2), jax.random.key(0), 5)
    with pytest.raises(UserError, match="at least 1"):
        empty_buffer(0, 2)
