"""Laws of every registered loss term, adversary, importance function and sigmoid; variants of a user; older files."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_tms import TIED, sparse, tiny

from jax_interp.core import config_json as configs
from jax_interp.core.errors import UserError
from jax_interp.core.leaves import flatten
from jax_interp.core.pytrees import register_dataclass
from jax_interp.decomposition import Components, DecompositionConfig, decompose, train_decomposition
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.config import METHODS, MethodConfig
from jax_interp.decomposition.importance import IMPORTANCE_FUNCTIONS, Importance, ImportanceConfig, read_inputs
from jax_interp.decomposition.losses import (
    ADVERSARIES,
    LOSSES,
    AdamAdversary,
    Adversary,
    Loss,
    LossInputs,
    LossSettings,
    MixedReconstruction,
    PersistentPGD,
    StochasticReconstruction,
)
from jax_interp.decomposition.losses.adversaries import init_sources
from jax_interp.decomposition.sigmoids import SIGMOIDS, register_sigmoid, sigmoid_pair
from jax_interp.decomposition.storage import load_decomposition, save_decomposition
from jax_interp.models import Config, init
from jax_interp.surgery import replan
from jax_interp.training import QUIET, SaveTo

KEY = jax.random.key(0)
ROWS, C = 8, 4


# One of each kind, as a user would write it in a file of their own. They take part in the laws below.


@LOSSES.register
@dataclasses.dataclass(frozen=True)
class AbsoluteError(Loss):
    """The mean absolute error under stochastic masks."""

    coefficient: float = 0.1

    def __call__(self, inputs, key, sources=None):
        return jnp.mean(jnp.abs(inputs.masked(inputs.stochastic_masks(key)) - inputs.output))


@ADVERSARIES.register
@dataclasses.dataclass(frozen=True)
class SignAdversary(Adversary):
    """Shared sources that climb along the sign of the gradient."""

    step_size: float = 0.05

    def init(self, key, importance, delta):
        return SignSources(init_sources(key, importance, "random", "single_source", delta))

    def climb(self, state, grads, progress):
        move = lambda r, g: jnp.clip(r + self.step_size * jnp.sign(g), 0.0, 1.0)
        return SignSources(jax.tree.map(move, state.raw, grads))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class SignSources:
    raw: dict[str, jax.Array]


@IMPORTANCE_FUNCTIONS.register
@dataclasses.dataclass(frozen=True)
class Affine(ImportanceConfig):
    """Each component's activation, scaled and shifted."""

    shift: float = 0.5

    def init(self, key, model):
        widths = {name: model.of(name).V.shape[:-2] + model.of(name).V.shape[-1:] for name in model.names}
        return AffineFunction(
            {n: jnp.ones(w) for n, w in widths.items()}, {n: jnp.full(w, self.shift) for n, w in widths.items()}
        )


@register_dataclass
@dataclasses.dataclass(frozen=True)
class AffineFunction:
    scale: dict[str, jax.Array]
    shift: dict[str, jax.Array]

    def __call__(self, model, inputs):
        found = {}
        for name, x in inputs.items():
            a = model.of(name).inner(x)
            axes = range(self.scale[name].ndim - 1, a.ndim - 1)
            found[name] = a * jnp.expand_dims(self.scale[name], axes) + jnp.expand_dims(self.shift[name], axes)
        return found


@register_sigmoid("test_sine")
def sine(z):
    return 0.5 + 0.5 * jnp.sin(jnp.pi * (jnp.clip(z, 0, 1) - 0.5))


def test_a_variant_costs_one_file(tmp_path):
    """A loss, an adversary, an importance function and a sigmoid that are defined in this file train through a config,
    go through JSON, and are saved and loaded."""
    losses = (AbsoluteError(), PersistentPGD(adversary=SignAdversary(step_size=0.1)))
    config = DecompositionConfig(
        C=C, tied=TIED, importance=Affine(0.25), sigmoid="test_sine", losses=losses, steps=2, batch=ROWS, warm_up=None
    )
    assert configs.from_json(DecompositionConfig, json.loads(configs.dumps(config))) == config
    sample = partial(sparse, batch=ROWS, p=0.7)
    run = SaveTo(tmp_path / "run", every=1)
    trained = train_decomposition(config, tiny(), sample=sample, run=run, log=QUIET)
    assert {"AbsoluteError", "PersistentPGD"} <= set(json.loads((tmp_path / "run/metrics.jsonl").read_text()))
    save_decomposition(tmp_path / "file", trained, config)
    loaded, again = load_decomposition(tmp_path / "file", tiny())
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, loaded, trained)
    assert not np.array_equal(trained.ci_fn.shift["linear1"], jnp.full(C, 0.25))
    np.testing.assert_array_equal(loaded.importance(sample(KEY)).lower["linear1"].shape, (ROWS, C))


