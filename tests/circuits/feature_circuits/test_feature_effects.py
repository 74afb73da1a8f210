"""Effects of features and errors: closed forms, brute force in float64, completeness, padding, layouts, refusals."""

from __future__ import annotations

import dataclasses
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feature_worlds import (
    addresses_of,
    as_float64,
    contrast_of,
    dictionaries_for,
    linear_model,
    transformer,
)

from jax_interp.circuits import make_contrast, measure
from jax_interp.circuits.feature_circuits import EffectsConfig, feature_effects
from jax_interp.core.errors import UserError
from jax_interp.dictionaries import Identity
from jax_interp.surgery import AddressError, Replace, at, edit, read, replan


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def linear_world(**kwargs):
    addresses = ["embed", *addresses_of(2)]
    return as_float64(linear_model()), contrast_of(9, **kwargs), as_float64(dictionaries_for(6, addresses))


def compared(a, b, atol):
    for name in ("latents", "errors"):
        for x, y in zip(getattr(a, name), getattr(b, name), strict=True):
            np.testing.assert_allclose(x, y, atol=atol)
    np.testing.assert_allclose(a.whole, b.whole, atol=atol)


@pytest.mark.parametrize(
    ("ablation", "positions"), [("patch", "sum"), pytest.param("zero", "each", marks=pytest.mark.slow)]
)
def test_on_a_linear_model_all_methods_are_exact(x64, ablation, positions):
    model, contrast, saes = linear_world()
    config = EffectsConfig("attribution", ablation, positions, batch=2)
    by_gradient = feature_effects(model, contrast, saes, config)
    compared(
        by_gradient,
        feature_effects(model, contrast, saes, dataclasses.replace(config, method="integrated", steps=2)),
        1e-12,
    )
    compared(by_gradient, feature_effects(model, contrast, saes, dataclasses.replace(config, method="exact")), 1e-12)
    table = by_gradient.accounting()
    assert by_gradient.addresses[:2] == ("embed", "blocks.0.attn_out")
    assert np.abs(table.values[:, :2]).min() > 1e-3  # errors have an effect of their own
    np.testing.assert_allclose(table.values[:, 2], table.values[:, 3], atol=1e-12)


def test_the_last_stream_of_a_linear_model_has_a_closed_form(x64):
    """The metric is linear in the last residual stream: effect = Δf · (W_dec (U_answer - U_other)), last token."""
    model, contrast, saes = linear_world()
    address = "blocks.1.resid_post"
    found = feature_effects(model, contrast, {address: saes[address]}, EffectsConfig("attribution", positions="each"))
    stream = lambda tokens: np.asarray(read(model, address)(tokens)[1][address])
    f = lambda x: np.maximum(
        x @ np.asarray(saes[address].W_enc)
        - np.asarray(saes[address].b_dec @ saes[address].W_enc)
        + np.asarray(saes[address].b_enc),
        0,
    )
    clean, corrupted = stream(contrast.clean), stream(contrast.corrupted)
    towards = (
        np.asarray(model.U).T[np.asarray(contrast.metric.answer)]
        - np.asarray(model.U).T[np.asarray(contrast.metric.other)]
    )
    W_dec = np.asarray(saes[address].W_dec)
    delta = f(corrupted) - f(clean)
    expected = np.zeros(delta.shape)
    expected[:, -1] = delta[:, -1] * (towards @ W_dec.T)
    np.testing.assert_allclose(found.latents[0], expected.mean(0), atol=1e-12)
    error = (corrupted - clean - delta @ W_dec)[:, -1]
    np.testing.assert_allclose(found.errors[0][-1], (error * towards).sum(-1).mean(), atol=1e-12)
    np.testing.assert_allclose(found.latents_spread[0], expected.std(0, ddof=1), atol=1e-12)


@pytest.fixture(scope="module")
def gqa():
    return transformer("llama-like")


@pytest.mark.parametrize("address", [pytest.param("blocks.0.mlp_out", marks=pytest.mark.slow), "blocks.1.resid_post"])
def test_effects_of_a_transformer_equal_brute_force(x64, gqa, address):
    """GQA, padding. Exact effects by separate runs; attribution by central differences."""
    model, contrast = as_float64(gqa), contrast_of(64, padded=True)
    sae = as_float64(dictionaries_for(32, [address], features=6))[address]
    effects = lambda method: feature_effects(model, contrast, {address: sae}, EffectsConfig(method, positions="each"))
    exact, slope = effects("exact"), effects("attribution")
    values_of = lambda tokens: read(model, address)(tokens, mask=contrast.mask)[1][address]
    x, other = values_of(contrast.clean), values_of(contrast.corrupted)
    f, g = sae.encode(x), sae.encode(other)
    m = jax.jit(lambda v: measure(edit(model, at(address, Replace(v))), contrast.clean, contrast))
    effect = lambda step: float((m(x + step) - m(x)).mean())
    for pos, feature in [(2, 1), (4, 0), (4, 5), (3, None)]:
        if feature is None:
            step = jnp.zeros_like(x).at[:, pos].set((other - x - (g - f) @ sae.W_dec)[:, pos])
        else:
            step = jnp.zeros_like(x).at[:, pos].set((g - f)[:, pos, feature][:, None] * sae.W_dec[feature][None])
        step = jnp.where(contrast.mask[..., None], step, 0.0)
        place = (pos,) if feature is None else (pos, feature)
        of = operator.attrgetter("errors" if feature is None else "latents")
        np.testing.assert_allclose(of(exact)[0][place], effect(step), atol=1e-10)
        np.testing.assert_allclose(of(slope)[0][place], (effect(1e-5 * step) - effect(-1e-5 * step)) / 2e-5, atol=1e-7)


