"""On a mesh with fsdp a step gathers weights, layer by layer, and no activations: seen in the compiled program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.leaves import flatten
from jax_interp.models.config import Config
from jax_interp.models.decoder import init
from jax_interp.models.language_modelling import next_token_loss
from jax_interp.models.sharding import rules
from jax_interp.training.collectives import collectives
from jax_interp.training.placement import automatic
from jax_interp.training.sharding import make_mesh, shard, shard_batch

pytestmark = pytest.mark.skipif(len(jax.devices()) < 4, reason="needs four devices, simulated or real")

# The values of a batch are far larger than the weights, so that a gathered or summed activation would be seen.
CONFIG = Config(n_layers=3, d_model=32, n_heads=2, d_mlp=64, vocab_size=64, n_ctx=64)
TOKENS = np.random.default_rng(0).integers(0, 64, (16, 65), np.int32)


def is_split(spec) -> bool:
    return any("fsdp" in ((entry,) if isinstance(entry, str) else entry or ()) for entry in spec)


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("stacked", [True, False])
def test_a_gradient_gathers_each_split_weight_once_per_pass_and_nothing_else(stacked, explicit):
    alone = init(CONFIG, jax.random.key(0), stacked=stacked)
    expected = jax.jit(jax.grad(next_token_loss))(alone, TOKENS)
    mesh = make_mesh(fsdp=2, tensor=2, explicit=explicit)
    with jax.set_mesh(mesh):
        model = shard(alone, rules(CONFIG), mesh)
        gradient = automatic(jax.grad(next_token_loss), rules=lambda model: rules(CONFIG))
        compiled = jax.jit(gradient).lower(model, shard_batch(TOKENS, mesh)).compile()
        found = compiled(model, shard_batch(TOKENS, mesh))
    over = [row for row in collectives(compiled, mesh) if "fsdp" in row.axes]
    split = [leaf for leaf in jax.tree.leaves(model) if is_split(leaf.sharding.spec)]
    for_use = sum(2 * leaf.addressable_shards[0].data.nbytes for leaf in split)  # whole over fsdp, split over tensor
    gathered = sum(row.bytes for row in over if row.kind == "all-gather")
    summed = sum(row.bytes for row in over if row.kind != "all-gather")
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(alone))
    assert for_use <= gathered <= 2.05 * for_use
    assert summed <= 1.05 * whole
    for name, leaf in flatten(expected).items():
        np.testing.assert_allclose(flatten(found)[name], leaf, rtol=2e-4, atol=2e-6, err_msg=name)


def test_only_the_parts_of_weights_are_kept_between_layers():
    config = Config(n_layers=12, d_model=64, n_heads=2, d_mlp=256, vocab_size=64, n_ctx=8)
    model, mesh = init(config, jax.random.key(0)), make_mesh(fsdp=4, explicit=False)
    with jax.set_mesh(mesh):
        split = shard(model, rules(config), mesh)
        tokens = shard_batch(jnp.zeros((4, 9), jnp.int32), mesh)
        needed = jax.jit(jax.grad(next_token_loss)).lower(split, tokens).compile().memory_analysis()
    assert needed is not None
    assert needed.temp_size_in_bytes < 0.5 * sum(leaf.nbytes for leaf in jax.tree.leaves(model))
