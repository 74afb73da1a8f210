"""CCS, CRC and LAT on contrast pairs: the published loss and steps, planted truths, degenerate solutions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp import UserError
from jax_interp.probes import CCS, CRC, LAT, LabelledTokens, Last, PairProbe, Vectors, ccs_loss, fit_probes
from jax_interp.probes.kind import PairRows
from jax_interp.probes.pair_sides import PairSides

KEY = jax.random.key(0)
D, N = 32, 1000


def planted(seed: int = 0, truth: float = 1.0, side: float = 4.0, distractor: float = 3.0, noise: float = 0.3):
    """Pairs (statement, negation): truth flips between the sides, a distractor does not, and sides have means apart."""
    rng = np.random.default_rng(seed)
    t, of_side, other = np.linalg.qr(rng.normal(size=(D, 3)))[0].T
    y, topic = rng.integers(0, 2, N), rng.choice([-1, 1], N)
    sides = []
    for number, sign in enumerate((1, -1)):
        x = truth * (2 * y - 1)[:, None] * sign * t + side * number * of_side + distractor * topic[:, None] * other
        sides.append((x + noise * rng.normal(size=(N, D)) + 2.0).astype(np.float32))
    return PairRows(*(jnp.asarray(a) for a in (*sides, y.astype(np.int32), np.ones(N, np.float32)))), t, of_side


def accuracy(probe: PairProbe, data: PairRows) -> float:
    return float(jnp.mean((probe.score_pairs(data.first, data.second) > 0.5) == (data.y == 1)))


def cosine(a, b) -> float:
    return float(np.asarray(a, np.float64) @ b / np.linalg.norm(np.asarray(a, np.float64)) / np.linalg.norm(b))


def probabilities(probe: PairProbe, data: PairRows):
    affine = [x @ w + b for x, w, b in zip((data.first, data.second), probe.weights, probe.biases, strict=True)]
    return tuple(map(jax.nn.sigmoid, affine))


@pytest.fixture(scope="module")
def pairs():
    return planted()


def test_ccs_finds_the_planted_truth(pairs):
    """The reference sheet has accuracy 1.0 and a cosine of .966 on a toy of this kind."""
    data, t, _ = pairs
    probe = CCS().fit(data, None, KEY)
    assert accuracy(probe, data) > 0.995
    assert cosine(probe.direction(), t) > 0.93
    assert float(ccs_loss(*probabilities(probe, data))) < 0.1


@pytest.mark.parametrize("kind", [CRC(), CRC(scale=True), LAT()])
def test_the_first_component_finds_it_too(pairs, kind):
    data, t, _ = pairs
    probe = kind.fit(data, None, KEY)
    if kind == LAT():  # its differences still hold the means of the sides: it finds which side an example is on
        assert abs(cosine(probe.direction(), pairs[2])) > 0.9
    else:
        assert accuracy(probe, data) > 0.995
        assert cosine(probe.direction(), t) > (0.7 if kind.scale else 0.95)  # scaled columns turn it


def test_scores_of_pairs_and_of_single_examples(pairs):
    data, _, _ = pairs
    probe = CRC().fit(data, None, KEY)
    p, q = probabilities(probe, data)
    np.testing.assert_allclose(probe.score_pairs(data.first, data.second), (p + 1 - q) / 2, atol=1e-6)
    single = probe.score(data.first)
    expected = data.first @ probe.weights.mean(0) + probe.biases.mean()
    np.testing.assert_allclose(single, expected, atol=1e-3)


def test_the_loss_has_its_known_values():
    half = jnp.full(7, 0.5)
    assert float(ccs_loss(half, half)) == 0.25
    h = jnp.asarray([0.0, 1, 1, 0, 1])  # any feature that differs between the sides of each pair
    assert float(ccs_loss(h, 1 - h)) == 0
    p, q = np.random.default_rng(0).random((2, 50))
    expected = np.mean((p - (1 - q)) ** 2) + np.mean(np.minimum(p, q) ** 2)
    np.testing.assert_allclose(ccs_loss(jnp.asarray(p, jnp.float32), jnp.asarray(q, jnp.float32)), expected, rtol=1e-5)


def test_ccs_finds_any_feature_that_flips_with_the_side():
    """A planted feature without any truth in it has the same loss, and is found if it is stronger."""
    data, _, _ = planted(truth=0.3)
    rng = np.random.default_rng(5)
    h, direction = rng.choice([-1.0, 1.0], N), np.linalg.qr(rng.normal(size=(D, 1)))[0][:, 0]
    shift = jnp.asarray(4 * h[:, None] * direction, jnp.float32)
    probe = CCS().fit(PairRows(data.first + shift, data.second - shift, data.y, data.weight), None, KEY)
    found = probe.score_pairs(data.first + shift, data.second - shift) > 0.5
    agrees = float(jnp.mean(found == (jnp.asarray(h) > 0)))
    assert max(agrees, 1 - agrees) > 0.99
    assert accuracy(probe, data) < 0.99


@pytest.mark.parametrize("scale", [False, True])
def test_a_step_is_a_step_of_adamw(scale):
    """The published loop in float64 NumPy: separate normalisation, loss, AdamW with decoupled decay."""
    data, _, _ = planted(seed=3)
    kind = CCS(scale=scale, tries=1, steps=40, learning_rate=0.01)
    found = kind.fit(data, None, KEY)
    x = np.stack([np.asarray(side, np.float64) for side in (data.first, data.second)])
    mean = x.mean(1, keepdims=True)
    sd = x.std(1, keepdims=True) if scale else np.ones_like(mean)
    x = (x - mean) / sd
    of_w, of_b = jax.random.split(jax.random.split(KEY, 1)[0])
    bound = D**-0.5
    theta = np.append(
        np.asarray(jax.random.uniform(of_w, (D,), jnp.float32, -bound, bound), np.float64),
        float(jax.random.uniform(of_b, (), jnp.float32, -bound, bound)),
    )
    m, v = np.zeros(D + 1), np.zeros(D + 1)
    for step in range(1, 41):
        p = 1 / (1 + np.exp(-(x @ theta[:-1] + theta[-1])))
        consistency, smaller = 2 * (p[0] - (1 - p[1])), np.argmin(p, axis=0)
        d_p = np.stack([consistency + 2 * p[i] * (smaller == i) for i in (0, 1)]) * p * (1 - p) / N
        g = np.append(np.einsum("sn,snd->d", d_p, x), d_p.sum())
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        theta -= 0.01 * (m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8) + 0.01 * theta)
    weights = theta[:-1] / sd[:, 0]
    sign = np.sign(np.sum(weights[0] * np.asarray(found.weights[0])))
    np.testing.assert_allclose(found.weights, sign * weights, rtol=1e-3, atol=1e-4)
    biases = sign * theta[-1] - np.sum(sign * weights * mean[:, 0], axis=1)
    np.testing.assert_allclose(found.biases, biases, rtol=1e-3, atol=2e-3)


def test_the_sides_are_centred_each_by_itself(pairs):
    data, _, of_side = pairs
    sides = PairSides.of(data, scaled=True)
    np.testing.assert_allclose(np.asarray(sides.values).mean(1), 0, atol=1e-4)
    np.testing.assert_allclose(np.asarray(sides.values).std(1), 1, atol=1e-4)
    assert abs(cosine(CRC().fit(data, None, KEY).direction(), of_side)) < 0.1


def vectors(pairs: np.ndarray, labels: np.ndarray) -> Vectors:
    n = len(labels)
    tokens, mask = np.zeros((n, 1), np.int32), np.ones((n, 1), bool)
    data = LabelledTokens("pairs", tokens, mask, mask, labels.astype(np.int32), ("false", "true"), pairs=pairs)
    x = np.random.default_rng(0).normal(size=(1, n, 3)).astype(np.float32)
    return Vectors(data, (Last(),), {"x": x})


def test_pairs_that_are_ordered_by_their_truth_are_refused():
    """Centring each side would remove the truth itself."""
    pairs, labels = np.arange(12).reshape(-1, 2), np.tile([1, 0], 6)
    for kind in (CCS(), CRC()):
        with pytest.raises(UserError, match="of the class 'true'"):
            fit_probes(kind, vectors(pairs, labels))
    assert fit_probes(LAT(), vectors(pairs, labels)).probe().direction().shape == (3,)
    with pytest.raises(UserError, match="no whole pair"):
        fit_probes(LAT(), vectors(pairs, labels), train=np.isin(np.arange(12), [0, 3]))
