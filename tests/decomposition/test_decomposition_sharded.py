"""A decomposed language model on a mesh of eight host devices gives what one device gives."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.decomposition import decompose
from jax_interp.decomposition.masks import masked_output, stochastic
from jax_interp.decomposition.sharding import rules
from jax_interp.models.config import Config
from jax_interp.models.decoder import init
from jax_interp.models.sharding import rules as target_rules
from jax_interp.training.sharding import make_mesh, shard, shard_batch

CONFIG = Config(n_layers=2, d_model=32, n_heads=4, d_mlp=64, vocab_size=64, n_ctx=16)
pytestmark = pytest.mark.skipif(len(jax.devices()) < 8, reason="needs eight devices, simulated or real")


@pytest.mark.slow
@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "auto"])
def test_masked_loss_and_gradients_on_a_mesh(explicit):
    model = jax.tree.map(lambda w: 4.0 * w if w.ndim > 2 else w, init(CONFIG, jax.random.key(0)))
    tokens = jax.random.randint(jax.random.key(1), (8, 12), 0, CONFIG.vocab_size)
    parts = decompose(model, ["blocks.*.attn", "blocks.*.mlp"], C=8, key=jax.random.key(2))
    importance = {name: jnp.zeros((2, 8, 12, 8)) for name in parts.names}
    masks = jax.device_get(stochastic(jax.random.key(3), importance))

    @jax.jit
    def value_and_grad(parts, masks, tokens):
        loss = lambda pairs: jnp.mean(masked_output(dataclasses.replace(parts, components=pairs), masks, tokens) ** 2)
        return jax.value_and_grad(loss)(parts.components)

    value, grads = value_and_grad(parts, masks, tokens)
    mesh = make_mesh(data=2, fsdp=2, tensor=2, explicit=explicit)
    with jax.set_mesh(mesh):
        placed = shard(parts, rules(parts, target_rules(CONFIG)), mesh)
        assert not placed.components["blocks.*.mlp.up"].V.sharding.is_fully_replicated
        split = shard_batch(masks, mesh, jax.P(None, ("data", "fsdp")))
        got, got_grads = value_and_grad(placed, split, shard_batch(tokens, mesh))
        np.testing.assert_allclose(jax.device_get(got), value, rtol=1e-4)
        for name, pair in grads.items():
            for part in ("V", "U"):
                one, other = getattr(pair, part), jax.device_get(getattr(got_grads[name], part))
                np.testing.assert_allclose(other, one, rtol=2e-3, atol=1e-5, err_msg=f"{name}.{part}")
