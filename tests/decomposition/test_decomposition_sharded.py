"""A decomposed language model on a mesh of eight host devices gives what one device gives."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_tms import TIED, tiny

from jax_interp.core.errors import UserError
from jax_interp.decomposition import Components, Decomposed, DecompositionConfig, Schedule, WarmUp, decompose
from jax_interp.decomposition.importance import GlobalMLP, GlobalTransformer, ScalarMLP, SharedMLP, VectorMLP
from jax_interp.decomposition.losses import (
    AdamAdversary,
    Faithfulness,
    HiddenReconstruction,
    ImportanceMinimality,
    PersistentPGD,
    PGDReconstruction,
    StochasticLayerwise,
    StochasticSubset,
)
from jax_interp.decomposition.masks import masked_output, stochastic_masks
from jax_interp.decomposition.sharding import rules, state_rules
from jax_interp.decomposition.train import init_state, train_decomposition, train_step
from jax_interp.models.config import Config
from jax_interp.models.decoder import init
from jax_interp.models.sharding import rules as target_rules
from jax_interp.training import Log
from jax_interp.training.sharding import BATCH, abstract, abstract_mesh, make_mesh, shard, shard_batch

CONFIG = Config(n_layers=2, d_model=32, n_heads=4, d_mlp=64, vocab_size=64, n_ctx=16)
pytestmark = pytest.mark.skipif(len(jax.devices()) < 8, reason="needs eight devices, simulated or real")


@pytest.mark.slow
@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "auto"])
def test_masked_loss_and_gradients_on_a_mesh(explicit):
    model = jax.tree.map(lambda w: 4.0 * w if w.ndim > 2 else w, init(CONFIG, jax.random.key(0)))
    tokens = jax.random.randint(jax.random.key(1), (8, 12), 0, CONFIG.vocab_size)
    parts = decompose(model, ["blocks.*.attn", "blocks.*.mlp"], C=8, key=jax.random.key(2))
    importance = {name: jnp.zeros((2, 8, 12, 8)) for name in parts.names}
    masks = jax.device_get(stochastic_masks(jax.random.key(3), importance))

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


SMALL = Config(n_layers=2, d_model=8, n_heads=2, d_mlp=16, vocab_size=32, n_ctx=8)
RECIPE = DecompositionConfig(
    ("blocks.*.attn", "blocks.*.mlp"), C=4, steps=10, batch=4, warm_up=None, compare="kl",
    importance=GlobalTransformer(8, 1, 2, 16),
    losses=(ImportanceMinimality(), StochasticSubset(), PersistentPGD(adversary=AdamAdversary(warm_up_steps=1)),
            Faithfulness()),
)  # fmt: skip
BY_LAYER = dataclasses.replace(
    RECIPE, matrices=("blocks.*.mlp",), importance=ScalarMLP(2),
    losses=(StochasticLayerwise(), PersistentPGD(adversary=AdamAdversary(warm_up_steps=1), subset=True)),
)  # fmt: skip


EVERY = [
    RECIPE,
    dataclasses.replace(RECIPE, compute="bfloat16", remat=True),
    BY_LAYER,
    dataclasses.replace(BY_LAYER, matrices=("embed", "blocks.*.mlp"), losses=(HiddenReconstruction(), Faithfulness())),
    *(
        dataclasses.replace(
            RECIPE,
            importance=importance,
            losses=(Faithfulness(relative=True), HiddenReconstruction(), PGDReconstruction(steps=1, subset=True)),
        )
        for importance in (SharedMLP((3,)), VectorMLP(2), GlobalMLP((3,)))
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "auto"])
@pytest.mark.parametrize("config", [RECIPE, BY_LAYER], ids=["transformer", "scalar"])
def test_a_training_step_on_a_mesh(config, explicit):
    """The figures of one device, and the gradients, which Adam's first moments hold: of V and U, of the importance
    function, of the adversary's sources. A KL divergence is a difference of log-probabilities near 3.5, whose float32
    are 2e-7 apart."""
    model = jax.tree.map(lambda w: 4.0 * w if w.ndim > 2 else w, init(SMALL, jax.random.key(0)))
    tokens = jax.random.randint(jax.random.key(1), (4, 6), 0, SMALL.vocab_size)
    state = init_state(config, model, tokens)
    step = jax.jit(partial(train_step, config))
    gradients = lambda after: (after.opt_components, after.opt_gates, [own.first for own in after.sources])
    after, metrics = step(state, tokens, model)
    mesh = make_mesh(data=2, fsdp=2, tensor=2, explicit=explicit)
    with jax.set_mesh(mesh):
        state, target = (
            shard(state, state_rules(state, target_rules(SMALL)), mesh),
            shard(model, target_rules(SMALL), mesh),
        )
        assert all("tensor" in str(pair.V.sharding.spec) for pair in state.components.values())
        got, got_metrics = step(state, shard_batch(tokens, mesh), target)
        for name, value in metrics.items():
            np.testing.assert_allclose(jax.device_get(got_metrics[name]), value, rtol=1e-4, atol=1e-7, err_msg=name)
        for one, other in zip(jax.tree.leaves(gradients(after)), jax.tree.leaves(gradients(got)), strict=True):
            np.testing.assert_allclose(jax.device_get(other), one, rtol=2e-3, atol=1e-6)


@pytest.mark.slow
def test_training_on_a_mesh(tmp_path):
    """`train_decomposition` with what the package ships, warm-up and checkpoint included, logs one device's figures and
    leaves V and U where the rules say; what is there is found again without a step."""
    config = dataclasses.replace(BY_LAYER, steps=3, warm_up=WarmUp(3), schedule=Schedule(1e-2))
    model = jax.tree.map(lambda w: 4.0 * w if w.ndim > 2 else w, init(SMALL, jax.random.key(0)))
    draw = lambda number: jax.random.randint(jax.random.key(number), (4, 6), 0, SMALL.vocab_size)
    logs = ([], [], [])
    alone = train_decomposition(config, model, batch_at=draw, log=Log(every=1, on_record=logs[0].append, quiet=True))
    mesh, target = make_mesh(data=2, fsdp=2, tensor=2), target_rules(SMALL)
    batch_at = lambda number: shard_batch(draw(number), mesh)
    place = lambda state: shard(state, state_rules(state, target), mesh)
    with jax.set_mesh(mesh):
        both = [
            train_decomposition(
                config, shard(model, target, mesh), batch_at=batch_at, place=place, run=tmp_path,
                log=Log(every=1, on_record=log.append, quiet=True),
            )
            for log in logs[1:]
        ]  # fmt: skip
    assert len(logs[0]) == len(logs[1]) == 3
    assert not logs[2]
    for one, other in zip(logs[0], logs[1], strict=True):
        np.testing.assert_allclose(list(other.values()), list(one.values()), rtol=1e-3)
    for got in both:
        for name, pair in got.model.components.items():
            assert "tensor" in str(pair.V.sharding.spec)
            np.testing.assert_allclose(jax.device_get(pair.V), alone.model.components[name].V, atol=1e-4)


@pytest.mark.parametrize("config", EVERY, ids=lambda config: type(config.importance).__name__)
def test_a_training_step_traces_on_explicit_axes(config):
    """They are part of the types, so what they forbid shows without computing anything."""
    model = jax.eval_shape(partial(init, SMALL), jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((4, 6), jnp.int32)
    state = jax.eval_shape(partial(init_state, config), model, tokens)
    mesh = abstract_mesh(data=2, fsdp=2, tensor=2)
    with jax.sharding.use_abstract_mesh(mesh):
        state = abstract(state, state_rules(state, target_rules(SMALL)), mesh)
        model = abstract(model, target_rules(SMALL), mesh)
        tokens = jax.ShapeDtypeStruct((4, 6), jnp.int32, sharding=jax.NamedSharding(mesh, BATCH))
        after, _ = jax.eval_shape(partial(train_step, config), state, tokens, model)
    assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(lambda leaf: leaf.shape, state)


def test_a_step_of_a_toy_traces_with_components_split():
    """Rows without positions go through the scalar gates' own backward pass, which sums over them."""
    config = DecompositionConfig(tied=TIED, C=4, importance=ScalarMLP(2), warm_up=None)
    x, model = jax.ShapeDtypeStruct((16, 5), jnp.float32), tiny()
    state = jax.eval_shape(partial(init_state, config), model, x)
    mesh = abstract_mesh(data=2, fsdp=2, tensor=2)
    split = [("linear1.V", jax.P(None, "tensor")), ("linear1.U", jax.P("tensor", None)), ("**", jax.P())]
    with jax.sharding.use_abstract_mesh(mesh):
        state, model = abstract(state, split, mesh), abstract(model, [("**", jax.P())], mesh)
        x = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.NamedSharding(mesh, BATCH))
        after, _ = jax.eval_shape(partial(train_step, config), state, x, model)
    assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(lambda leaf: leaf.shape, state)


def test_rules_of_v_and_u():
    parts = Decomposed(None, {"a": Components(jnp.zeros((4, 4)), jnp.zeros((4, 4)))})
    of = lambda pattern, *spec: [axes for _, axes in rules(parts, [(pattern, jax.P(*spec))])[:2]]
    assert of("a.weight", "fsdp", "tensor") == [jax.P("fsdp", "tensor"), jax.P("tensor", None)]
    assert of("a.weight", "tensor", "fsdp") == [jax.P("tensor", None), jax.P(None, "fsdp")]
    assert of("**") == [jax.P(None, "tensor"), jax.P("tensor", None)]  # P() replicates
    assert of("**", "fsdp") == [jax.P(None, "tensor"), jax.P("tensor", "fsdp")]  # of the last axis alone
    both = ("fsdp", "tensor")
    assert of("a.weight", both, None) == [jax.P(both, None), jax.P(None, None)]
    assert of("a.weight", None, both) == [jax.P(None, "tensor"), jax.P("tensor", "fsdp")]
    with pytest.raises(UserError, match=r"no rule of the target matches a\.weight"):
        of("b.weight")