@pytest.mark.slow
def test_integrated_effects_of_a_site_add_up_to_the_effect_of_its_value(x64, gqa):
    model, contrast = as_float64(gqa), contrast_of(64, padded=True)
    saes = as_float64(dictionaries_for(32, ["blocks.0.mlp_out", "blocks.1.mlp_out", "blocks.1.resid_post"], features=6))
    found = feature_effects(model, contrast, saes, EffectsConfig("integrated", steps=100))
    table = found.accounting()
    np.testing.assert_allclose(table.sel(part=2), table.sel(part=3), atol=2e-3 * np.abs(found.whole).max())
    rough = feature_effects(model, contrast, saes, EffectsConfig("attribution")).accounting()
    gaps = [np.abs(t.values[:, 2] - t.values[:, 3]).max() for t in (table, rough)]
    assert gaps[0] < 0.05 * gaps[1]  # and one gradient does not


@pytest.mark.slow
@pytest.mark.parametrize("method", ["integrated", "exact"])
def test_layouts_and_parts_agree(gqa, method):
    contrast = contrast_of(64, padded=True)
    saes = dictionaries_for(32, ["blocks.0.mlp_out", "blocks.1.mlp_out", "blocks.2.attn_out"], features=5)
    config = EffectsConfig(method, steps=3)
    scanned = feature_effects(replan(gqa), contrast, saes, config)
    compared(
        scanned, feature_effects(replan(gqa, "*"), contrast, saes, dataclasses.replace(config, batch=2, rows=7)), 2e-5
    )


@pytest.mark.slow
def test_padding_changes_nothing(gqa):
    contrast = contrast_of(64, prompts=1)
    pad = lambda tokens, value: jnp.concatenate([jnp.full((1, 3), value, tokens.dtype), tokens], axis=1)
    mask = jnp.arange(8)[None] >= 3
    padded = make_contrast(pad(contrast.clean, 1), pad(contrast.corrupted, 7), contrast.metric, mask=mask)
    saes = dictionaries_for(32, ["blocks.0.resid_post", "blocks.1.attn_out"], features=5)
    config = EffectsConfig("integrated", positions="each", steps=2)
    alone, beside = feature_effects(gqa, contrast, saes, config), feature_effects(gqa, padded, saes, config)
    for a, b in zip(alone.latents, beside.latents, strict=True):
        np.testing.assert_allclose(b[3:], a, atol=2e-5)
        assert not b[:3].any()


def test_neurons_are_features_of_the_identity(gqa):
    contrast = contrast_of(64)
    found = feature_effects(
        gqa, contrast, {"blocks.1.mlp.post": Identity(), "blocks.0.attn.z": Heads()}, EffectsConfig("attribution")
    )
    assert found.addresses == ("blocks.0.attn.z", "blocks.1.mlp.post")
    assert [len(f) for f in found.latents] == [32, 48]
    assert not np.any(list(found.errors)), "the identity has no error"


class Heads(Identity):
    """All heads side by side."""

    def encode(self, x):
        return x.reshape(*x.shape[:2], -1)


jax.tree_util.register_static(Heads)


def test_what_cannot_be_right_is_refused(gqa):
    contrast, saes = contrast_of(64), dictionaries_for(32, ["blocks.0.mlp_out"])
    sae = saes["blocks.0.mlp_out"]
    with pytest.raises(UserError, match="there is no dictionary"):
        feature_effects(gqa, contrast, {})
    with pytest.raises(AddressError, match="several values"):
        feature_effects(gqa, contrast, {"blocks.*.mlp_out": sae})
    with pytest.raises(AddressError, match=r"blocks\.0\.mlp_out"):
        feature_effects(gqa, contrast, {"blocks.0.mlp_outt": sae})
    with pytest.raises(UserError, match="two dictionaries"):
        feature_effects(gqa, contrast, {"blocks.0.mlp_out": sae, "blocks.-3.mlp_out": sae})
    with pytest.raises(UserError, match="cannot read"):
        feature_effects(gqa, contrast, {"blocks.0.mlp.post": sae})
    with pytest.raises(UserError, match="batch, pos"):
        feature_effects(gqa, contrast, {"blocks.0.attn.pattern": Identity()})
    with pytest.raises(UserError, match="choose attribution"):
        EffectsConfig("ig")  # pyright: ignore
    with pytest.raises(UserError, match="not finite"):
        feature_effects(gqa, contrast, {"blocks.0.mlp_out": dataclasses.replace(sae, b_dec=sae.b_dec + jnp.nan)})
