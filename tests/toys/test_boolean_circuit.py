"""The Boolean circuit, and the transcoders that keep its middle step or skip it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.dictionaries.activations import ReLU
from jax_interp.dictionaries.forms.cross_layer import CrossLayer, Source
from jax_interp.dictionaries.losses import L1, Reconstruction
from jax_interp.dictionaries.replacement import replacement
from jax_interp.dictionaries.training.config import Adam, CrossLayerConfig
from jax_interp.dictionaries.training.cross_layer import train_cross_layer
from jax_interp.surgery import read
from jax_interp.toys.boolean_circuit import READS, WRITES, A, B, C, boolean_model, hop_kept
from jax_interp.training import QUIET

TOKENS = jnp.arange(16)[None]
BITS = (np.arange(16)[:, None] >> np.arange(4)) & 1
MODEL = boolean_model(jax.random.key(0))


def truth():
    x1, x2, x3, x4 = BITS.astype(bool).T
    a = x1 & x2
    b = a | x3
    return np.stack([a, b, b & x4], axis=1)


def its_own_neurons():
    """Per-layer transcoders that are the model's MLPs."""
    blocks = MODEL.blocks
    sources = [Source(one.W_in, one.b_in, one.W_out[:, None], ReLU()) for one in blocks]
    return CrossLayer(tuple(sources), jnp.zeros((3, 8)))


def a_lookup_table():
    """A cross-layer transcoder with one latent a token, all in layer 0, which writes the three layers' outputs."""
    v, signs = MODEL.variables, jnp.asarray(2.0 * BITS - 1)
    W_dec = jnp.asarray(truth(), jnp.float32)[:, :, None] * v[jnp.asarray([A, B, C])][None]
    none = lambda targets: Source(jnp.zeros((8, 16)), -jnp.ones(16), jnp.zeros((16, targets, 8)), ReLU())
    first = Source((signs @ v[:4]).T, 1.0 - jnp.asarray(BITS.sum(1), jnp.float32), W_dec, ReLU())
    return CrossLayer((first, none(2), none(1)), jnp.zeros((3, 8)))


def test_the_model_computes_its_circuit():
    stream, acts = read(MODEL, *WRITES)(TOKENS)
    for i, variable in enumerate((A, B, C)):
        np.testing.assert_allclose(acts[WRITES[i]][0] @ MODEL.variables[variable], truth()[:, i], atol=1e-5)
    np.testing.assert_allclose(stream[0] @ MODEL.variables[:4].T, BITS, atol=1e-5)
    np.testing.assert_allclose(hop_kept(MODEL, MODEL), 1, rtol=1e-5)


def test_what_says_the_same_need_not_work_the_same():
    """Both are exact on every input. The table has fewer latents on and the smaller penalty, and lacks the hop."""
    penalty, clean = {}, MODEL(TOKENS)
    for name, one, hop in (("per layer", its_own_neurons(), 1), ("cross-layer", a_lookup_table(), 0)):
        local = replacement(MODEL, READS, WRITES, one)
        with_latents = read(local, *(f"{address}.latents" for address in READS))
        (said, latents), kept = jax.jit(lambda f, model, m: (f(TOKENS), hop_kept(model, m)))(with_latents, local, MODEL)
        np.testing.assert_allclose(said, clean, atol=1e-5)
        np.testing.assert_allclose(kept, hop, atol=1e-5)
        penalty[name] = sum(
            float((z @ jnp.sqrt((s.W_dec**2).sum((1, 2)))).sum()) for z, s in zip(latents.values(), one.sources)
        )
    assert penalty["cross-layer"] < 0.7 * penalty["per layer"]


@pytest.mark.slow
def test_trained_per_layer_transcoders_keep_the_hop_and_a_cross_layer_one_does_not():
    def batch_at(i):
        return jax.random.randint(jax.random.fold_in(jax.random.key(1), i), (16, 16), 0, 16), jnp.ones((16, 16), bool)

    kept, off = {}, {}
    for window in (1, None):
        config = CrossLayerConfig(
            READS,
            writes=WRITES,
            window=window,
            n_features=16,
            activation=ReLU(),
            loss=(Reconstruction(), L1(0.03, weight="l2_of_norms")),
            steps=1000,
            buffer=4096,
            optimizer=Adam(learning_rate=0.005),
        )
        local = replacement(MODEL, READS, WRITES, train_cross_layer(config, MODEL, batch_at, log=QUIET))
        kept[window] = float(hop_kept(local, MODEL))
        off[window] = float(((local(TOKENS) - MODEL(TOKENS)) ** 2).sum(-1).mean())
    assert max(off.values()) < 0.02  # both say what the model says
    assert kept[1] > 0.5  # six seeds gave .59 to .85,
    assert abs(kept[None]) < 0.1  # and at most .03