def batch_of(parts: Decomposed, lower: dict[str, jax.Array], x: jax.Array, **settings: Any) -> LossInputs:
    output, _, hidden = read_inputs(parts, x, outputs=True)
    return LossInputs(parts, (x,), output, Importance(lower, lower, lower), hidden, 0.5, LossSettings(**settings))


@pytest.mark.parametrize("sampling", ["continuous", "binomial"])
@pytest.mark.parametrize("kind", list(LOSSES), ids=lambda kind: kind.__name__)
def test_laws_of_losses(kind, sampling):
    """Any loss: the value is finite and not negative, and its gradients are finite and not all zero; it does not depend
    on `remat`, nor on whether it is under `vmap`. At a perfect decomposition it is 0, or, where it asks for few
    components, where none is important."""
    loss = kind()
    assert configs.from_json(Loss, configs.to_json(loss)) == loss
    model, x = tiny(), sparse(KEY, batch=ROWS, p=0.7)
    parts = decompose(model, "*", C=C, key=jax.random.key(1), tied=TIED)
    lower = {n: jax.random.uniform(jax.random.fold_in(KEY, i), (ROWS, C)) for i, n in enumerate(parts.names)}
    sources = None if loss.adversary is None else loss.adversary.init(KEY, lower, True).raw

    def value(pairs, lower, key, remat=False):
        moved = dataclasses.replace(parts, components=pairs)
        return loss(batch_of(moved, lower, x, sampling=sampling, remat=remat), key, sources)

    @jax.jit
    def both(pairs, lower, keys):
        single = [jax.value_and_grad(partial(value, remat=remat), (0, 1))(pairs, lower, keys[0]) for remat in (0, 1)]
        return *single, jax.vmap(lambda key: value(pairs, lower, key))(keys)

    (found, grads), recomputed, many = both(parts.components, lower, jax.random.split(KEY))
    assert found.shape == ()
    assert 0 <= float(found) < np.inf
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(grads))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), recomputed, (found, grads))
    np.testing.assert_allclose(many[0], found, rtol=1e-5)

    exact = {"linear1": Components(jnp.pad(model.linear1.weight, ((0, 0), (0, C - 2))), jnp.eye(C, 2))}
    wants_few = kind.__name__ in ("ImportanceMinimality", "SmoothL0")
    at = {name: jnp.full((ROWS, C), 0.0 if wants_few else 1.0) for name in lower}
    np.testing.assert_allclose(jax.jit(value)(exact, at, KEY), 0, atol=1e-7)


@pytest.mark.parametrize("kind", list(ADVERSARIES), ids=lambda kind: kind.__name__)
def test_laws_of_persistent_adversaries(kind):
    """Any adversary: its sources are in [0, 1] and climb, also by its warm-up; they fit any number of rows."""
    adversary = kind()
    assert configs.from_json(Adversary, configs.to_json(adversary)) == adversary
    lower = {"linear1": jnp.full((ROWS, C), 0.2)}
    state = adversary.init(KEY, lower, True)
    error = lambda key, raw: jnp.mean(adversary.values(raw, lower)["linear1"] ** 2)
    climbed = adversary.climb(state, jax.grad(error, 1)(KEY, state.raw), 1.0)
    warmed = dataclasses.replace(adversary, **{"warm_up_steps": 3} if "warm_up_steps" in vars(adversary) else {})
    for after in (climbed, warmed.warm_up(error, KEY, state, 1.0) if warmed.warm_up_steps else climbed):
        values = adversary.values(after.raw, lower)["linear1"]
        assert values.shape[-1] == C + 1
        assert float(values.min()) >= 0
        assert float(values.max()) <= 1
        assert float(error(KEY, after.raw)) > float(error(KEY, state.raw))
        assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.parametrize("name", list(SIGMOIDS))
def test_laws_of_sigmoids(name):
    """Any pair: from about 0 to about 1 without a fall, by at most a leak outside; gradients are finite, and not zero
    in between."""
    z = jnp.linspace(-3, 4, 141)
    for form in sigmoid_pair(name):
        values = np.asarray(form(z))
        assert (np.diff(values) > -0.05).all()  # swish_hard dips a little below 0
        assert values.min() >= -0.1
        assert values.max() <= 1 + 0.1
        assert values[0] < 0.1
        assert values[-1] > 0.9
        slopes = jax.vmap(jax.grad(form))(z)
        assert np.isfinite(slopes).all()
        assert (slopes[(z > 0.2) & (z < 0.8)] > 0.1).all()
    with pytest.raises(UserError, match=f"sigmoid='{name}x': there are leaky_hard, "):
        sigmoid_pair(f"{name}x")


