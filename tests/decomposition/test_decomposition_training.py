"""The training step: importance functions of every kind, resume to the bit, many instances at once, known answers."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_tms import TIED, pentagon, sparse, tiny

from jax_interp.core import config_json as configs
from jax_interp.core.errors import UserError
from jax_interp.decomposition import DecompositionConfig, Schedule, decompose, train_decomposition, train_instances
from jax_interp.decomposition.apd import APDConfig, apd_instances, train_apd
from jax_interp.decomposition.capacity import capacity_sweep, count_alive
from jax_interp.decomposition.components import Components, Decomposed
from jax_interp.decomposition.importance import (
    GlobalMLP,
    GlobalTransformer,
    ScalarMLP,
    SharedMLP,
    VectorMLP,
    read_inputs,
)
from jax_interp.decomposition.losses import (
    AdamAdversary,
    Faithfulness,
    MixedReconstruction,
    PersistentPGD,
    SmoothL0,
    StochasticReconstruction,
    StochasticSubset,
)
from jax_interp.decomposition.masks import Mask, masked_output
from jax_interp.decomposition.metrics import alive, identity_error, one_hot_inputs, recovery
from jax_interp.decomposition.presets import preset
from jax_interp.decomposition.train import init_state, train_step
from jax_interp.decomposition.training_run import rate, run_record
from jax_interp.models import Config, init
from jax_interp.toys.tms import TMSConfig, train_tms
from jax_interp.toys.toy_training import ToyTraining
from jax_interp.training import QUIET, Log, SaveTo, open_run

TINY = DecompositionConfig(
    ("*",), C=4, tied=TIED, importance=ScalarMLP(4), steps=6, batch=32, schedule=Schedule(1e-2), warm_up=None
)
ALL_SORTS = dataclasses.replace(
    TINY,
    losses=(
        Faithfulness(relative=True),
        SmoothL0(),
        StochasticSubset(),
        PersistentPGD(adversary=AdamAdversary(rate_warm_up=0.0), subset=True),
        MixedReconstruction(adversary=AdamAdversary(scope="single_source", rate_warm_up=0.0)),
    ),
    clip=1.0,
)
KEY = jax.random.key(0)
sample = partial(sparse, batch=32, p=0.3)


def test_importance_functions_in_numpy():
    """Scalar, vector and shared gates against float64; all kinds on stacked and unrolled blocks alike."""
    model, x = tiny(), sparse(jax.random.key(0), batch=6, p=0.7)
    parts = decompose(model, "linear1", C=4, key=jax.random.key(1))
    _, inputs, _ = read_inputs(parts, x)
    from scipy.special import erf

    gelu = lambda z: 0.5 * z * (1 + erf(z / 2**0.5))
    exact = lambda tree: jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)
    X, V = np.asarray(x, np.float64), np.asarray(parts.of("linear1").V, np.float64)

    scalar = ScalarMLP(3).init(jax.random.key(2), parts)
    g = exact(scalar.gates["linear1"])
    want = (gelu((X @ V)[..., None] * g.wi + g.bi) * g.wo).sum(-1) + g.bo
    np.testing.assert_allclose(scalar(parts, inputs)["linear1"], want, rtol=1e-4, atol=1e-5)
    # its hand-written backward against finite differences of numpy's float64
    weight = np.random.default_rng(0).standard_normal((6, 4))
    grads = jax.grad(lambda gate: jnp.sum(gate(x @ parts.of("linear1").V) * jnp.asarray(weight, jnp.float32)))(
        scalar.gates["linear1"]
    )
    for name in ("wi", "bi", "wo", "bo"):
        at = (2,) if name == "bo" else (2, 1)

        def off(by, name=name, at=at):
            moved = dataclasses.replace(g, **{name: getattr(g, name).copy()})
            getattr(moved, name)[at] += by
            return ((gelu((X @ V)[..., None] * moved.wi + moved.bi) * moved.wo).sum(-1) + moved.bo) * weight

        np.testing.assert_allclose(getattr(grads, name)[at], (off(1e-5) - off(-1e-5)).sum() / 2e-5, rtol=1e-3)
    vector = VectorMLP(3).init(jax.random.key(2), parts)
    g = exact(vector.gates["linear1"])
    want = (gelu(np.einsum("bi,cih->bch", X, g.wi)) * g.wo).sum(-1)
    np.testing.assert_allclose(vector(parts, inputs)["linear1"], want, rtol=1e-4, atol=1e-5)
    shared = SharedMLP((3,)).init(jax.random.key(2), parts)
    first, last = exact(shared.networks["linear1"])
    want = gelu(X @ first.weight) @ last.weight
    np.testing.assert_allclose(shared(parts, inputs)["linear1"], want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_run_resumes_to_the_bit_and_instances_are_the_runs(tmp_path):
    """Every kind of loss with state, killed halfway; and two seeds under one vmap against the seeds one by one."""
    model, log = tiny(), Log(every=2, quiet=True)
    whole = train_decomposition(ALL_SORTS, model, sample=sample, run=tmp_path / "whole", log=log)

    class Stop(Exception):
        pass

    def stop(record):
        if record["step"] == 4:
            raise Stop

    with pytest.raises(Stop):
        train_decomposition(
            ALL_SORTS,
            model,
            sample=sample,
            run=SaveTo(tmp_path / "cut", every=2),
            log=dataclasses.replace(log, on_record=stop),
        )
    again = train_decomposition(ALL_SORTS, model, sample=sample, run=SaveTo(tmp_path / "cut", every=2), log=log)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "cut/metrics.jsonl").read_bytes()

    both = train_instances(ALL_SORTS, model, seeds=(0, 7), sample=sample, log=QUIET)
    np.testing.assert_allclose(both.model.components["linear1"].V[0], whole.model.components["linear1"].V, atol=2e-4)
    assert configs.from_json(DecompositionConfig, configs.to_json(ALL_SORTS)) == ALL_SORTS


def test_how_many_instances_are_at_once_does_not_matter():
    """Two under one vmap and the third after them, or one after another, each with coefficients of its own."""
    config = dataclasses.replace(TINY, steps=3, losses=(SmoothL0(), StochasticReconstruction()))
    weights = jnp.asarray([[0.1, 1.0], [1.0, 1.0], [0.1, 3.0]])
    one, two = (
        train_instances(
            config, tiny(), seeds=(0, 7, 8), coefficients=weights, sample=sample, at_once=at_once, log=QUIET
        )
        for at_once in (1, 2)
    )
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_run_directory_is_of_one_call(tmp_path):
    """What differs in anything that decides the result is refused, by name; the same call gives the same again."""
    config, apd = dataclasses.replace(TINY, losses=(Faithfulness(),), steps=2), APDConfig(tied=TIED, steps=2, batch=32)
    model, other, options = tiny(), tiny(seed=1), {"sample": sample, "log": QUIET}
    weights, place = jnp.asarray([[1.0], [2.0]]), tmp_path / "many"
    many = partial(train_instances, config, model, coefficients=weights, run=place, **options)
    first = many(seeds=(0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, many(seeds=(0, 1)))
    with pytest.raises(UserError, match=r"seeds: .*0, 1.* -> .*5, 6"):
        many(seeds=(5, 6))
    for named, kept in {
        "coefficients: ": run_record(place, config, model, (0, 1), 2 * weights),
        "coefficients: .* -> null": run_record(place, config, model, (0, 1)),
        "targets: ": run_record(place, config, other, (0, 1), weights),
    }.items():
        with pytest.raises(UserError, match=named), open_run(place, kept.config):
            pass
    train_decomposition(config, model, run=tmp_path / "one", **options)
    with pytest.raises(UserError, match="targets: "):
        train_decomposition(config, other, run=tmp_path / "one", **options)
    apd_instances(apd, model, seeds=(0, 1), run=tmp_path / "apd", **options)
    with pytest.raises(UserError, match="seeds: "):
        apd_instances(apd, model, seeds=(5, 6), run=tmp_path / "apd", **options)


def test_data_of_another_size_than_the_config_says_is_refused(tmp_path):
    """What is stored with a run is what it was trained on."""
    apd, place = APDConfig(tied=TIED, steps=2), tmp_path / "run"
    for batch, call in (
        (64, partial(train_decomposition, dataclasses.replace(TINY, batch=64), sample=sample)),
        (64, partial(train_decomposition, dataclasses.replace(TINY, batch=64), batch_at=lambda step: sample(KEY))),
        (64, partial(train_instances, dataclasses.replace(TINY, batch=64), seeds=(0,), sample=sample)),
        (2048, partial(train_apd, apd, sample=sample)),
        (2048, partial(apd_instances, apd, seeds=(0,), sample=sample)),
    ):
        with pytest.raises(UserError, match=f"batch={batch} in the config, but a batch of the data has 32 rows"):
            call(model=tiny(), run=place, log=QUIET)
    assert not place.exists()


def test_an_open_run_keeps_its_config(tmp_path):
    config, apd = dataclasses.replace(TINY, losses=(Faithfulness(),), steps=1), APDConfig(tied=TIED, steps=1, batch=32)
    options = {"sample": sample, "log": QUIET}
    for i, call in enumerate(
        (
            partial(train_decomposition, config, tiny(), **options),
            partial(train_instances, config, tiny(), seeds=(0, 1), **options),
            partial(train_apd, apd, tiny(), **options),
            partial(apd_instances, apd, tiny(), seeds=(0, 1), **options),
        )
    ):
        with open_run(tmp_path / str(i), config) as run:
            call(run=run)
            assert configs.load(DecompositionConfig, run.config) == config


def test_a_few_steps():
    """Components come to add up, the target stays as it was, and the config survives JSON."""
    model, seen = tiny(), []
    config = dataclasses.replace(TINY, steps=40, losses=(Faithfulness(), StochasticReconstruction()))
    trained = train_decomposition(config, model, sample=sample, log=Log(every=1, on_record=seen.append, quiet=True))
    assert seen[-1]["Faithfulness"] < 0.7 * seen[0]["Faithfulness"]
    np.testing.assert_array_equal(trained.model.target.linear1.weight, model.linear1.weight)
    assert configs.from_json(DecompositionConfig, configs.to_json(ALL_SORTS)) == ALL_SORTS


def test_an_embedding_trains():
    """Its rows come to be sums of components; with all masks and Δ on nothing changes; what sees no vector says so."""
    model = init(Config(n_layers=1, d_model=8, n_heads=2, d_mlp=8, vocab_size=17, n_ctx=8), KEY)
    draw, seen = lambda key: jax.random.randint(key, (2, 5), 0, 17), []
    config = DecompositionConfig(
        ("embed",), C=8, steps=30, batch=2, warm_up=None, schedule=Schedule(3e-2), importance=ScalarMLP(2),
        losses=(Faithfulness(relative=True), StochasticReconstruction()), compare="kl",
    )  # fmt: skip
    found = train_decomposition(config, model, sample=draw, log=Log(every=1, on_record=seen.append, quiet=True))
    assert seen[-1]["Faithfulness"] < 0.5 * seen[0]["Faithfulness"]
    tokens = draw(KEY)
    assert found.importance(tokens).lower["embed"].shape == (2, 5, 8)
    on = {"embed": Mask(jnp.ones((2, 5, 8)), jnp.ones((2, 5, 1)))}
    np.testing.assert_allclose(masked_output(found.model, on, tokens), model(tokens), rtol=1e-5, atol=1e-6)
    for gates in (VectorMLP(2), SharedMLP((3,)), GlobalMLP((3,)), GlobalTransformer(8, 1, 2, 16)):
        with pytest.raises(UserError, match="'embed' reads indices"):
            init_state(dataclasses.replace(config, importance=gates), model, tokens)


def test_half_precision_is_of_forwards_alone():
    """V U = W (1 + 1e-3): faithfulness is 1e-6 of the mean square of W, less than what bfloat16 rounds away."""
    model = tiny(40, 20)
    config = dataclasses.replace(
        TINY, matrices=("linear1",), tied=(), C=20, compute="bfloat16",
        losses=(Faithfulness(), Faithfulness(relative=True), StochasticReconstruction()),
    )  # fmt: skip
    state = init_state(config, model, sparse(KEY, 8, 40))
    W = np.asarray(model.linear1.weight, np.float64)
    pair = Components(jnp.asarray(W * (1 + 1e-3), jnp.float32), jnp.eye(20))
    state = dataclasses.replace(state, components={"linear1": pair})
    _, metrics = jax.jit(partial(train_step, config))(state, sparse(KEY, 8, 40), model)
    np.testing.assert_allclose(metrics["Faithfulness_0"], 1e-6 * np.mean(W**2), rtol=1e-3)
    np.testing.assert_allclose(metrics["Faithfulness_1"], 1e-6, rtol=1e-3)
    exact = Decomposed(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model), {"linear1": pair})
    rounded = np.asarray(model.linear1.weight.astype(jnp.bfloat16), np.float64)
    np.testing.assert_allclose(exact.delta("linear1"), rounded - W * (1 + 1e-3), atol=1e-6)


def test_the_capacity_sweep(tmp_path):
    """Half and twice C, each seed: the runs of their own, counted, each capacity's in a directory of its own. Every
    importance is above -1, and none above 1."""
    losses = (StochasticReconstruction(),)
    config = dataclasses.replace(TINY, steps=2, C={"*": 2}, losses=losses)
    x, seen, place = sparse(jax.random.key(3), batch=16, p=0.7), [], tmp_path / "sweep"
    options = {"sample": sample, "log": Log(on_record=seen.append, quiet=True)}
    sweep = partial(capacity_sweep, config, tiny(), x, seeds=(3, 5), threshold=0.3, run=place, **options)
    half, found = sweep(factors=(0.5, 2))
    assert {path.name for path in place.iterdir()} == {"C0.5", "C2"}
    assert len(seen) == 2  # the last step of each
    (again,) = sweep(factors=(0.5,))
    np.testing.assert_array_equal(half.total, again.total)
    assert len(seen) == 2  # it was done, and nothing was trained again
    assert (found.factor, found.C) == (2, {"*": 4})
    own = train_decomposition(dataclasses.replace(config, C=4, seed=5), tiny(), **options)
    want = {name: int(on.sum()) for name, on in alive(own.importance(x).lower, 0.3).items()}
    assert {name: counts[1] for name, counts in found.alive.items()} == want
    assert 0 < sum(want.values()) < 8
    np.testing.assert_array_equal(found.total, sum(found.alive.values()))
    runs = jax.tree.map(lambda leaf: leaf[None], own)
    for threshold, count in ((-1.0, 4), (1.0, 0)):
        np.testing.assert_array_equal(list(count_alive(runs, x, threshold).values()), [[count], [count]])
    with pytest.raises(UserError, match="above 0"):
        capacity_sweep(config, tiny(), x, factors=(1, 0), **options)


def test_schedules():
    at = lambda schedule, steps=11: [float(rate(schedule, steps)(t)) for t in (0, 5, 10)]
    np.testing.assert_allclose(at(Schedule(1.0, "cosine")), [1, 0.5, 0], atol=1e-6)
    np.testing.assert_allclose(at(Schedule(1.0, "cosine", final=0.1)), [1, 0.55, 0.1], atol=1e-6)
    np.testing.assert_allclose(at(Schedule(1.0, "quarter_cosine")), [1, 0.5**0.5, 0], atol=1e-6)
    np.testing.assert_allclose(at(Schedule(1.0, "linear", final=0.5)), [1, 0.75, 0.5], atol=1e-6)
    np.testing.assert_allclose(at(Schedule(1.0, "constant", warm_up=0.5), 10)[:2], [0.2, 1], atol=1e-6)
    # the rise, and then the whole of the fall over the eight steps that are left: cos(½π t/7), ½(1 + cos(π t/7))
    t = np.array([0, 1, 2, 5, 9])
    for kind, fall in (
        ("quarter_cosine", lambda s: np.cos(0.5 * np.pi * s / 7)),
        ("cosine", lambda s: 0.5 * (1 + np.cos(np.pi * s / 7))),
        ("linear", lambda s: 1 - s / 7),
    ):
        got = [float(rate(Schedule(2.0, kind, warm_up=0.2), 10)(step)) for step in t]
        np.testing.assert_allclose(got, [1.0, 2.0, *(2 * fall(t[2:] - 2))], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_pentagon_is_found(seed):
    """The recipe of 2026 on TMS 5-2, tied, scalar gates, on an exact pentagon: one component a feature."""
    model = pentagon()
    config = DecompositionConfig(("linear1",), C=20, tied=TIED, steps=10_000, batch=1024, seed=seed)
    trained = train_decomposition(config, model, sample=partial(sparse, batch=1024), log=QUIET)
    importance = trained.importance(one_hot_inputs(5)).lower
    assert {name: identity_error(g, 0.1) for name, g in importance.items()} == {"linear1": 0, "linear2": 0}
    truth = recovery(trained.model.of("linear1"), model.linear1.weight)
    assert float(truth.mmcs) >= 0.999
    assert 0.98 <= float(truth.ml2r) <= 1.03
    assert int(alive(importance)["linear1"].sum()) == 5


@pytest.mark.slow
def test_as_many_dimensions_as_features():
    """What the JAX line of 2026 is tested with: TMS 5-5 in 3,000 steps, no identity-CI error at .2."""
    target = train_tms(jax.random.key(0), TMSConfig(5, 5, training=ToyTraining(2000, 2048)))
    config = preset("tms_5_5")
    trained = train_decomposition(config, target, sample=partial(sparse, batch=config.batch), log=QUIET)
    importance = trained.importance(one_hot_inputs(5)).lower
    assert {name: identity_error(g, 0.2) for name, g in importance.items()} == {"linear1": 0, "linear2": 0}


@pytest.mark.slow
def test_apd_finds_the_pentagon():
    """The paper's settings at 8,000 of 20,000 steps: MMCS .998, norms shrunk to .89 by the simplicity loss (APD 2025:
    .893), a permutation of owners. One seed: about a quarter of all end in another minimum."""
    model = pentagon()
    config = APDConfig(tied=TIED, steps=8000)
    trained = train_apd(config, model, sample=partial(sparse, batch=2048), log=QUIET)
    pair = trained.components["linear1"]
    parts = jnp.einsum("fcm,cmd->cfd", pair.V.reshape(5, 5, 3), pair.U.reshape(5, 3, 2))
    found = recovery(parts, model.linear1.weight)
    assert float(found.mmcs) > 0.995
    assert 0.87 < float(found.ml2r) < 0.91
    assert sorted(np.asarray(found.owner)) == [0, 1, 2, 3, 4]
