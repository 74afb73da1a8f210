"""Dictionaries whose output depends on their input: normalised inputs, and temporal codes. Against float64 NumPy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saved_things import temporal
from toy import batch_at, toy

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dashboards import top_activations
from jax_interp.dictionaries.activations import AbsTopK, Activation, ReLU, TopK
from jax_interp.dictionaries.evaluation.evaluate import evaluate
from jax_interp.dictionaries.evaluation.sparsity import nth_projection
from jax_interp.dictionaries.forms import Dictionary, Normalised, init_sae, init_transcoder
from jax_interp.dictionaries.forms.cross_layer import from_transcoders
from jax_interp.dictionaries.training.rescaling import global_scale, latent_scales
from jax_interp.surgery import Clamp, Positions, Site, Splice, Zero, at, call, edit, read

D, M = 16, 24
ADDRESS = "blocks.1.resid_post"


def sae(activation: Activation | None = None, seed: int = 0, d: int = D) -> Dictionary:
    activation = ReLU() if activation is None else activation
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return Dictionary(normal(d, M), normal(M), normal(M, d), normal(d), activation)


def by_hand(one: Normalised, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(latents, output) by the equations."""
    W_enc, b_enc, W_dec, b_dec = (
        np.asarray(getattr(one.dictionary, n), np.float64) for n in ("W_enc", "b_enc", "W_dec", "b_dec")
    )
    d = x.shape[-1]
    if one.norm == "layer_norm":
        shift = x.mean(-1, keepdims=True)
        scale = np.sqrt(((x - shift) ** 2).sum(-1, keepdims=True) / (d - 1))
        inner = (x - shift) / (scale + 1e-5)
    else:
        shift, scale = 0.0, np.linalg.norm(x, axis=-1, keepdims=True) / np.sqrt(d)
        inner = np.divide(x, scale, out=np.zeros_like(x), where=scale > 0)
    pre = (inner - b_dec) @ W_enc + b_enc
    if type(one.dictionary.activation) is AbsTopK:
        size = np.abs(pre)
        z = np.where(size >= np.sort(size)[..., -3][..., None], pre, 0)
    else:
        z = np.maximum(pre, 0)
    return z, (z @ W_dec + b_dec) * scale + shift