SMALL = {  # where the defaults are large
    "ScalarMLP": (3,), "VectorMLP": (3,), "SharedMLP": ((3,),), "GlobalMLP": ((5,),),
    "GlobalTransformer": (8, 2, 2, 16),
}  # fmt: skip
DECODER = Config(n_layers=3, d_model=8, n_heads=2, d_mlp=12, vocab_size=17, n_ctx=8, tied_embedding=False)


@pytest.fixture(scope="module")
def decoders():
    """The MLPs of a decoder decomposed, its blocks in a stack and unrolled; and what they read."""
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 17, (2, 5)), jnp.int32)
    stacked = init(DECODER, jax.random.key(0))
    found = []
    for model in (stacked, replan(stacked, "*")):
        parts = decompose(model, "blocks.*.mlp", C=C, key=jax.random.key(1))
        found.append((parts, jax.jit(read_inputs)(parts, tokens)[1]))
    return found


@pytest.mark.parametrize("kind", list(IMPORTANCE_FUNCTIONS), ids=lambda kind: kind.__name__)
def test_laws_of_importance_functions(kind, decoders):
    """Any importance function, of a decoder and of a toy without positions: one finite value for each component and
    row; the same for stacked and unrolled blocks; examples do not see one another; every parameter has a gradient; many
    functions under one `vmap` are the functions one by one."""
    config = kind(*SMALL.get(kind.__name__, ()))
    assert configs.from_json(ImportanceConfig, configs.to_json(config)) == config
    x = sparse(KEY, batch=2, p=0.7)
    toy = decompose(tiny(), "*", C=C, key=jax.random.key(1))
    for parts, inputs in (*decoders, (toy, read_inputs(toy, x)[1])):
        ci_fn = config.init(jax.random.key(2), parts)
        total = lambda f, parts=parts, inputs=inputs: sum(jnp.sum(g * g) for g in f(parts, inputs).values())
        swapped = {name: jnp.flip(v, 1 if "*" in name else 0) for name, v in inputs.items()}

        @jax.jit
        def both(ci_fn, parts=parts, inputs=inputs, swapped=swapped, total=total):
            return ci_fn(parts, inputs), ci_fn(parts, swapped), jax.grad(total)(ci_fn)

        values, of_swapped, grads = both(ci_fn)
        assert set(values) == set(parts.names)
        for name, g in values.items():
            assert g.shape == (*inputs[name].shape[:-1], C)
            assert np.isfinite(g).all()
            back = jnp.flip(of_swapped[name], 1 if "*" in name else 0)
            np.testing.assert_allclose(back, g, rtol=1e-4, atol=1e-5)
        for address, grad in flatten(grads).items():  # of a toy attention has one position to choose from
            assert np.any(grad != 0) or parts is toy, address
        if parts is decoders[0][0]:
            stacked = values
        elif parts is decoders[1][0]:
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), dict(values), dict(stacked))
    keys = jax.random.split(KEY, 2)
    many = jax.vmap(lambda key: config.init(key, toy)(toy, inputs))(keys)
    one = config.init(keys[1], toy)(toy, inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-4, atol=1e-5), dict(many), dict(one))


def test_methods_register():
    assert {"DecompositionConfig", "APDConfig"} <= set(METHODS.names())
    for kind in METHODS:
        assert configs.from_json(MethodConfig, configs.to_json(kind())) == kind()


OLDER = {
    "type": "DecompositionConfig",
    "matrices": ["linear1"],
    "importance": {"type": "ScalarGates", "hidden": 4},
    "losses": [
        {"type": "StochasticReconstruction", "coefficient": 1.0, "samples": 1},
        {"type": "Merged", "coefficient": 2.0, "adversary": {"type": "Adversary", "scope": "single_source"}},
    ],
}


@pytest.mark.parametrize(
    ("older", "now"),
    [
        ({"type": "ScalarGates", "hidden": 3}, ("ScalarMLP", (3,))),
        ({"type": "VectorGates", "hidden": 3}, ("VectorMLP", (3,))),
        ({"type": "SharedGates", "hidden": [3]}, ("SharedMLP", ((3,),))),
        ({"type": "GlobalGates", "hidden": [3, 2]}, ("GlobalMLP", ((3, 2),))),
        ({"type": "TransformerGates", "d_model": 8, "heads": 2}, ("GlobalTransformer", (8, 4, 2))),
    ],
)
def test_files_of_an_earlier_version(older, now):
    """Their class names are read as those of today, and mean the same."""
    name, arguments = now
    config = configs.from_json(DecompositionConfig, OLDER | {"importance": older})
    assert config.importance == IMPORTANCE_FUNCTIONS[name](*arguments)
    mixed = MixedReconstruction(2.0, adversary=AdamAdversary("single_source"))
    assert config.losses == (StochasticReconstruction(), mixed)
    assert mixed.metric == "Merged"  # what the logs of its runs call it
    assert configs.differences(configs.upgrade(OLDER), configs.to_json(config))[0].startswith("C: ")
