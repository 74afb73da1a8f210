"""Dictionaries outside trainers, on explicit and automatic meshes: encode, decode, splice and gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.dictionaries import variants
from jax_interp.dictionaries.sharding import rules
from jax_interp.dictionaries.training.train import init_learner
from jax_interp.models.sharding import rules_for
from jax_interp.surgery import Scale, Splice, at, call, edit, grad_at, read
from jax_interp.training.meshes import make_mesh
from jax_interp.training.sharding import shard, shard_batch
from tests.distributed.trainable import FIELDS, RUN, SITES, K, model, tokens_at

MESHES: tuple[dict[str, Any], ...] = (
    {"data": 2}, {"tensor": 2}, {"replicate": 2, "fsdp": 2, "tensor": 2},
)  # fmt: skip
KINDS = {"relu": {}, "topk": {"k": K}, "batch_topk": {"k": K}}


def dictionary_of(kind: str):
    config = getattr(variants, kind)(SITES[1], **KINDS[kind], **FIELDS, **RUN)
    made = init_learner(config, jax.random.key(0), (16,), jnp.ones((16,)) / 8).dictionary
    return made.activation.for_inference(made) if kind != "topk" else made


def results(sae: Any, model: Any, tokens: Any, x: Any) -> dict[str, Any]:
    spliced = edit(model, at(SITES[1], Splice(sae)), at(f"{SITES[1]}.latents", Scale(0.5)))
    logits, acts = call(read(spliced, "blocks.*.resid_post"), tokens)
    gradient = lambda x, sae: jax.grad(lambda x: jnp.sum(sae(x) ** 2))(x)
    return {
        "latents": sae.encode(x), "compiled": jax.jit(lambda s, x: s.encode(x))(sae, x), "output": sae(x),
        "decoded": sae.decode(sae.encode(x)), "logits": logits, "read": acts["blocks.*.resid_post"],
        "gradient": jax.jit(gradient)(x, sae),
        "at a value": grad_at(edit(model, at(SITES[1], Splice(sae))), SITES[0])(jnp.mean)(tokens)[1],
    }  # fmt: skip


CASES = [
    pytest.param(kind, sizes, explicit, marks=() if (kind, number, explicit) == ("topk", 2, True) else pytest.mark.slow)
    for kind in KINDS
    for number, sizes in enumerate(MESHES)
    for explicit in (True, False)
]


@pytest.mark.parametrize(("kind", "sizes", "explicit"), CASES)
def test_a_dictionary_on_a_mesh_is_the_dictionary_on_one_device(kind, sizes, explicit):
    sae, x = dictionary_of(kind), np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    expected = results(sae, model(), jnp.asarray(tokens_at(0)), jnp.asarray(x))
    mesh = make_mesh(**sizes, explicit=explicit)
    with jax.set_mesh(mesh):
        placed, large = shard(sae, rules(sae), mesh), shard(model(), rules_for(model()), mesh)
        found = results(placed, large, shard_batch(tokens_at(0), mesh), shard_batch(x, mesh))
        if explicit:
            assert jax.typeof(found["latents"]).sharding.spec == jax.P(("replicate", "data", "fsdp"), "tensor")
    for name, value in expected.items():
        for one, other in zip(jax.tree.leaves(value), jax.tree.leaves(found[name]), strict=True):
            np.testing.assert_allclose(other, one, atol=3e-5, err_msg=name)
