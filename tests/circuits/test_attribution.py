"""Attribution against a NumPy transformer in float64 (directional derivatives by finite differences), closed forms, and
completeness."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from node_cases import BASES, SOME_BASES, contrast_of, gpt
from numpy_transformer import NumpyTransformer, softmax
from small_models import GPT2_LIKE, peaky

from jax_interp import load
from jax_interp.circuits import LogitDifference, baseline, make_contrast
from jax_interp.circuits.atp_star import AtPStar, key_effects
from jax_interp.circuits.attribution import attribute
from jax_interp.circuits.attribution_check import LOW, AttributionWarning, Check, ranks
from jax_interp.circuits.attribution_methods import Gradient, IntegratedGradients
from jax_interp.circuits.nodes import make_nodes, node_effects, node_metric
from jax_interp.circuits.tasks import find_task
from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Site, replan, run_blocks

H = 1e-5
LAYERS, HEADS, LENGTH, PROMPTS = 3, 4, 5, 2
RNG = np.random.default_rng(3)
CLEAN, CORRUPTED = RNG.integers(0, 61, (2, PROMPTS, LENGTH), np.int32)
ANSWER, WRONG = np.array([3, 5]), np.array([7, 9])


class Reference:
    """The effect of patching a unit, and its estimates, from forward passes of the NumPy transformer alone."""

    def __init__(self, model, run, other):
        self.net = NumpyTransformer(replan(model, "*"), HEADS, LAYERS)
        self.run, self.own, self.other = run, self.net.values(run), self.net.values(other)

    def metric(self, hook, tokens=None):
        logits = self.net(self.run if tokens is None else tokens, hook)[:, -1]
        rows = np.arange(PROMPTS)
        return logits[rows, ANSWER] - logits[rows, WRONG]

    def delta(self, name, layer, unit):
        change = np.zeros_like(self.own[name, layer])
        change[(slice(None), *unit)] = (self.other[name, layer] - self.own[name, layer])[(slice(None), *unit)]
        return change

    def effect(self, name, layer, unit):
        return self.metric(self.adding(name, layer, self.delta(name, layer, unit))) - self.metric(self.same)

    def slope(self, name, layer, change, hook=None):
        """The derivative of the metric along a change of one value."""
        hook = self.same if hook is None else hook
        ends = [self.metric(self.adding(name, layer, sign * H * change, hook)) for sign in (1, -1)]
        return (ends[0] - ends[1]) / (2 * H)

    @staticmethod
    def same(name, layer, value):
        return value

    @staticmethod
    def adding(name, layer, change, hook=None):
        def added(this, at, value):
            value = value + change if (this, at) == (name, layer) else value
            return value if hook is None else hook(this, at, value)

        return added

    def mixed_inputs(self, weight):
        return lambda name, layer, value: (
            (1 - weight) * value + weight * self.other["embed", -1] if name == "embed" else value
        )

    def mixed_layer(self, name, layer, weight):
        change = self.other[name, layer] - self.own[name, layer]
        return self.adding(name, layer, weight * change)

    def frozen(self, layer):
        """The outputs of a layer as in the run, whatever its inputs: their gradient is zero."""
        return lambda name, at, value: (
            self.own[name, at] if (at, name in ("attn_out", "mlp_out")) == (layer, True) else value
        )

    def patched_pattern(self, name, layer, unit):
        """The change of the pattern of one head if one query, or one key, has its other value."""
        q, k = self.own["q", layer], self.own["k", layer]
        change = self.delta(name, layer, unit)
        q, k = (q + change, k) if name == "q" else (q, k + change)
        scores = np.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        scores = np.where(np.tril(np.ones((LENGTH, LENGTH), bool)), scores, -np.inf)
        return softmax(scores) - self.own["pattern", layer]


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def model():
    small = peaky(dataclasses.replace(GPT2_LIKE, n_layers=LAYERS, d_model=16, d_mlp=12))
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), small)


@pytest.fixture(scope="module")
def contrast():
    return make_contrast(CLEAN, CORRUPTED, LogitDifference(jnp.asarray(ANSWER), jnp.asarray(WRONG)))


ADDRESSES = ["blocks.*.attn.q", "blocks.*.attn.k", "blocks.*.attn.z", "blocks.*.mlp_out"]
NAMES = {"attn.q": "q", "attn.k": "k", "attn.z": "z", "mlp_out": "mlp_out"}
UNITS = [("blocks.0.attn.q", 2, 1), ("blocks.1.attn.k", 1, 3), ("blocks.2.attn.k", 4, 0), ("blocks.0.attn.z", 4, 2),
         ("blocks.1.attn.z", 0, 0), ("blocks.2.mlp_out", 4, None), ("blocks.0.mlp_out", 3, None)]  # fmt: skip


def by_hand(kind, reference, name, layer, unit):
    """The estimate of one unit by one method, [prompt]."""
    delta = reference.delta(name, layer, unit)
    if kind == "gradient":
        return reference.slope(name, layer, delta)
    if kind == "ig-inputs, left":
        steps = [reference.slope(name, layer, delta, reference.mixed_inputs(w)) for w in (1, 2 / 3, 1 / 3)]
        return np.mean(steps, axis=0)
    if kind == "ig-activations, midpoint":
        steps = [reference.slope(name, layer, delta, reference.mixed_layer(name, layer, w)) for w in (0.25, 0.75)]
        return np.mean(steps, axis=0)
    where, change = (name, delta) if name not in "qk" else ("pattern", reference.patched_pattern(name, layer, unit))
    if kind == "QK fix":
        return reference.slope(where, layer, change)
    passes = [np.abs(reference.slope(where, layer, change, reference.frozen(dropped))) for dropped in range(LAYERS)]
    assert np.abs(passes[layer]).max() < 1e-12  # a unit has no gradient if the outputs of its own layer are dropped
    return np.sum(passes, axis=0) / (LAYERS - 1)


METHODS = {
    "gradient": Gradient(),
    "ig-inputs, left": IntegratedGradients("inputs", steps=3, rule="left"),
    "ig-activations, midpoint": IntegratedGradients("activations", steps=2),
    "QK fix": AtPStar(grad_drop=False),
    "AtP*": AtPStar(),
}


@pytest.mark.parametrize("kind", METHODS)
def test_every_method_is_its_definition(kind, model, contrast):
    """Heads, queries, keys and MLPs at single positions, against forward passes alone. The direction alternates."""
    direction = ("noise", "denoise")[list(METHODS).index(kind) % 2]
    run, other = (CLEAN, CORRUPTED) if direction == "noise" else (CORRUPTED, CLEAN)
    reference = Reference(model, run, other)
    nodes = make_nodes(model, contrast, ADDRESSES, per=("pos", "head"))
    found = attribute(model, contrast, nodes, METHODS[kind], direction=direction).effects
    exact = node_effects(model, contrast, nodes, direction=direction) if kind == "gradient" else None
    for address, pos, head in UNITS:
        layer, name = int(address.split(".")[1]), NAMES[address.split(".", 2)[2]]
        unit, places = ((pos,), {}) if head is None else ((pos, head), {"head": head})
        i = nodes.index(address, pos=pos, **places)
        wanted = by_hand(kind, reference, name, layer, unit)
        np.testing.assert_allclose(found[:, i], wanted, rtol=1e-5, atol=1e-8, err_msg=f"{address} {pos} {head}")
        if exact is not None:
            np.testing.assert_allclose(exact[:, i], reference.effect(name, layer, unit), rtol=1e-9, atol=1e-12)


def test_units_over_all_positions_and_all_heads(model, contrast):
    """Keys that are patched at all positions at once: their softmax is recomputed together. Gradients add up."""
    reference = Reference(model, CLEAN, CORRUPTED)
    by_head = make_nodes(model, contrast, ["blocks.*.attn.k", "blocks.*.attn.z"], per="head")
    found = attribute(model, contrast, by_head, AtPStar(grad_drop=False)).effects
    everywhere = (slice(None), 2)
    wanted = reference.slope("pattern", 1, reference.patched_pattern("k", 1, everywhere))
    np.testing.assert_allclose(found[:, by_head.index("blocks.1.attn.k", head=2)], wanted, rtol=1e-5)
    wanted = reference.slope("z", 1, reference.delta("z", 1, everywhere))
    np.testing.assert_allclose(found[:, by_head.index("blocks.1.attn.z", head=2)], wanted, rtol=1e-5)


@pytest.mark.parametrize("basis", SOME_BASES)
def test_the_gradient_is_that_of_the_mask_in_every_basis(basis):
    """d metric / d keep where all are kept is minus the estimate, by two different programs."""
    make, addresses, per, padded = BASES[basis]
    with jax.enable_x64(False):
        model, contrast = make(), contrast_of(padded)
        nodes = make_nodes(model, contrast, addresses, per=per)
        found = attribute(model, contrast, nodes, rows=2)

        @jax.jit
        @jax.grad
        def slope(keep):
            return node_metric(model, contrast, nodes, keep).sum()

        grad = slope(jnp.ones((contrast.clean.shape[0], nodes.size)))
        np.testing.assert_allclose(found.effects, -grad, rtol=1e-3, atol=1e-4 * np.abs(grad).max())
        assert np.abs(found.effects).max() > 0
        np.testing.assert_allclose(found.run, baseline(model, contrast)[0], rtol=1e-4, atol=1e-5)


def test_integrated_gradients_are_complete(model, contrast):
    """Over inputs: the sum over the embedding is m(other) - m(run). Over activations: the sum over a layer is the
    effect of patching the layer. Twice the steps: the midpoint rule gains a factor of 4, the left rule one of 2."""
    clean, corrupted = (np.asarray(m) for m in baseline(model, contrast))
    embed = make_nodes(model, contrast, "embed", per="pos")
    heads = make_nodes(model, contrast, "blocks.*.attn.z", per="head")
    layer = np.array([0] * HEADS + [1] * HEADS + [2] * HEADS)
    patched = np.stack(
        [np.asarray(node_metric(model, contrast, heads, jnp.asarray(layer != i))) for i in range(LAYERS)]
    )

    def errors(rule, steps):
        of_inputs = attribute(model, contrast, embed, IntegratedGradients("inputs", steps, rule)).effects
        of_layers = attribute(model, contrast, heads, IntegratedGradients("activations", steps, rule)).effects
        sums = np.stack([of_layers[:, layer == i].sum(1) for i in range(LAYERS)])
        return np.abs(of_inputs.sum(1) - (corrupted - clean)).max(), np.abs(sums - (patched - clean)).max()

    few, more = errors("midpoint", 32), errors("midpoint", 64)
    assert max(more) < 5e-3
    np.testing.assert_allclose(np.divide(few, more), 4, rtol=0.1)
    few, more = errors("left", 32), errors("left", 64)
    np.testing.assert_allclose(np.divide(few, more), 2, rtol=0.1)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Saturated:
    """A model of one number, σ(8 q)."""

    table: jax.Array

    def __call__(self, tokens, *, taps=()):
        site = Site.open(taps)
        q = site("q", self.table[tokens])
        return site.close(jax.nn.sigmoid(8 * q))


def test_a_saturated_metric():
    """q from 2 to -2: the effect is -1, the gradient sees nothing, and the left rule needs more than five steps."""
    contrast = make_contrast(jnp.array([[0]]), jnp.array([[1]]), lambda logits: logits[:, -1, 0])
    model = Saturated(jnp.array([[2.0], [-2.0]]))
    nodes = make_nodes(model, contrast, "q")
    estimate = lambda method: float(attribute(model, contrast, nodes, method).effects[0, 0])
    np.testing.assert_allclose(node_effects(model, contrast, nodes)[0, 0], -1.0, atol=1e-6)
    np.testing.assert_allclose(estimate("gradient"), -4 * 8 * np.exp(-16) / (1 + np.exp(-16)) ** 2, rtol=1e-6)
    left = {m: estimate(IntegratedGradients("inputs", m, "left", inputs="q")) for m in (5, 30)}
    np.testing.assert_allclose([left[5], left[30]], [-0.4826, -1.0], atol=5e-5)
    midpoint = estimate(IntegratedGradients("activations", 30))
    np.testing.assert_allclose(midpoint, -1.0, atol=1e-4)


def test_a_query_that_moves_saturated_attention():
    """One layer of attention without norms or MLP is linear in its pattern. So the QK fix is exact, for each query,
    each key, and all keys of a head; the gradient is not."""
    config = dataclasses.replace(GPT2_LIKE, n_layers=1, d_mlp=0, norm="none", d_model=16)
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), peaky(config))
    model.blocks[0].block.attn.q.weight[...] = 60 * model.blocks[0].block.attn.q.weight[...]
    contrast = make_contrast(CLEAN, CORRUPTED, LogitDifference(jnp.asarray(ANSWER), jnp.asarray(WRONG)))
    for per in (("head", "pos"), "head"):
        nodes = make_nodes(model, contrast, ["blocks.0.attn.q", "blocks.0.attn.k"], per=per)
        exact = np.asarray(node_effects(model, contrast, nodes))
        fixed = attribute(model, contrast, nodes, AtPStar(grad_drop=False)).effects
        np.testing.assert_allclose(fixed, exact, rtol=1e-6, atol=1e-9)
        plain = attribute(model, contrast, nodes).effects
        assert np.abs(plain - exact).max() > 0.3 * np.abs(exact).max()


def test_the_effect_of_a_key_by_its_closed_form():
    """Σ_j Δp_j g_j against a softmax for each key, also where a score rises by 300 and where one key has everything."""
    scores, gradient = RNG.normal(size=(2, 4, 6)), RNG.normal(size=(2, 4, 6))
    scores[0, 0, 0] = 60.0
    patched = scores + RNG.normal(size=scores.shape) * 3
    patched[1, 2, 3] += 300
    patched[0, 0, 0] -= 70
    wanted = np.zeros((2, 6))
    for t in range(6):
        one = scores.copy()
        one[..., t] = patched[..., t]
        wanted[:, t] = ((softmax(one) - softmax(scores)) * gradient).sum((-1, -2))
    given = [jnp.asarray(array) for array in (scores, patched, gradient)]
    np.testing.assert_allclose(key_effects(*given), wanted, rtol=1e-8, atol=1e-10)
    single = [array.astype(jnp.float32) for array in given]
    np.testing.assert_allclose(key_effects(*single), wanted, rtol=1e-4, atol=1e-5)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Backed:
    """Layer 0 writes a number. Layer 1 writes -relu of the stream, a backup that takes over. Layer 2 writes nothing."""

    number: jax.Array

    def __call__(self, x, site):
        x = site("resid_pre", x)
        wrote = jnp.where(
            site.layer == 0, x * self.number, jnp.where(site.layer == 1, -jax.nn.relu(x), jnp.zeros_like(x))
        )
        return site("resid_post", x + site("mlp_out", wrote) - jnp.where(site.layer == 0, x, jnp.zeros_like(x)))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class BackedModel:
    table: jax.Array
    blocks: list

    def __call__(self, tokens, *, taps=()):
        site = Site.open(taps, self.blocks)
        return site.close(run_blocks(self.blocks, site("embed", self.table[tokens]), site))


def test_an_effect_that_its_backup_cancels():
    """Layer 0 writes 1, corrupted -1; layer 1 adds -relu. The metric goes from 0 to -1, and its gradient is 1 - 1 = 0.
    If layer 1 is left out the gradient is 1: AtP* = (0 + 2 + 0) / 2 = 1."""
    contrast = make_contrast(jnp.array([[0]]), jnp.array([[1]]), lambda logits: logits[:, -1, 0])
    model = BackedModel(jnp.array([[1.0], [-1.0]]), [Backed(jnp.ones((1, 1, 1))) for _ in range(3)])
    nodes = make_nodes(model, contrast, "blocks.0.mlp_out")
    estimate = lambda method: float(attribute(model, contrast, nodes, method).effects[0, 0])
    assert float(node_effects(model, contrast, nodes)[0, 0]) == -1.0
    assert (estimate("gradient"), estimate("atp*")) == (0.0, 1.0)


def test_a_bad_estimate_cannot_be_overlooked():
    """Predicting the next documented parameter: heads are nearly linear, the residual stream is not."""
    with jax.enable_x64(False):
        model, tokenizer = load("stdlib-small")
        contrast = find_task("docstring").sample(tokenizer, 8, seed=0).contrast
        heads = make_nodes(model, contrast, "blocks.*.attn.z", per="head")
        good = attribute(model, contrast, heads, check=12).check
        assert not good.is_low
        assert good.warning() is None
        streams = make_nodes(model, contrast, "blocks.*.resid_pre", per="pos")
        with pytest.warns(AttributionWarning, match="DO NOT TRUST"):
            bad = attribute(model, contrast, streams, check=12)
        assert bad.check.pearson() < LOW
        assert str(bad).splitlines()[2].startswith("!! DO NOT TRUST THESE ESTIMATES")
        assert "font-weight:bold" in bad._repr_html_()


def test_what_a_check_reports():
    """Pearson and Spearman against NumPy, ties, signs, and the worst miss."""
    estimated, measured = RNG.normal(size=9), RNG.normal(size=9)
    estimated[3] = estimated[4]
    names = tuple(f"unit {i}" for i in range(9))
    check = Check(names, np.arange(9), np.arange(9) > 4, estimated, measured)
    assert check.pearson() == pytest.approx(np.corrcoef(estimated, measured)[0, 1])
    assert check.pearson(True) == pytest.approx(np.corrcoef(estimated[5:], measured[5:])[0, 1])
    assert check.spearman() == pytest.approx(np.corrcoef(ranks(estimated), ranks(measured))[0, 1])
    assert sorted(ranks(estimated).tolist())[:2] == [0, 1] or 0.5 in ranks(estimated)
    assert check.sign_agreement() == np.mean(estimated * measured > 0)
    worst = int(np.argmax(np.abs(estimated - measured)))
    assert check.worst(1) == [(f"unit {worst}", pytest.approx(estimated[worst]), pytest.approx(measured[worst]))]
    constant = dataclasses.replace(check, measured=np.zeros(9))
    assert np.isnan(constant.pearson())
    assert "is not defined" in (constant.warning() or "")


def test_what_has_no_meaning(model, contrast):
    streams = make_nodes(model, contrast, "blocks.*.resid_pre", per="pos")
    with pytest.raises(UserError, match="part of the residual stream"):
        attribute(model, contrast, streams, "atp*")
    with pytest.raises(UserError, match="leave feature out"):
        attribute(model, contrast, make_nodes(model, contrast, "blocks.*.attn.q", per="feature"), "atp*")
    with pytest.raises(UserError, match="choose one of gradient"):
        attribute(model, contrast, streams, "gradients")
    with pytest.raises(UserError, match="choose denoise"):
        attribute(model, contrast, streams, direction="up")
    with pytest.raises(UserError, match="at least one"):
        IntegratedGradients(steps=0)
    with pytest.raises(UserError, match="choose of="):
        IntegratedGradients(rule="right")
    with pytest.raises(UserError, match="fewer than two layers"):
        attribute(gpt(1), contrast_of(), make_nodes(gpt(1), contrast_of(), "blocks.*.attn.z"), "atp*")
    with pytest.raises(UserError, match="check=-1"):
        attribute(model, contrast, streams, check=-1)
