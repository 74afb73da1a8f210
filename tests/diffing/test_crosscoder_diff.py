"""Model diffs: the shrinkage that each crosscoder loss is known to cause, and two models whose difference is known."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import batch_at, toy

from jax_interp.core import optimizers as optimizer
from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.data.harvest import harvest
from jax_interp.dictionaries import train_dictionary, variants
from jax_interp.dictionaries.activations import BatchTopK, ReLU
from jax_interp.dictionaries.forms import Dictionary
from jax_interp.dictionaries.losses import L1, Forward, Reconstruction, total
from jax_interp.dictionaries.training.config import Adam
from jax_interp.diffing.crosscoder_diff import PAIR_ADDRESSES, ModelPair, in_scaled_units, model_diff
from jax_interp.surgery import Add, Site, at, edit, read, sites
from jax_interp.toys.synthetic.shrinkage import shrunk
from jax_interp.training import QUIET, Log, SaveTo

ADDRESS = "blocks.1.resid_post"
STEPS = 1000


def forward_of(dictionary, x):
    code = getattr(dictionary.activation, "encode_batch", dictionary.activation.encode)(dictionary, x)
    dead, one = jnp.zeros(dictionary.n_features, bool), jnp.ones((), x.dtype)
    return Forward(dictionary, x, x, code, dictionary.reconstruct(code), dead, one, one, jax.random.key(0))


@pytest.mark.parametrize(("weight", "factor"), [("l1_of_norms", 3.0), ("l2_of_norms", 3**0.5)])
def test_identical_sites_multiply_the_penalty_of_one(weight, factor):
    """Tied decoders at L identical values: L times an SAE's L1-of-norms penalty, √L times for L2-of-norms; with one
    value both are the SAE's."""
    W = jax.random.normal(jax.random.key(0), (9, 4))
    x = jax.random.normal(jax.random.key(1), (20, 4))
    penalty = lambda sae, x: float(L1(0.7, weight=weight, warmup=0.0)(forward_of(sae, x)))
    one = Dictionary(W.T, jnp.zeros(9), W, jnp.zeros(4), ReLU())
    cross = Dictionary(
        jnp.tile(W.T, (3, 1)) / 3, jnp.zeros(9), jnp.tile(W, (1, 3)), jnp.zeros(12), ReLU(), write_sites=3
    )
    np.testing.assert_allclose(penalty(cross, jnp.tile(x, (1, 3))), factor * penalty(one, x), rtol=1e-5)
    by_hand = np.maximum(np.asarray(x @ W.T), 0).sum(0) @ np.linalg.norm(np.asarray(W), axis=1) * 0.7 / 20
    np.testing.assert_allclose(penalty(one, x), by_hand, rtol=1e-5)


@pytest.mark.parametrize("norm", ["l1", "l2", pytest.param("batch topk", marks=pytest.mark.slow)])
def test_what_each_loss_leaves_of_a_weaker_copy(norm):
    """One feature, 1 in model 0 and 0.3 in model 1, at λ = 0.8 beside the SSE: L1-of-norms ends at (0.6, 0),
    L2-of-norms keeps the ratio, BatchTopK keeps (1, 0.3). Minimised with the losses themselves."""
    d, a, b, strength = 4, 1.0, 0.3, 0.8
    direction = np.eye(d)[0]
    x = jnp.asarray(np.concatenate([a * direction, b * direction])[None], jnp.float32)
    rows = jnp.tile(x, (2, 1))
    activation = BatchTopK(1, threshold=jnp.asarray(-1.0)) if norm == "batch topk" else ReLU()
    penalty = () if norm == "batch topk" else (L1(strength, weight=f"{norm}_of_norms", warmup=0.0),)
    terms = (Reconstruction(kind="sse"), *penalty)
    W = 0.1 * jax.random.normal(jax.random.key(0), (1, 2 * d)) + 0.5 * x
    start = Dictionary(W.T, jnp.zeros(1), W, jnp.zeros(2 * d), activation, centred=False, write_sites=2)
    rate = optax.sgd(optax.cosine_decay_schedule(0.1, STEPS))

    def loss(
        sae,
    ):  # the encoder only has to say how strongly the feature is on: its bias would be free to do so as well
        fixed = dataclasses.replace(sae, b_enc=start.b_enc, b_dec=start.b_dec, activation=activation)
        return total(terms, forward_of(fixed, rows))[0]

    def step(carry, _):
        return optimizer.update(rate, jax.grad(loss)(carry[0]), carry[1], carry[0]), None

    run = jax.jit(lambda sae: jax.lax.scan(step, (sae, optimizer.init(rate, sae)), None, length=STEPS)[0][0])
    sae = run(start)
    sae = dataclasses.replace(sae, b_enc=start.b_enc, b_dec=start.b_dec, activation=activation)
    code = forward_of(sae, rows)
    parts = np.asarray(code.y_hat)[0].reshape(2, d)
    got = np.linalg.norm(parts, axis=1)
    if norm == "batch topk":
        np.testing.assert_allclose(got, (a, b), atol=1e-3)
        return
    np.testing.assert_allclose(got, shrunk([(a, b)], strength, norm)[0], atol=0.02)
    if norm == "l1":
        np.testing.assert_allclose(got, (0.6, 0.0), atol=0.02)
    else:
        np.testing.assert_allclose(got[1] / got[0], 0.3, atol=0.01)


