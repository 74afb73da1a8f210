"""Features as steering: against `Splice` with `Clamp`, against products in NumPy, and what must keep its bits."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries import AbsTopK, BatchTopK, Gated, GroupMax, JumpReLU, ReLU, TopK, init_sae, init_transcoder
from jax_interp.dictionaries.forms import Dictionary, Normalised
from jax_interp.dictionaries.training.rescaling import rescaled
from jax_interp.models.generation.generate import generate, pad_left
from jax_interp.steering.applying import from_prompt_end
from jax_interp.steering.features import decoder_vector, highest_activations, steer_features
from jax_interp.surgery import Add, Clamp, Site, Splice, at, call, edit, read, replan
from jax_interp.surgery.taps import static
from tests.saved_things import temporal
from tests.small_models import GPT2_LIKE, peaky

ADDRESS, D, M = "blocks.1.resid_post", GPT2_LIKE.d_model, 40
ACTIVATIONS = {
    "relu": ReLU(), "topk": TopK(5), "abs_topk": AbsTopK(5), "batch_topk": BatchTopK(5), "jumprelu": JumpReLU(),
    "gated": Gated(), "group_max": GroupMax(5),
}  # fmt: skip


def sae(activation=ReLU(), d: int = D, seed: int = 0) -> Dictionary:  # noqa: B008
    key = jax.random.key(seed)
    made = init_sae(key, d, M, activation.init(M, jnp.float32), 0.1 * jax.random.normal(key, (d,)))
    return dataclasses.replace(made, b_enc=0.1 * jax.random.normal(key, (M,)))


@pytest.fixture(scope="module")
def model():
    return peaky(GPT2_LIKE)


TOKENS = np.random.default_rng(0).integers(0, GPT2_LIKE.vocab_size, (3, 7)).astype(np.int32)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Named:
    """A model of one named value, its input."""

    axes: str = static(default="batch pos d_model")

    def __call__(self, x, *, taps=()):
        site = Site.open(taps)
        return site.close(site("value", x, self.axes))


X = 2 * np.random.default_rng(1).standard_normal((3, 7, D)).astype(np.float32)


FAST = ("relu", "batch_topk")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in ACTIVATIONS])
def test_a_clamp_is_a_splice_with_its_error_and_a_clamped_latent(name):
    plain = sae(ACTIVATIONS[name])
    for dictionary in (plain, rescaled(Normalised(plain, "layer_norm"), 1.5) if name == "relu" else plain):
        spliced = edit(Named(), at("value", Splice(dictionary, error=True)))
        want = edit(spliced, at("value.latents", Clamp(3.0, 3.0), feature=7))(X)
        got = edit(Named(), *steer_features(dictionary, "value", 7, 1.5, "clamp").edits(2.0))(X)
        np.testing.assert_allclose(got, want, atol=2e-5)
        assert np.abs(np.asarray(got) - X).max() > 0.1


@pytest.mark.slow
def test_a_temporal_dictionary_writes_in_the_units_of_its_input():
    dictionary, x = temporal(0, D, M), jnp.asarray(X)
    spliced = edit(Named(), at("value", Splice(dictionary, error=True)))
    want = edit(spliced, at("value.latents", Clamp(3.0, 3.0), feature=7))(x)
    got = edit(Named(), *steer_features(dictionary, "value", 7, 3.0, "clamp").edits())(x)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_added_features_are_rows_of_the_decoder_times_activations(model):
    dictionary, clean = sae(), _value(model)
    steering = steer_features(dictionary, ADDRESS, [3, 11], np.array([2.0, -1.0], np.float32))
    row = np.asarray(dictionary.W_dec)
    np.testing.assert_allclose(_value(edit(model, *steering.edits(1.5))), clean + 3 * row[3] - 1.5 * row[11], atol=1e-5)
    vector = decoder_vector(dictionary, ADDRESS, [3, 11], np.array([2.0, -1.0], np.float32))
    np.testing.assert_allclose(vector.vectors[ADDRESS], 2 * row[3] - row[11], atol=1e-6)
    each_row = np.array([[0.0], [1.0], [-2.0]], np.float32)
    by_row = _value(edit(model, *steering.edits(each_row)))
    np.testing.assert_allclose(by_row, clean + each_row[..., None] * (2 * row[3] - row[11]), atol=1e-5)
    assert by_row[0].tobytes() == clean[0].tobytes()


def test_what_a_normalised_dictionary_writes_is_in_the_units_of_the_value(model):
    inner, clean = sae(), _value(model)
    steering = steer_features(Normalised(inner, "layer_norm"), ADDRESS, 4, 2.0)
    want = clean + 2 * np.asarray(inner.W_dec)[4] * clean.std(-1, ddof=1, keepdims=True)
    np.testing.assert_allclose(_value(edit(model, *steering.edits())), want, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="depends on the input"):
        decoder_vector(Normalised(inner, "layer_norm"), ADDRESS, 4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_latent_that_does_not_change_leaves_all_bits(dtype):
    x, dictionary = jnp.asarray(X, dtype).at[0, 0, 0].set(-0.0), sae(TopK(2))
    latents = np.asarray(dictionary.encode(x))
    off = int(np.flatnonzero((latents == 0).all((0, 1)))[0])
    on = int(np.argmax((latents > 0).mean((0, 1))))
    for steering, strength in (
        (steer_features(dictionary, "value", [1, off]), 0.0),
        (steer_features(dictionary, "value", off, 5.0, "clamp"), 0.0),
        (steer_features(dictionary, "value", [1, off], 1.0, "at_least"), 0.0),
    ):
        assert np.asarray(edit(Named(), *steering.edits(strength))(x)).tobytes() == np.asarray(x).tobytes()
    ablated = np.asarray(edit(Named(), *steer_features(dictionary, "value", on, 1.0, "clamp").edits(0.0))(x))
    changed = (ablated != np.asarray(x)).any(-1)
    assert (changed == (latents[..., on] != 0)).all()
    assert 0 < changed.sum() < changed.size


def test_at_least_raises_the_latents_that_are_lower():
    dictionary = sae()
    f = np.asarray(dictionary.encode(jnp.asarray(X)))[..., 6]
    middle = float(np.median(f[f > 0]))
    got = edit(Named(), *steer_features(dictionary, "value", 6, middle, "at_least").edits())(X)
    want = X + np.maximum(middle - f, 0)[..., None] * np.asarray(dictionary.W_dec)[6]
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert 0 < (f > middle).sum() < f.size


def test_the_gradient_to_the_strength_is_there_at_strength_0():
    dictionary = sae()
    total = lambda s: jnp.sum(edit(Named(), *steer_features(dictionary, "value", 2, 3.0).edits(s))(X)[0, 0] ** 2)
    want = 2 * X[0, 0] @ (3 * np.asarray(dictionary.W_dec)[2])
    np.testing.assert_allclose(jax.grad(total)(jnp.float32(0)), want, rtol=1e-4)


@pytest.mark.parametrize(
    ("layers", "writes"),
    [
        pytest.param([], "blocks.1.mlp_out", id="stacked, one layer"),
        pytest.param([], "blocks.2.mlp_out", id="stacked, two layers", marks=pytest.mark.slow),
        pytest.param([0, 1, 2], "blocks.1.mlp_out", id="unrolled, one layer", marks=pytest.mark.slow),
        pytest.param([0, 1, 2], "blocks.2.mlp_out", id="unrolled, two layers", marks=pytest.mark.slow),
    ],
)
def test_a_transcoder_is_steered_where_it_writes(model, layers, writes):
    key, reads = jax.random.key(1), "blocks.1.ln2.normalized"
    made = init_transcoder(key, D, D, M, ReLU(), jnp.zeros(D), jnp.zeros(D), skip=True)
    dictionary = dataclasses.replace(made, W_dec=jax.random.normal(key, (M, D)))
    model = replan(model, layers)
    _, clean = call(read(model, reads, writes), TOKENS)
    f = np.asarray(dictionary.encode(clean[reads]))[..., [4, 9]]
    each, row = np.array([2.0, 0.5], np.float32), np.asarray(dictionary.W_dec)[[4, 9]]
    for how, change in (("add", np.broadcast_to(3 * each, f.shape)), ("clamp", 3 * each - f)):
        steering = steer_features(dictionary, reads, [4, 9], each, how, writes=writes)
        got = call(read(edit(model, *steering.edits(3.0)), writes), TOKENS)[1][writes]
        np.testing.assert_allclose(got, np.asarray(clean[writes]) + change @ row, atol=2e-4)
    with pytest.raises(UserError, match="give writes="):
        steer_features(dictionary, reads, 4)


def test_a_crosscoder_writes_each_of_its_values(model):
    places = ["blocks.0.resid_post", "blocks.2.resid_post"]
    made = init_sae(jax.random.key(2), 2 * D, M, ReLU(), sites=2)
    steering, row = steer_features(made, places[0], 5, 2.0, writes=places), 2 * np.asarray(made.W_dec)[5]
    got = call(read(edit(model, *steering.edits()), places), TOKENS)[1]
    clean = call(read(model, places[0]), TOKENS)[1][places[0]]
    np.testing.assert_allclose(got[places[0]], np.asarray(clean) + row[:D], atol=1e-5)
    only_first = edit(model, at(places[0], Add(row[:D])))
    before = call(read(only_first, places[1]), TOKENS)[1][places[1]]
    np.testing.assert_allclose(got[places[1]], np.asarray(before) + row[D:], atol=1e-4)
    for wrong in (lambda: steer_features(made, places[0], 5), lambda: steering.using("clamp")):
        with pytest.raises(UserError, match=r"addresses to write|after the first"):
            wrong()


def test_a_dictionary_of_all_heads_steers_z_with_a_strength_for_each_row():
    dictionary, by_head = sae(), jnp.asarray(X.reshape(3, 7, 4, D // 4))
    strengths = np.array([[1.0], [2.0], [0.0]], np.float32)
    for how in ("add", "clamp"):
        made = steer_features(dictionary, "value", 8, 1.5, how)
        got = edit(Named("batch pos head d_head"), *made.edits(strengths))(by_head)
        f = np.asarray(dictionary.encode(jnp.asarray(X)))[..., 8] if how == "clamp" else np.zeros((3, 7))
        want = X + (1.5 * strengths - f)[..., None] * np.asarray(dictionary.W_dec)[8]
        np.testing.assert_allclose(got, want.reshape(by_head.shape), atol=1e-5)


def test_generation_steers_each_new_token_and_padding_changes_nothing(model):
    steering = steer_features(sae(TopK(5)), ADDRESS, 3, 4.0, "clamp")
    prompts = [[1, 2, 3, 4, 5], [7, 8]]
    tokens, mask = pad_left(prompts)
    together = generate(edit(model, *steering.edits(np.array([[1.0], [-1.0]], np.float32))), tokens, 4, mask=mask)
    for row, (prompt, strength) in enumerate(zip(prompts, (1.0, -1.0), strict=True)):
        whole = np.asarray([[*prompt, *np.asarray(together)[row]]], np.int32)
        logits = np.asarray(call(edit(model, *steering.edits(strength)), whole))  # without a cache
        assert logits[0, len(prompt) - 1 : -1].argmax(-1).tolist() == whole[0, len(prompt) :].tolist()


def test_a_placement_steers_new_tokens_only(model):
    steering = steer_features(sae(), ADDRESS, 3, 4.0, "clamp")
    placed = edit(model, *steering.using("clamp", tokens=from_prompt_end(-1, np.array([4, 4, 4]))).edits())
    np.testing.assert_array_equal(_value(placed)[:, :3], _value(model)[:, :3])
    np.testing.assert_allclose(_value(placed)[:, 3:], _value(edit(model, *steering.edits()))[:, 3:], atol=1e-5)


def test_the_highest_activations_are_those_of_kept_tokens(model):
    dictionary, keep = sae(TopK(5)), np.arange(7)[None] >= np.array([[1], [2], [7]])
    found = highest_activations(model, ADDRESS, dictionary, [(TOKENS[:2], keep[:2]), (TOKENS[2:], keep[2:])])
    latents = np.asarray(dictionary.encode(jnp.asarray(_value(model))))
    np.testing.assert_allclose(found, latents[keep].max(0), rtol=1e-5)
    with pytest.raises(UserError, match="no kept token"):
        highest_activations(model, ADDRESS, dictionary, [(TOKENS, np.zeros_like(keep))])


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _NoDirections:
    """A dictionary whose features have no fixed direction."""

    scale: Float[Array, ""]

    def encode(self, x):
        return x * self.scale

    def decode(self, z):
        return jnp.tanh(z)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Scaled:
    """A foreign dictionary whose `W_dec` is not what its latents write."""

    W_enc: Float[Array, "d feature"]
    W_dec: Float[Array, "feature d"]

    def encode(self, x):
        return jax.nn.relu(x @ self.W_enc)

    def decode(self, z):
        return 2.0 * (z @ self.W_dec)


def test_what_cannot_be_steered_is_refused():
    dictionary = sae()
    for wrong, message in (
        (lambda: steer_features(_NoDirections(jnp.float32(1)), ADDRESS, 0), "no fixed direction"),
        (lambda: steer_features(_Scaled(dictionary.W_enc, dictionary.W_dec), ADDRESS, 0), "does not say what a latent"),
        (lambda: steer_features(dictionary, ADDRESS, M), "latents 0 to 39"),
        (lambda: steer_features(dictionary, ADDRESS, [1, 1]), "twice"),
        (lambda: steer_features(dictionary, ADDRESS, []), "one or several"),
        (lambda: steer_features(dictionary, ADDRESS, 1, np.nan), "finite"),
        (lambda: steer_features(dictionary, ADDRESS, [1, 2], np.ones(3, np.float32)), "one for each"),
        (lambda: steer_features(dictionary, "blocks.*.resid_post", 1), "several layers"),
        (lambda: steer_features(dictionary, ADDRESS, 1, how="multiply"), "add, clamp, at_least"),
    ):
        with pytest.raises(UserError, match=message):
            wrong()
    with pytest.raises(UserError, match="writes values of width"):
        edit(Named(), *steer_features(dictionary, "value", 1).edits())(X[..., :5])


def _value(model) -> np.ndarray:
    return np.asarray(call(read(model, ADDRESS), TOKENS)[1][ADDRESS])