@pytest.mark.parametrize("norm", ["layer_norm", "fixed_norm"])
@pytest.mark.parametrize("activation", [ReLU(), AbsTopK(3)])
def test_a_normalised_dictionary_is_its_equations(norm, activation):
    one = Normalised(sae(activation), norm)
    x = np.random.default_rng(1).normal(size=(2, 5, D)) * np.linspace(0.01, 50, 5)[:, None] + 3.0
    x[0, 0] = 0  # its norm is 0
    z, y = by_hand(one, x)
    given = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(one.encode(given), z, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(one(given), y, rtol=2e-4, atol=2e-3)
    np.testing.assert_allclose(one.output(given, jnp.asarray(z, jnp.float32)), y, rtol=2e-4, atol=2e-3)
    heads = given.reshape(2, 5, 4, D // 4)
    np.testing.assert_array_equal(one(heads), one(given).reshape(heads.shape))
    twice = jax.tree.map(lambda a: jnp.stack([a, -a]), one)
    np.testing.assert_allclose(jax.vmap(lambda one: one(given))(twice)[0], y, rtol=2e-4, atol=2e-3)
    half = one(given.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half[1].astype(jnp.float32), y[1], rtol=0.1, atol=2)


def test_a_normalised_dictionary_is_spliced_and_evaluated_with_its_input():
    model, (tokens, keep) = toy(), batch_at(0)
    one = Normalised(sae(TopK(3)), "layer_norm")
    spliced = edit(model, at(ADDRESS, Splice(one)))
    _, clean = call(read(model, ADDRESS, "blocks.2.resid_pre"), tokens)
    x = np.asarray(clean[ADDRESS], np.float64)
    _, acts = call(read(spliced, "blocks.2.resid_pre"), tokens)
    y = np.asarray(one(clean[ADDRESS]))
    np.testing.assert_allclose(acts["blocks.2.resid_pre"], y, rtol=1e-5, atol=1e-5)
    result = evaluate(model, ADDRESS, one, [(tokens, keep)])
    kept, kept_y = x[np.asarray(keep)], y[np.asarray(keep)]
    fvu = ((kept - kept_y) ** 2).sum() / ((kept - kept.mean(0)) ** 2).sum()
    assert result.reconstruction.fvu == pytest.approx(fvu, rel=1e-4)
    assert result.reconstruction.l0 == pytest.approx(3, abs=0.01)
    top = top_activations(model, ADDRESS, one, [(tokens, keep)], features=[5], n=1)
    z = np.where(np.asarray(keep), np.asarray(one.encode(clean[ADDRESS]))[..., 5], 0)
    assert top.peak[0, 0] == pytest.approx(z.max(), rel=1e-5)
    # with the error the model is unchanged until a latent is edited
    exact = edit(model, at(ADDRESS, Splice(one, error=True)))
    np.testing.assert_array_equal(exact(tokens), model(tokens))
    changed = edit(exact, at(f"{ADDRESS}.latents", Clamp(2.0, 2.0), feature=5))
    _, after = call(read(changed, "blocks.2.resid_pre"), tokens)
    z = one.encode(clean[ADDRESS])
    want = x + np.asarray(one.output(clean[ADDRESS], z.at[..., 5].set(2.0)) - one.output(clean[ADDRESS], z))
    np.testing.assert_allclose(after["blocks.2.resid_pre"], want, rtol=1e-4, atol=1e-4)


def test_a_transcoder_of_a_normalised_input_writes_raw_values():
    zeros = jnp.zeros(D)
    inner = init_transcoder(jax.random.key(0), D, D, M, ReLU(), zeros, zeros + 1, skip=True)
    inner = dataclasses.replace(inner, W_skip=jnp.eye(D), W_dec=sae().W_dec)
    one = Normalised(inner, "fixed_norm", undo=False)
    x = jax.random.normal(jax.random.key(1), (7, D))
    unit = x * (4 / jnp.linalg.norm(x, axis=1, keepdims=True))
    np.testing.assert_allclose(one.encode(x), inner.encode(unit), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one(x), inner.decode(inner.encode(unit)) + x, rtol=1e-4, atol=1e-4)
    assert not one.is_autoencoder()
    with pytest.raises(UserError, match="cannot be spliced into one value"):
        edit(toy(), at(ADDRESS, Splice(one)))(batch_at(0)[0])
    with pytest.raises(UserError, match="give undo=False"):
        Normalised(inner, "fixed_norm")


def test_what_needs_the_input_says_so():
    one = Normalised(sae(), "layer_norm")
    with pytest.raises(UserError, match=r"call output\(x, z\)"):
        one.decode(jnp.zeros((2, M)))
    with pytest.raises(UserError, match="norm='batch' is not known"):
        Normalised(sae(), "batch")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="of the form Dictionary can be joined, not Normalised"):
        from_transcoders([one])  # type: ignore[list-item]


@pytest.mark.parametrize("one", [Normalised(sae(), "layer_norm"), temporal(0)])
def test_what_needs_an_affine_decoder_refuses_them(one):
    rows = [jnp.ones((4, one.b_dec.shape[0]))]
    for fit in (global_scale, latent_scales):
        with pytest.raises(UserError, match=f"that of a {type(one).__name__} depends on its input too"):
            fit(one, rows)
    with pytest.raises(UserError, match="so it has no projections"):
        nth_projection(one, rows, 1)


def temporal_by_hand(one, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(novel code, output), token by token and head by head."""
    arrays = jax.tree.map(lambda a: np.asarray(a, np.float64), one)
    W_dec, b = arrays.W_dec, arrays.b_dec
    W_enc, (m, d) = W_dec.T if arrays.W_enc is None else arrays.W_enc, W_dec.shape
    novel, out = np.zeros((*x.shape[:2], m)), np.zeros(x.shape)
    for s, text in enumerate(x):
        rest, predicted = text * one.scale - b, np.zeros((len(text), m))
        for layer in arrays.layers:
            codes = np.maximum(rest / (4 * d) @ W_enc, 0)
            context = np.vstack([np.zeros((1, m)), codes[:-1]])
            q, k = codes @ layer.W_Q + layer.b_Q, context @ layer.W_K + layer.b_K
            v, mixed = context @ layer.W_V + layer.b_V, np.zeros((len(text), m))
            dq, dv = q.shape[1] // one.n_heads, m // one.n_heads
            for t in range(len(text)):
                for h in range(one.n_heads):
                    qk, of = slice(h * dq, (h + 1) * dq), slice(h * dv, (h + 1) * dv)
                    score = np.exp(k[: t + 1, qk] @ q[t, qk] / np.sqrt(dq))
                    mixed[t, of] = score @ v[: t + 1, of] / score.sum()
            part = np.maximum(mixed @ layer.W_O + layer.b_O, 0)
            written = part @ W_dec
            factor = (written * rest).sum(1) / (np.linalg.norm(written, axis=1) + 1e-6) ** 2
            predicted += part * factor[:, None]
            rest = rest - factor[:, None] * written
        code = np.maximum(rest / (4 * d) @ W_enc, 0)
        code[code < np.sort(code, 1)[:, -one.k][:, None]] = 0
        novel[s], out[s] = code, ((code + predicted) @ W_dec + b) / one.scale
    return novel, out


@pytest.mark.parametrize("tied", [False, True])
def test_a_temporal_dictionary_is_its_equations(tied):
    one = temporal(3, tied=tied)
    x = 3 * np.random.default_rng(0).normal(size=(2, 6, 8))
    novel, out = temporal_by_hand(one, x)
    given = jnp.asarray(x, jnp.float32)
    assert (novel > 0).any()
    assert np.any(one.codes(given)[1])
    np.testing.assert_allclose(one.encode(given), novel, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one(given), out, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(one.output(given, one.encode(given)), one(given), rtol=1e-5, atol=1e-5)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Positioned:
    """A model of one value whose call has these positions."""

    real: jax.Array | None = None
    first_slot: jax.Array | None = None

    def __call__(self, x, *, taps=()):
        site = Site.open(taps, positions=Positions(real=self.real, first_slot=self.first_slot))
        return site.close(site("x", x, "batch pos d"))


def test_a_temporal_dictionary_takes_whole_texts_and_nothing_else():
    one = temporal(0)
    x = jax.random.normal(jax.random.key(0), (2, 6, 8))
    np.testing.assert_allclose(edit(Positioned(), at("x", Splice(one)))(x), one(x), rtol=1e-5, atol=1e-6)
    zeroed = edit(edit(Positioned(), at("x", Splice(one))), at("x.latents", Zero()))(x)
    np.testing.assert_allclose(zeroed, one.output(x, jnp.zeros((2, 6, 16))), rtol=1e-5, atol=1e-6)
    for part in (Positioned(real=jnp.ones((2, 6), bool)), Positioned(first_slot=jnp.asarray(3))):
        with pytest.raises(UserError, match="whole texts of one length, without padding and without a cache"):
            edit(part, at("x", Splice(one)))(x)
    with pytest.raises(UserError, match=r"takes whole texts \[batch, pos, 8\], and got the shape \[12, 8\]"):
        one.encode(x.reshape(12, 8))
    with pytest.raises(UserError, match="cannot be used on separate rows"):
        evaluate(toy(d=8), ADDRESS, one, [batch_at(0)])
    with pytest.raises(UserError, match=r"call output\(x, z\)"):
        one.decode(jnp.zeros((1, 2, 16)))


def test_a_value_of_another_width_is_refused():
    one = Normalised(init_sae(jax.random.key(0), 8, 16, ReLU()), "layer_norm")
    with pytest.raises(UserError, match="reads values of width 8"):
        one(jnp.zeros((2, 9)))