def pair_of(shift=3.0):
    """The toy, and the toy with a direction added after some tokens: the one thing that the second has of its own."""
    base = toy()
    return ModelPair(base, edit(base, at(ADDRESS, Add(shift * jnp.ones(16) / 4))), ADDRESS)


def test_a_pair_is_a_model_whose_values_are_the_two_models():
    pair = pair_of()
    tokens, _ = batch_at(0)
    assert list(sites(pair)(tokens)) == list(PAIR_ADDRESSES)
    both = jax.jit(lambda pair: harvest(pair, PAIR_ADDRESSES, tokens))(pair)
    for i, model in enumerate((pair.base, pair.tuned)):
        want = jax.jit(read(model, ADDRESS, output=False))(tokens)[ADDRESS].reshape(-1, 16)
        np.testing.assert_allclose(both[:, 16 * i : 16 * (i + 1)], want, atol=1e-5)


def test_relative_norms_are_those_of_equally_scaled_values():
    rng = np.random.default_rng(0)
    W = jnp.asarray(rng.standard_normal((6, 10)), jnp.float32)
    sae = Dictionary(W.T, jnp.ones(6), W, jnp.ones(10), ReLU(), write_sites=2)
    scale = jnp.asarray([0.5, 4.0])
    h = jnp.asarray(rng.standard_normal((7, 10)), jnp.float32)
    factors = jnp.repeat(scale, 5)[None]
    np.testing.assert_allclose(in_scaled_units(sae, scale)(h * factors), sae(h) * factors, rtol=1e-4, atol=1e-5)


def known_crosscoder():
    """Eight unit directions: 0-4 in both values, 5 in the first alone, 6 and 7 in the second alone; read exactly."""
    Q = np.linalg.qr(np.random.default_rng(1).standard_normal((16, 16)))[0][:8]
    present = np.ones((8, 2))
    present[5, 1] = present[6:, 0] = 0
    rows = (present[:, :, None] * Q[:, None]).reshape(8, 32).astype(np.float32)
    share = rows / present.sum(1, keepdims=True).astype(np.float32)
    return Dictionary(
        jnp.asarray(share.T), jnp.zeros(8), jnp.asarray(rows), jnp.zeros(32), ReLU(), centred=False, write_sites=2
    )


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Table:
    """A model of one value: a row for each token."""

    E: jax.Array

    def __call__(self, tokens, *, taps=()):
        site = Site.open(taps)
        return site.close(site("value", self.E[tokens]))


def known_pair():
    """Each token turns some features of `known_crosscoder` on, 0.5 to 1 strong, in the models that have them. The
    second model's activations are five times as long throughout."""
    rng, W = np.random.default_rng(2), np.asarray(known_crosscoder().W_dec).reshape(8, 2, 16)
    z = (rng.random((1000, 8)) < 0.15) * rng.uniform(0.5, 1, (1000, 8))
    return ModelPair(
        Table(jnp.asarray(z @ W[:, 0], jnp.float32)), Table(jnp.asarray(5 * z @ W[:, 1], jnp.float32)), "value"
    )


