"""Generation on a CPU runs the layers of a stack as views of its memory: no copy, and the same tokens and values."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import CONFIGS, GPT2_LIKE, LLAMA_LIKE, peaky

from jax_interp.models import generate, init, stream
from jax_interp.models.generation import generate as generating
from jax_interp.models.generation.unstacking import unstacked_views
from jax_interp.surgery import Add, Each, Scale, at, edit, get_block, iter_segments, read

TOKENS = jnp.asarray([[5, 9, 33, 2, 17], [1, 8, 8, 30, 3]])


@pytest.mark.parametrize("name", CONFIGS)
def test_views_have_the_values_and_the_memory_of_the_stack(name):
    model = peaky(CONFIGS[name])
    views = unstacked_views(model, smallest=0)
    (stack,) = (segment.block for segment in iter_segments(model))
    assert views is not None
    assert not any(segment.stacked for segment in iter_segments(views))
    for layer in range(3):
        for row, whole in zip(jax.tree.leaves(get_block(views, layer)), jax.tree.leaves(stack), strict=True):
            np.testing.assert_array_equal(row, whole[layer])
            assert row.unsafe_buffer_pointer() == whole.unsafe_buffer_pointer() + layer * row.nbytes


@pytest.fixture
def views_for_all(monkeypatch):
    """Unstack small layers too."""
    monkeypatch.setattr(generating, "stepping_model", lambda model, *_: unstacked_views(model, smallest=0))


def test_generation_gives_the_same_tokens_and_values(request):
    model = peaky(LLAMA_LIKE)
    vectors = jax.random.normal(jax.random.key(1), (3, LLAMA_LIKE.d_model))
    changed = edit(
        model,
        at("blocks.1.resid_post", Scale(0.5)),
        at("blocks.resid_mid", Add(vectors[0]), layer=2, pos=[-1, 6]),
        at("blocks.*.mlp_out", Each(Add(vectors))),
    )
    reading = read(changed, "blocks.*.resid_post", "blocks.1.attn.pattern")
    tokens, acts = generate(reading, TOKENS, 5)
    request.getfixturevalue("views_for_all")
    again, views = generate(reading, TOKENS, 5)
    np.testing.assert_array_equal(tokens, again)
    for address, values in acts.items():
        np.testing.assert_allclose(values, views[address], atol=1e-5, err_msg=address)
    np.testing.assert_array_equal(np.stack([*stream(changed, TOKENS, 5)], axis=1), tokens)


def test_only_large_layers_are_worth_it():
    assert unstacked_views(peaky(LLAMA_LIKE)) is None
    large = jax.eval_shape(lambda: init(dataclasses.replace(LLAMA_LIKE, d_model=512, d_mlp=1536), jax.random.key(0)))
    zeros = jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype)), large)
    assert unstacked_views(zeros) is not None


def test_what_cannot_be_viewed_stays_stacked():
    model, found = peaky(LLAMA_LIKE), []
    jax.jit(lambda model: found.append(unstacked_views(model, smallest=0)))(model)  # traced
    jax.jit(lambda x: found.append(unstacked_views(model, smallest=0)))(0)  # known, but constants of a program
    mesh = jax.make_mesh((1,), ("data",))
    found.append(unstacked_views(jax.device_put(model, jax.NamedSharding(mesh, jax.P())), smallest=0))
    odd = dataclasses.replace(GPT2_LIKE, d_model=35, n_heads=5, d_mlp=49)  # rows do not begin at multiples of 64 bytes
    found.append(unstacked_views(init(odd, jax.random.key(0)), smallest=0))
    found.append(unstacked_views(init(LLAMA_LIKE, jax.random.key(0), stacked=False), smallest=0))
    assert found == [None] * 5


def test_a_stack_that_is_donated_leaves_its_views_as_they_are():
    model = peaky(LLAMA_LIKE)
    views = unstacked_views(model, smallest=0)
    (stack,) = (segment.block for segment in iter_segments(model))
    assert views is not None
    before = jax.tree.map(np.array, get_block(views, 1))
    jax.block_until_ready(jax.jit(lambda stack: jax.tree.map(lambda leaf: 2 * leaf, stack), donate_argnums=0)(stack))
    jax.tree.map(np.testing.assert_array_equal, get_block(views, 1), before)
