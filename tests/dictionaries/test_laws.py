"""What holds for every registered activation and every registered loss term, those of this file included.

`Gain` and `Square` are defined here and nowhere else: a new activation, and a new loss term, are one file each.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float
from toy import batch_at, toy

import jax_interp.dictionaries.training.joint  # noqa: F401  (registers a term)
from jax_interp.core import config_json as configs
from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries import evaluate, load_dictionary, save_dictionary, train_dictionary
from jax_interp.dictionaries.activations import (
    ACTIVATIONS,
    Activation,
    ElementwiseActivation,
    SelectiveActivation,
)
from jax_interp.dictionaries.activations.pre import dense_code_from_pre, entry_code_from_pre
from jax_interp.dictionaries.forms import Dictionary
from jax_interp.dictionaries.losses import TERMS, Forward, Reconstruction, Term
from jax_interp.dictionaries.losses.term import coefficient_only, snake
from jax_interp.dictionaries.training.config import DictionaryConfig
from jax_interp.dictionaries.training.normalisation import fold_centre, fold_decoder_norm, fold_scale
from jax_interp.training import QUIET

D, M, ROWS, K = 6, 32, 20, 4


@ACTIVATIONS.register
@register_dataclass
@dataclasses.dataclass(frozen=True)
class Gain(ElementwiseActivation):
    """f = gain · max(pre, 0), the gain of each feature learnt."""

    start: float = dataclasses.field(default=1.5, metadata={"static": True})
    gain: Float[Array, " feature"] | None = None

    per_feature = ("gain",)

    def init(self, n_features, dtype):
        return dataclasses.replace(self, gain=jnp.full((n_features,), self.start, dtype))

    def decide(self, dictionary, code):
        return code.with_values(jax.nn.relu(code.pre) * code.gather(self.gain))


@TERMS.register
@coefficient_only
@dataclasses.dataclass(frozen=True)
class Square(Term):
    """c · mean Σ f²."""

    entries_suffice = True
    coefficient: float = 0.01

    def __call__(self, forward):
        return self.coefficient * jnp.sum(forward.code.values**2) / forward.rows


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def choice_of(kind: type[Activation], **fields) -> Activation:
    return kind(k=K, **fields) if issubclass(kind, SelectiveActivation) else kind(**fields)


def dictionary_of(choice: Activation, seed: int = 0, dtype=jnp.float64) -> Dictionary:
    """With parameters of all signs, and decoder rows of norm 1 where the decoder encodes."""
    keys = iter(jax.random.split(jax.random.key(seed), 5))
    normal = lambda *shape: jax.random.normal(next(keys), shape, dtype)
    W_dec = normal(M, D) if choice.uses_encoder else jnp.linalg.qr(normal(M, M))[0][:, :D]
    if not choice.uses_encoder:
        W_dec = W_dec / jnp.linalg.norm(W_dec, axis=1, keepdims=True)
    activation = choice.init(M, dtype)
    noise = normal(M)
    activation = jax.tree.map(lambda a: a + 0.2 * noise if a.shape == (M,) else a, activation)
    return Dictionary(normal(D, M), normal(M), W_dec, normal(D), activation)


def rows_of(seed: int = 1, dtype=jnp.float64) -> Array:
    return 2 * jax.random.normal(jax.random.key(seed), (ROWS, D), dtype)


def near(a, b, **tolerance):
    tolerance = {"rtol": 1e-9, "atol": 1e-11} | tolerance
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), a, b)


CHOICES = {kind.__name__: choice_of(kind) for kind in ACTIVATIONS}
FAST = ("Gain", "TopK", "BatchTopK", "JumpReLU")
CHOICES |= {
    f"{name}, weighted": choice_of(ACTIVATIONS[name], weighted=True) for name in ("TopK", "AbsTopK", "BatchTopK")
}

SOME_FAST = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in CHOICES]


@pytest.mark.parametrize("name", CHOICES)
def test_the_forms_of_a_code_agree(name, x64):
    dictionary, x = dictionary_of(CHOICES[name]), rows_of()
    w, on = jax.random.normal(jax.random.key(2), (M,), jnp.float64), jnp.arange(M) % 3 != 0
    for code in (dictionary.training_code(x), dictionary.code(x)):
        z = code.dense(M)
        assert 0 < (z != 0).mean() < 1
        assert (z < 0).any() == dictionary.activation.signed
        near(code.decode(dictionary.W_dec), z @ dictionary.W_dec)
        near(code.weighted_sum(w), (z * w[None]).sum())
        near(code.firing_counts(M), (z != 0).sum(0))
        masked = jnp.where(on[None], z, jnp.zeros_like(z))
        near(code.mask_features(on).dense(M), masked)
        near(code.mask_features(on).decode(dictionary.W_dec), masked @ dictionary.W_dec)
    near(dictionary.encode(x.reshape(4, 5, D)).reshape(ROWS, M), z)
    near(dictionary(x), dictionary.output(x, z))
    if CHOICES[name].k is not None:
        counts = (dictionary.training_code(x).dense(M) != 0).sum()
        assert counts <= K * ROWS


@pytest.mark.parametrize("name", CHOICES)
def test_the_gradient_is_the_derivative(name, x64):
    """By differences in float64, for the dictionary and for x, through the code that is trained on. Gradients of
    thresholds are estimates, not derivatives, and are left out."""
    dictionary, x = dictionary_of(CHOICES[name]), rows_of()
    g = jax.random.normal(jax.random.key(3), (ROWS, D), jnp.float64)

    @jax.jit
    def loss(dictionary, x):
        return jnp.vdot(g, dictionary.reconstruct(dictionary.training_code(x), x))

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))(dictionary, x)
    direction = jax.tree.map(lambda a: jax.random.normal(jax.random.key(a.size), a.shape, a.dtype), (dictionary, x))
    if CHOICES[name].trains_thresholds:
        still = jax.tree.map(jnp.zeros_like, direction[0].activation)
        direction = dataclasses.replace(direction[0], activation=still), direction[1]
    moved = lambda step: jax.tree.map(lambda a, b: a + step * b, (dictionary, x), direction)
    difference = (loss(*moved(1e-6)) - loss(*moved(-1e-6))) / 2e-6
    along = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction)))
    np.testing.assert_allclose(along, difference, rtol=1e-6)


@pytest.mark.parametrize("name", CHOICES)
def test_folding_keeps_the_function(name, x64):
    dictionary, x, s = dictionary_of(CHOICES[name]), rows_of(), jnp.asarray(3.0)
    exported = dictionary.activation.for_inference(dictionary)
    near(exported.encode(x), dictionary.encode(x))
    every = jnp.full((D,), s)
    folded = fold_scale(dictionary, every, every, s)
    near(folded(x / s) * s, dictionary(x))
    if not dictionary.activation.weighted:  # those get decoder rows of norm 1
        near(folded.encode(x / s) * s, dictionary.encode(x))
    near(fold_centre(dictionary)(x), dictionary(x))
    if dictionary.activation.elementwise or dictionary.activation.weighted:
        near(fold_decoder_norm(dictionary)(x), dictionary(x))


@pytest.mark.parametrize("name", SOME_FAST)
def test_many_dictionaries_are_one_vmap(name, x64):
    each, x = [dictionary_of(CHOICES[name], seed) for seed in range(2)], rows_of()
    outputs = lambda one: (one.encode(x), one.reconstruct(one.training_code(x), x))
    together = jax.jit(jax.vmap(outputs))(jax.tree.map(lambda *a: jnp.stack(a), *each))
    for i, one in enumerate(each):
        near(jax.tree.map(lambda a, i=i: a[i], together), outputs(one))


@pytest.mark.parametrize("name", CHOICES)
def test_what_is_saved_comes_back(name, tmp_path):
    dictionary = dictionary_of(CHOICES[name], dtype=jnp.float32)
    save_dictionary(tmp_path, dictionary, address="embed", model="toy")
    found = load_dictionary(tmp_path).dictionary
    assert jax.tree.structure(found) == jax.tree.structure(dictionary)
    jax.tree.map(np.testing.assert_array_equal, found, dictionary)
    config = DictionaryConfig("embed", n_features=M, activation=CHOICES[name], loss=(Reconstruction(),))
    assert configs.from_json(DictionaryConfig, configs.to_json(config)) == config


def fitting(term: Term) -> list[Activation]:
    """Activations that a term can be trained with: the first elementwise one and the first that chooses."""
    found = {}
    for kind in ACTIVATIONS:
        choice = choice_of(kind)
        try:
            term.check(choice)
        except UserError:
            continue
        found.setdefault(choice.elementwise, choice)
    return list(found.values())


def forward_of(dictionary, x, code=None, y=None, dead=None):
    code = dictionary.training_code(x) if code is None else code
    y_hat, number = dictionary.reconstruct(code, x), lambda a: jnp.asarray(a, x.dtype)
    dead = jnp.arange(M) % 5 == 0 if dead is None else dead
    y = x if y is None else y
    return Forward(dictionary, x, y, code, y_hat, dead, number(5.0), number(0.7), jax.random.key(0))


TERMS_BY_NAME = {kind.__name__: kind() for kind in TERMS}


@pytest.mark.parametrize("name", TERMS_BY_NAME)
def test_a_term_is_linear_in_its_coefficient_and_goes_through_jit_and_vmap(name, x64):
    term, x = TERMS_BY_NAME[name], rows_of()
    choices = fitting(term)
    assert choices, f"no activation goes with {name}"
    forward = forward_of(dictionary_of(choices[0]), x)
    value = term(forward)
    assert value.shape == ()
    near(jax.jit(lambda term, forward: term(forward))(term, forward), value)
    coefficients = jnp.asarray([0.0, 1.0, 2.5]) * term.coefficient
    values = jax.vmap(lambda term: term(forward))(dataclasses.replace(term, coefficient=coefficients))
    near(values, jnp.asarray([0.0, 1.0, 2.5]) * value)
    assert snake(name).islower()


@pytest.mark.parametrize("name", TERMS_BY_NAME)
def test_the_gradient_of_a_term_is_finite_everywhere(name, x64):
    """Where nothing fires, where the reconstruction is perfect, where every latent is dead, with a decoder of 0."""
    term, x = TERMS_BY_NAME[name], rows_of()
    for choice in fitting(term):
        dictionary = dictionary_of(choice)
        silent = dataclasses.replace(dictionary, b_enc=dictionary.b_enc - 1e3)
        empty = dataclasses.replace(dictionary, W_dec=jnp.zeros_like(dictionary.W_dec))
        perfect = dictionary.reconstruct(dictionary.training_code(x), x)

        @jax.jit
        def gradient(dictionary, y, dead):
            return jax.value_and_grad(lambda one: term(forward_of(one, x, y=y, dead=dead)))(dictionary)

        for changed, y, dead in (
            (dictionary, x, jnp.arange(M) < 3),
            (dictionary, perfect, jnp.zeros(M, bool)),
            (silent, x, jnp.ones(M, bool)),
            (empty, x, jnp.zeros(M, bool)),
        ):
            for leaf in jax.tree.leaves(gradient(changed, y, dead)):
                assert np.isfinite(leaf).all(), (name, choice)


def entry_cases():
    """Each term that says `entries_suffice` with one activation, and each elementwise activation with one term."""
    cases = {
        name: (term, next(choice for choice in fitting(term) if choice.elementwise))
        for name, term in TERMS_BY_NAME.items()
        if term.entries_suffice
    }
    of_activations = {n: (Reconstruction(), c) for n, c in CHOICES.items() if c.elementwise}
    return cases | of_activations


@pytest.mark.parametrize("name", entry_cases())
def test_entries_give_what_all_latents_give(name, x64):
    """Value and gradient by lists, by products and by plain autodiff."""
    (term, choice), x = entry_cases()[name], rows_of()
    dictionary = dictionary_of(choice)
    dictionary = dataclasses.replace(dictionary, b_enc=dictionary.b_enc - 2)
    pre = jax.lax.stop_gradient(dictionary.linear(x) + dictionary.b_enc[None, :])
    takes_part = dictionary.activation.takes_part(dictionary, pre)
    n = int(takes_part.sum()) + 3
    assert 3 < n < 0.8 * pre.size

    @jax.jit
    def all_ways(dictionary):
        codes = (
            lambda one: one.code(x),
            lambda one: one.activation.decide(one, dense_code_from_pre(pre, one, x)),
            lambda one: one.activation.decide(one, entry_code_from_pre(pre, takes_part, n, one, x)),
        )
        of = lambda code: jax.value_and_grad(lambda one: term(forward_of(one, x, code(one))))(dictionary)
        return [of(code) for code in codes]

    plain, by_products, by_lists = all_ways(dictionary)
    near(by_products, plain)
    near(by_lists, plain)


@pytest.mark.parametrize("name", SOME_FAST)
def test_an_activation_trains_is_saved_and_is_evaluated(name, tmp_path):
    """From a config alone: two steps, to disk and back, its figures."""
    loss = (Reconstruction(), Square())
    config = DictionaryConfig(
        "blocks.1.resid_post", n_features=32, activation=CHOICES[name], loss=loss, steps=2, buffer=256
    )
    trained = train_dictionary(config, toy(), batch_at, log=QUIET)
    save_dictionary(tmp_path, trained, address=config.address, model="toy", config=config)
    saved = load_dictionary(tmp_path)
    assert configs.from_json(DictionaryConfig, saved.config) == config
    result = evaluate(toy(), saved.address, saved.dictionary, [batch_at(100)])
    assert np.isfinite(result.reconstruction.fvu)
    assert np.isfinite(result.cross_entropy.spliced)