def test_known_features_are_found_shared_and_exclusive():
    pair, sae = known_pair(), known_crosscoder()
    factors = jnp.repeat(jnp.asarray([1.0, 5.0]), 16)
    raw = dataclasses.replace(sae, W_enc=sae.W_enc / factors[:, None], W_dec=sae.W_dec * factors[None])
    found = model_diff(raw, pair, [batch_at(i) for i in range(3)])
    assert found.counts == {"only_0": 1, "shared": 5, "only_1": 2, "exclusive": 2}
    assert found.exclusive[6:].all()
    np.testing.assert_allclose(found.cosine[:5], np.ones(5), rtol=1e-5)
    np.testing.assert_allclose(found.fvu, (0, 0), atol=1e-5)
    # an only_1 latent whose feature the first model has after all is called exclusive by its norms alone
    W = np.asarray(raw.W_dec).copy()
    W[0, :16] = 0
    shrunk_one = dataclasses.replace(raw, W_dec=jnp.asarray(W))
    again = model_diff(shrunk_one, pair, [batch_at(i) for i in range(3)])
    assert again.classes.only_1[0]
    assert not again.exclusive[0]
    with pytest.raises(UserError, match="two written values"):
        model_diff(dataclasses.replace(raw, write_sites=1), pair, [batch_at(0)])
    with pytest.raises(UserError, match="no rows"):
        model_diff(raw, pair, [(batch_at(0)[0], jnp.zeros((8, 16), bool))])


def test_values_of_two_widths_are_refused_not_cut_in_the_middle():
    """24 and 8 columns would pass for 16 and 16."""
    wide, narrow = (Table(jax.random.normal(jax.random.key(d), (40, d))) for d in (24, 8))
    pair = ModelPair(wide, narrow, "value")
    with pytest.raises(UserError, match="model_0 24, model_1 8"):
        model_diff(known_crosscoder(), pair, [batch_at(0)])
    for config in (
        variants.batch_topk_crosscoder(PAIR_ADDRESSES, 2, n_features=12, steps=2, buffer=256),
        dataclasses.replace(
            variants.topk("model_0", 2, n_features=12, steps=2, buffer=256), writes=PAIR_ADDRESSES, centred=False
        ),
    ):
        with pytest.raises(UserError, match="model_0 24, model_1 8"):
            train_dictionary(config, pair, batch_at, log=QUIET)
    # several values may be read, of any widths, where one is written
    both = dataclasses.replace(config, address=PAIR_ADDRESSES, writes="model_1")
    assert train_dictionary(both, pair, batch_at, log=QUIET).W_enc.shape == (32, 12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["l1", "batch topk"])
def test_two_models_are_trained_on_at_once_and_resume_to_the_bit(kind, tmp_path):
    class Killed(Exception):
        pass

    def die(record):
        if record["step"] == 300:
            raise Killed

    recipe, strength = (variants.crosscoder, 0.02) if kind == "l1" else (variants.batch_topk_crosscoder, 2)
    config = recipe(PAIR_ADDRESSES, strength, n_features=12, steps=600, buffer=2000, optimizer=Adam(learning_rate=0.01))
    pair, many_at = known_pair(), lambda i: batch_at(i, vocab=1000)
    with pytest.raises(Killed):
        train_dictionary(
            config,
            pair,
            many_at,
            run=SaveTo(tmp_path / "killed", every=250),
            log=Log(every=100, on_record=die, quiet=True),
        )
    resumed = train_dictionary(
        config, pair, many_at, run=SaveTo(tmp_path / "killed", every=250), log=Log(every=100, quiet=True)
    )
    whole = train_dictionary(
        config, pair, many_at, run=SaveTo(tmp_path / "whole", every=250), log=Log(every=100, quiet=True)
    )
    for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    found = model_diff(whole, pair, [many_at(1000 + i) for i in range(8)])
    assert max(found.fvu) < 0.02
    assert found.counts | {"shared": 0} == {"only_0": 1, "shared": 0, "only_1": 2, "exclusive": 2}
    W, truth = (np.asarray(one.W_dec, np.float64).reshape(-1, 2, 16) for one in (whole, known_crosscoder()))
    for side, mask, features in ((0, found.classes.only_0, [5]), (1, found.exclusive, [6, 7])):
        directions = W[mask, side] / np.linalg.norm(W[mask, side], axis=1, keepdims=True)
        assert (np.abs(directions @ truth[features, side].T).max(0) > 0.95).all()
