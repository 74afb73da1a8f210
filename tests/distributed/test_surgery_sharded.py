"""Surgery on a mesh of eight host devices: explicit, automatic and none give one result, sharded as they should be."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.models.config import Config
from jax_interp.models.decoder import init
from jax_interp.models.sharding import rules
from jax_interp.surgery import Add, Each, Scale, Zero, at, call, edit, grad_at, read, replan
from jax_interp.training.sharding import BATCH, make_mesh, shard, shard_batch
from tests.surgery.test_carried import Make, Use

CONFIG = Config(n_layers=4, d_model=64, n_heads=4, d_mlp=128, vocab_size=64, n_ctx=32)
READS = ("blocks.*.resid_post", "blocks.1.attn.z", "blocks.2:4.mlp.post", "logits")

pytestmark = pytest.mark.skipif(len(jax.devices()) < 8, reason="needs eight devices, simulated or real")


def surgery(model):
    vector = jnp.linspace(-1.0, 1.0, CONFIG.d_model)
    return read(
        edit(
            model,
            at("blocks.1.resid_post", Add(vector)),
            at("blocks.resid_mid", Add(vector, 0.5), layer=2, pos=3),
            at("blocks.*.mlp_out", Each(Scale(jnp.linspace(0.5, 1.0, 4)))),
            at("blocks.2.attn.z", Zero(), head=1),
            at("blocks.1.attn_out", Make(jnp.float32(0.1))),
            at("blocks.3.resid_pre", Use(jnp.float32(0.5))),  # carried over a layer
        ),
        *READS,
    )


@pytest.fixture(scope="module")
def model():
    return jax.tree.map(lambda w: 6.0 * w if w.ndim > 2 else w, init(CONFIG, jax.random.key(0)))


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(1), (8, 12), 0, CONFIG.vocab_size)


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param((), marks=pytest.mark.slow, id="scanned"),
        pytest.param("*", marks=pytest.mark.slow, id="unrolled"),
        pytest.param(1, id="mixed"),
    ],
)
@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "auto"])
def test_a_surgery_on_a_mesh_equals_one_device(model, tokens, explicit, layout):
    model = replan(model, layout)
    logits, acts = call(surgery(model), tokens)
    mesh = make_mesh(data=2, fsdp=2, tensor=2, explicit=explicit)
    with jax.set_mesh(mesh):
        placed = shard(model, rules(CONFIG), mesh)
        got_logits, got = call(surgery(placed), shard_batch(tokens, mesh))
        np.testing.assert_allclose(jax.device_get(got_logits), logits, rtol=2e-4, atol=2e-5)
        for address, value in acts.items():
            np.testing.assert_allclose(jax.device_get(got[address]), value, rtol=2e-4, atol=5e-5, err_msg=address)
        assert not got["blocks.*.resid_post"].sharding.is_fully_replicated
        if explicit:
            assert jax.typeof(got["blocks.*.resid_post"]).sharding.spec[0] is None, "layers are not sharded"
            assert jax.typeof(got["blocks.*.resid_post"]).sharding.spec[1] is not None, "the batch is"


@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "auto"])
def test_gradients_at_values_on_a_mesh_equal_one_device(model, tokens, explicit):
    def metric(logits):
        return jnp.sum(logits[:, -1] ** 2)

    attribution = jax.jit(lambda m, t: grad_at(m, "blocks.*.resid_post", "blocks.1.attn.z")(metric)(t))
    value, grads = attribution(model, tokens)
    mesh = make_mesh(data=4, tensor=2, explicit=explicit)
    with jax.set_mesh(mesh):
        got_value, got = attribution(shard(model, rules(CONFIG), mesh), shard_batch(tokens, mesh))
        np.testing.assert_allclose(jax.device_get(got_value), value, rtol=1e-4)
        for address, grad in grads.items():
            np.testing.assert_allclose(jax.device_get(got[address]), grad, rtol=1e-3, atol=1e-5, err_msg=address)


def test_the_shapes_and_shardings_of_a_large_run_without_devices(tokens):
    from jax_interp.training.sharding import abstract, abstract_mesh

    big = Config(n_layers=32, d_model=4096, n_heads=32, n_kv_heads=8, d_mlp=14336, vocab_size=128256, n_ctx=8192,
                 tied_embedding=False)  # fmt: skip
    mesh = abstract_mesh(data=8, fsdp=4, tensor=8)
    shapes = jax.eval_shape(lambda: init(big, jax.random.key(0)))
    with jax.sharding.use_abstract_mesh(mesh):
        model = abstract(shapes, rules(big), mesh)
        tokens = jax.ShapeDtypeStruct((64, 128), jnp.int32, sharding=jax.NamedSharding(mesh, BATCH))
        _, acts = jax.eval_shape(lambda m, t: read(m, "blocks.*.resid_post", "blocks.3.attn.z")(t), model, tokens)
    assert acts["blocks.*.resid_post"].shape == (32, 64, 128, 4096)
    assert acts["blocks.*.resid_post"].sharding.spec[1] == BATCH[0]
    assert acts["blocks.3.attn.z"].sharding.spec[2] == "tensor"
