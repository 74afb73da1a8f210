"""Each loss against values worked out by hand or by numpy in float64."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_tms import TIED, sparse, tiny

from jax_interp.decomposition import Components, Mask, decompose, masked_output
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.importance import Importance, read_inputs
from jax_interp.decomposition.losses import (
    AdamAdversary,
    Faithfulness,
    HiddenReconstruction,
    ImportanceMasked,
    ImportanceMinimality,
    LossInputs,
    LossSettings,
    MixedReconstruction,
    PersistentPGD,
    PGDReconstruction,
    SmoothL0,
    StochasticLayerwise,
    StochasticReconstruction,
    StochasticSubset,
    Unmasked,
)
from jax_interp.decomposition.losses.adversaries import Sources, init_sources, pgd, source_shape, tile_sources
from jax_interp.decomposition.losses.base import distance
from jax_interp.decomposition.losses.faithfulness import warm_up
from jax_interp.decomposition.losses.minimality import annealed
from jax_interp.decomposition.masks import masks_from_sources, route_masks, stochastic_masks, subset_routes
from jax_interp.decomposition.sigmoids import SIGMOIDS, lower_leaky

KEY = jax.random.key(0)
ROWS = 8


def loss_inputs(**options) -> LossInputs:
    model, x = tiny(), sparse(KEY, batch=ROWS, p=0.7)
    parts = decompose(model, "*", C=4, key=jax.random.key(1), tied=TIED)
    rng = np.random.default_rng(0)
    lower = {n: jnp.asarray(rng.random((ROWS, 4)), jnp.float32) for n in parts.names}
    output, _, hidden = read_inputs(parts, x, outputs=True)
    return LossInputs(parts, (x,), output, Importance(lower, lower, lower), hidden, **options)


def test_sigmoids_and_their_backward():
    z = jnp.asarray([-0.5, 0.0, 0.3, 1.0, 1.5])
    for g, want in ((1.0, [0, 0, 1, 1, 0]), (-1.0, [-0.01, -0.01, -1, -1, 0])):
        np.testing.assert_allclose(jax.vjp(lower_leaky, z)[1](jnp.full(5, g))[0], want)
    values = {name: (lower(z), upper(z)) for name, (lower, upper) in SIGMOIDS.items()}
    np.testing.assert_allclose(values["leaky_hard"][0], [0, 0, 0.3, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(values["leaky_hard"][1], [0, 0, 0.3, 1, 1.005], rtol=1e-6)
    np.testing.assert_allclose(values["leaky_hard_v1"][0], [-0.005, 0, 0.3, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(values["hard"][1], [0, 0, 0.3, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(values["normal"][0], 1 / (1 + np.exp(-np.asarray(z))), rtol=1e-6)
    # swish_hard as published, with its shifts
    x, b = np.asarray(z, float) - 0.5, 10.0
    swish, upside_down = (lambda t, s=s: t / (1 + np.exp(-s * b * t)) for s in (1, -1))
    want = 0.5 + (upside_down(x - 0.5) - swish(x)) + (swish(x + 0.5) - upside_down(x))
    np.testing.assert_allclose(values["swish_hard"][0], want, rtol=1e-5, atol=1e-6)


def test_faithfulness():
    """W of ones [2, 3], V U of halves: squares of 1/2 everywhere; relative 1/4. The twin counts as much again."""
    model = tiny(2, 3)
    model = dataclasses.replace(model, linear1=dataclasses.replace(model.linear1, weight=jnp.ones((2, 3))))
    parts = Decomposed(model, {"linear1": Components(jnp.ones((2, 1)), jnp.full((1, 3), 0.5))}, TIED)
    batch = dataclasses.replace(loss_inputs(), model=parts)
    np.testing.assert_allclose(Faithfulness()(batch, KEY), 0.25, rtol=1e-6)
    np.testing.assert_allclose(Faithfulness(relative=True)(batch, KEY), 0.25, rtol=1e-6)
    far = decompose(tiny(), "linear1", C=4, key=KEY)
    near = warm_up(far, 100, 0.03, 0.0)
    ratio = Faithfulness()(dataclasses.replace(batch, model=near), KEY) / Faithfulness()(
        dataclasses.replace(batch, model=far), KEY
    )
    assert float(ratio) < 1e-2


def test_minimality():
    batch = loss_inputs()
    upper = {"linear1": jnp.asarray([[0.5, 0.0], [1.0, 0.25]]), "blocks.*.up": jnp.full((3, 2, 1), 0.5)}
    batch = dataclasses.replace(batch, importance=Importance(upper, upper, upper), progress=0.5)
    of = lambda loss: float(loss(batch, KEY))
    assert of(ImportanceMinimality(p=1.0)) == pytest.approx((0.5 + 1.25) / 2 + 3 * 0.5)
    assert of(ImportanceMinimality(p=2.0)) == pytest.approx((0.25 + 1 + 0.0625) / 2 + 3 * 0.25)
    # halfway from 2 to 1
    exponent = (0.5**1.5 + 1 + 0.25**1.5) / 2 + 3 * 0.5**1.5
    assert of(ImportanceMinimality(p=2.0, p_final=1.0)) == pytest.approx(exponent, rel=1e-5)
    sums = np.array([1.5, 0.25, 1.0, 1.0, 1.0])  # over the two rows, p = 1
    want = (sums * (1 + 0.5 * np.log2(1 + sums))).sum() / 2
    assert of(ImportanceMinimality(p=1.0, frequency=0.5)) == pytest.approx(want, rel=1e-5)
    # γ = .5 at this point of the run: ψ(.5) = .5, ψ(1) = .8, ψ(.25) = .2
    by_component = np.array([(0.5 + 0.8) / 2, 0.1, 0.5, 0.5, 0.5])
    want = by_component.sum() + 2.0 * (by_component * np.log2(1 + 16 * by_component)).sum()
    assert of(SmoothL0(gamma=1.0, gamma_final=0.0, frequency=2.0, reference=16)) == pytest.approx(want, rel=1e-5)
    assert [float(annealed(2.0, 1.0, t, 0.25, 0.75)) for t in (0.0, 0.25, 0.5, 1.0)] == [2.0, 2.0, 1.5, 1.0]


def test_masks_and_routes():
    lower = {"linear1": jnp.full((2000, 3), 0.4), "blocks.*.up": jnp.full((3, 2000, 2), 0.0)}

    @jax.jit
    def made():
        masks, routes = stochastic_masks(KEY, lower), subset_routes(KEY, lower)
        flips = stochastic_masks(KEY, lower, sampling="binomial", delta=False)["linear1"]
        sources = {n: jnp.full((*g.shape[:-2], 1, g.shape[-1] + 1), 0.5) for n, g in lower.items()}
        return masks, flips, routes, route_masks(masks, routes)["linear1"], masks_from_sources(lower, sources)

    masks, flips, routes, sent, halfway = jax.device_get(made())
    assert masks["linear1"].delta.shape == (2000, 1)
    np.testing.assert_allclose(masks["linear1"].components.mean(), 0.7, atol=0.01)
    assert masks["linear1"].components.min() >= 0.4
    np.testing.assert_allclose(np.unique(flips.components), [0.4, 1.0], rtol=1e-6)
    assert float(flips.delta) == 0
    counts = routes["linear1"].astype(int) + routes["blocks.*.up"].sum(0)
    assert set(np.unique(counts)) == {1, 2, 3, 4}
    np.testing.assert_allclose(np.bincount(counts)[1:] / 2000, 0.25, atol=0.04)
    elsewhere = ~routes["linear1"]
    assert (sent.components[elsewhere] == 1).all()
    assert (sent.delta[elsewhere] == 1).all()
    np.testing.assert_allclose(sent.components[~elsewhere], masks["linear1"].components[~elsewhere], rtol=1e-5)
    np.testing.assert_allclose(halfway["linear1"].components, 0.7, rtol=1e-6)
    np.testing.assert_allclose(halfway["blocks.*.up"].delta, 0.5)


def test_reconstruction_losses():
    """All against the error of masks put in by hand."""
    batch = loss_inputs()
    lower, target = batch.importance.lower, np.asarray(batch.output, float)
    run = jax.jit(masked_output)

    def error(masks):
        return float(np.mean((np.asarray(run(batch.model, masks, *batch.args), float) - target) ** 2))

    drawn = lambda key: stochastic_masks(key, lower)
    first = jax.random.fold_in(KEY, 0)
    close = lambda loss, want: np.testing.assert_allclose(loss(batch, KEY), want, rtol=1e-4)
    close(StochasticReconstruction(), error(drawn(first)))
    close(StochasticReconstruction(samples=2), (error(drawn(first)) + error(drawn(jax.random.fold_in(KEY, 1)))) / 2)
    close(StochasticLayerwise(), np.mean([error({n: m}) for n, m in drawn(first).items()]))
    close(Unmasked(), error({n: Mask(jnp.ones_like(g), jnp.zeros(())) for n, g in lower.items()}))
    close(ImportanceMasked(), error({n: Mask(g, jnp.zeros(())) for n, g in lower.items()}))
    draw, route = jax.random.split(first)
    subset = StochasticSubset()
    close(subset, error(route_masks(drawn(draw), subset.routes(batch.lower, route))))
    everywhere = StochasticSubset(routing="static_probability", probability=1.0)
    close(everywhere, error(drawn(draw)))
    # logits, by KL
    p, q = np.array([[0.2, 0.8]]), np.array([[0.5, 0.5]])
    want = (p * np.log(p / q)).sum()
    np.testing.assert_allclose(distance("kl", jnp.asarray(np.log(p)), jnp.asarray(np.log(q) + 3)), want, rtol=1e-4)
    # hidden: at both matrices, the second one's input being off too
    ones = {n: Mask(g, jnp.zeros(())) for n, g in lower.items()}
    V, U = (np.asarray(m, float) for m in (batch.model.of("linear1").V, batch.model.of("linear1").U))
    x, W = np.asarray(batch.args[0], float), np.asarray(batch.model.target.linear1.weight, float)
    h = (x @ V * np.asarray(ones["linear1"].components)) @ U
    y = (h @ U.T * np.asarray(ones["linear2"].components)) @ V.T
    want = (np.mean((h - x @ W) ** 2) + np.mean((y - x @ W @ W.T) ** 2)) / 2
    close(HiddenReconstruction(masks="importance"), want)


def test_remat_recomputes_every_masked_forward():
    """There is one checkpointed forward in the program of each loss."""
    plain = loss_inputs()
    for loss in (HiddenReconstruction(), StochasticReconstruction()):
        for remat in (False, True):
            batch = dataclasses.replace(plain, settings=LossSettings(remat=remat))
            of = lambda model, batch=batch, loss=loss: loss(dataclasses.replace(batch, model=model), KEY)
            equations = jax.make_jaxpr(of)(batch.model).eqns
            assert sum("prevent_cse" in equation.params for equation in equations) == remat


def test_adversaries():
    batch = loss_inputs()
    adversary = AdamAdversary(warm_up_steps=2, rate_warm_up=0.0, learning_rate=0.1)
    loss = PersistentPGD(adversary=adversary)

    @jax.jit
    def values():
        ascents = [
            [PGDReconstruction(steps=n, scope=scope)(batch, KEY) for n in (0, 10)]
            for scope in ("unique_per_datapoint", "shared_across_batch")
        ]
        state = adversary.init(KEY, batch.importance.lower, True)
        after = adversary.warm_up(lambda key, raw: loss(batch, key, raw), KEY, state, 1.0)
        merged = [MixedReconstruction(adversarial=p, adversary=adversary)(batch, KEY, after.raw) for p in (1.0, 0.0)]
        some = [
            MixedReconstruction(adversarial=p, adversary=adversary, subset=True)(batch, KEY, after.raw)
            for p in (1.0, 0.0)
        ]
        masks = stochastic_masks(jax.random.split(KEY)[0], batch.importance.lower)
        routes = subset_routes(jax.random.fold_in(KEY, 2), batch.importance.lower)
        drawn = [batch.error(masks), batch.error(route_masks(masks, routes))]
        return ascents, after.count, [loss(batch, KEY, s.raw) for s in (state, after)], merged, some, drawn

    ascents, count, persistent, merged, some, drawn = values()
    for before, after in ascents:
        assert float(after) > 1.2 * float(before)
    assert int(count) == 2
    assert float(persistent[1]) > float(persistent[0])
    np.testing.assert_allclose(merged, [persistent[1], drawn[0]], rtol=1e-5)  # all adversarial, none
    np.testing.assert_allclose(some, [persistent[1], drawn[1]], rtol=1e-5)  # a subset is of what is drawn alone
    assert abs(float(drawn[1]) / float(drawn[0]) - 1) > 0.01

    g = jnp.zeros((4, 6, 3))
    shape = lambda scope, name="linear1": source_shape(g, name, scope, True, repeat=2)
    assert shape("per_batch_per_position") == (4, 6, 4)
    assert shape("single_source") == (1, 1, 4)
    assert shape("broadcast_across_batch") == (1, 6, 4)
    assert shape("repeat_across_batch") == (2, 6, 4)
    assert shape("single_source", "blocks.*.up") == (4, 1, 4)
    tiled = tile_sources({"linear1": jnp.arange(2.0)[:, None]}, {"linear1": jnp.zeros((5, 1))})
    np.testing.assert_array_equal(tiled["linear1"][:, 0], [0, 1, 0, 1, 0])

    # Adam's first step moves by the rate along the sign, and stays in [0, 1]
    one = Sources({"a": jnp.asarray([0.5, 0.5, 0.99])}, {"a": jnp.zeros(3)}, {"a": jnp.zeros(3)}, jnp.int32(0))
    moved = adversary.climb(one, {"a": jnp.asarray([3.0, -1e-3, 1.0])}, 1.0)
    np.testing.assert_allclose(moved.raw["a"], [0.6, 0.4, 1.0], rtol=1e-4)


def test_ascent_in_numpy():
    """r ← clip(r + size · sign(∂loss/∂r), 0, 1) along ∂loss/∂r = 2 (r - at): away from a minimum, and no further than
    the ends; where the gradient is 0 nothing moves."""
    r, at = np.array([0.5, 0.5, 0.05, 0.5, 0.9]), np.array([0.4, 0.6, 0.3, 0.5, 0.2])
    for steps in (0, 1, 3):
        want = r.copy()
        for _ in range(steps):
            want = np.clip(want + 0.1 * np.sign(want - at), 0, 1)
        loss = lambda sources: jnp.sum((sources["a"] - jnp.asarray(at, jnp.float32)) ** 2)
        found = pgd(loss, {"a": jnp.asarray(r, jnp.float32)}, steps, 0.1)["a"]
        np.testing.assert_allclose(found, want, atol=1e-6)
    np.testing.assert_allclose(want, [0.8, 0.2, 0.0, 0.5, 1.0], atol=1e-6)


@pytest.mark.parametrize("subset", [False, True])
def test_what_an_adversary_finds_is_a_constant_to_the_decomposition(subset):
    """The value and the gradients, of V and U and of importances, are those under its last sources given as they are:
    none goes through its steps. With `subset` the ascent and the loss are of the same random routes."""
    batch = loss_inputs()
    lower, start = batch.importance.lower, jax.random.split(KEY)[0]
    routes = StochasticSubset().routes(batch.lower, jax.random.split(KEY)[1])
    assert not all(bool(on.all()) for on in routes.values())
    loss = PGDReconstruction(steps=3, step_size=1e-3, scope="unique_per_datapoint", subset=subset)

    def moved(pairs, g):
        model = dataclasses.replace(batch.model, components=pairs)
        return dataclasses.replace(batch, model=model, importance=Importance(g, g, g))

    def under(batch, r):
        masks = masks_from_sources(batch.importance.lower, r)
        return batch.error(route_masks(masks, routes) if subset else masks)

    @jax.jit
    def both():
        r = init_sources(start, lower, "random", "unique_per_datapoint", True)
        for _ in range(3):
            grads = jax.grad(lambda r: under(batch, r))(r)
            r = jax.tree.map(lambda r, g: jnp.clip(r + 1e-3 * jnp.sign(g), 0, 1), r, grads)
        args, wrt = (batch.model.components, lower), (0, 1)
        found = jax.value_and_grad(lambda *at: loss(moved(*at), KEY), wrt)(*args)
        return found, jax.value_and_grad(lambda *at: under(moved(*at), r), wrt)(*args)

    found, want = both()
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)


def test_a_persistent_adversary_of_a_subset():
    """The error of its masks where rows are routed to them, and of the target's weights elsewhere."""
    batch, adversary = loss_inputs(), AdamAdversary()
    raw = adversary.init(KEY, batch.importance.lower, True).raw
    masks = masks_from_sources(batch.importance.lower, raw)
    routes = StochasticSubset().routes(batch.lower, KEY)
    both = [PersistentPGD(adversary=adversary, subset=subset)(batch, KEY, raw) for subset in (False, True)]
    np.testing.assert_allclose(both, [batch.error(masks), batch.error(route_masks(masks, routes))], rtol=1e-5)
    assert float(both[0]) != pytest.approx(float(both[1]), rel=1e-2)
