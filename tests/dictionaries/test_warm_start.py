"""What training goes on from is what was given, trained as its config says; what does not fit is refused."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import batch_at, toy

from jax_interp.core.errors import UserError
from jax_interp.dictionaries import variants
from jax_interp.dictionaries.activations import BatchTopK, Gate, Jump, TopK
from jax_interp.dictionaries.forms import init_sae
from jax_interp.dictionaries.training.config import Adam, EndToEndSAEConfig, SAEConfig
from jax_interp.dictionaries.training.end_to_end import EndToEndConfig, export_end_to_end, init_end_to_end_state
from jax_interp.dictionaries.training.joint import JointConfig, init_joint_state
from jax_interp.dictionaries.training.normalisation import fold_scale, for_inference

ADDRESS = "blocks.1.resid_post"
FIELDS = {"n_features": 24, "optimizer": Adam(warmup=2)}
X = 3 * jax.random.normal(jax.random.key(2), (50, 16))


def random_sae(activation, seed=0):
    made = init_sae(jax.random.key(seed), 16, 24, activation, jnp.ones(16))
    return dataclasses.replace(made, b_enc=jax.random.normal(jax.random.key(seed + 1), (24,)))


def start(config, *given, kind="end to end"):
    if kind == "joint":
        joint = JointConfig((SAEConfig.of(config),), shared=(), steps=5)
        return init_joint_state(joint, toy(), batch_at(0)[0], optax.sgd(1.0), given)
    return init_end_to_end_state(EndToEndConfig((EndToEndSAEConfig.of(config),), buffer=300), toy(), batch_at, given)


@pytest.mark.parametrize("weighted", [False, True])
def test_an_exported_batch_topk_is_one_again(weighted):
    """The choice within a batch holds L0 again, and what is exported before a step is what was given."""
    trained = random_sae(BatchTopK(4, weighted=weighted, threshold=jnp.float32(0.8)))
    if weighted:
        trained = dataclasses.replace(trained, W_dec=trained.W_dec * jnp.linspace(0.3, 3, 24)[:, None])
    scale = jnp.full(16, 0.5)
    exported = for_inference(fold_scale(trained, scale, scale, scale[0]))
    assert isinstance(exported.activation, Jump)
    config = variants.batch_topk(ADDRESS, 4, **FIELDS)
    config = dataclasses.replace(config, activation=BatchTopK(4, weighted=weighted), decoder="free")
    state = start(config, exported)
    learning = state.learners[0].dictionary
    assert learning.activation == BatchTopK(4, weighted=weighted, threshold=learning.activation.threshold)
    assert int((learning.training_code(X).dense(24) > 0).sum()) == 4 * 50
    (back,) = export_end_to_end(state)
    np.testing.assert_allclose(back(X), exported(X), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(back.encode(X) > 0, exported.encode(X) > 0)
    raw = start(config, exported, kind="joint").dictionaries[0]
    np.testing.assert_allclose(raw(X), exported(X), rtol=1e-4, atol=1e-4)


def test_a_batch_topk_that_had_seen_nothing_has_still_seen_nothing():
    fresh = for_inference(random_sae(BatchTopK(4, threshold=jnp.float32(-1))))
    assert (
        float(start(variants.batch_topk(ADDRESS, 4, **FIELDS), fresh).learners[0].dictionary.activation.threshold) < 0
    )


def test_parameters_are_the_given_ones_and_settings_the_configs():
    jump = Jump(jax.random.normal(jax.random.key(5), (24,)), bandwidth=0.1)
    config = variants.tanh_jumprelu(ADDRESS, **FIELDS)  # bandwidth 2
    raw = start(config, random_sae(jump), kind="joint").dictionaries[0].activation
    assert raw.bandwidth == 2.0
    np.testing.assert_array_equal(raw.log_threshold, jump.log_threshold)
    narrower = start(variants.topk(ADDRESS, 3, **FIELDS), random_sae(TopK(8)), kind="joint").dictionaries[0]
    assert narrower.activation == TopK(3)


@pytest.mark.parametrize("kind", ["end to end", "joint"])
def test_what_does_not_fit_its_config_is_refused(kind):
    topk = variants.topk(ADDRESS, 4, **FIELDS)
    batch = variants.batch_topk(ADDRESS, 4, **FIELDS)
    many = Jump(jnp.linspace(-1, 1, 24))
    wider = init_sae(jax.random.key(0), 16, 32, TopK(4))
    for config, given, says in (
        (topk, (), "0 dictionaries are given and 1 configs"),
        (topk, (random_sae(TopK(4)),) * 2, "2 dictionaries are given"),
        (topk, (wider,), r"W_enc \(16, 32\) and not \(16, 24\)"),
        (topk, (random_sae(many),), "has the activation Jump, the config asks for TopK"),
        (topk, (random_sae(Gate(jnp.zeros(24), jnp.zeros(24))),), "Gate"),
        (batch, (random_sae(many),), "thresholds from 0.368 to 2.72"),
    ):
        with pytest.raises(UserError, match=says):
            start(config, *given, kind=kind)
