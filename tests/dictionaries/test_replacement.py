"""Replacement models against a forward pass written out in float64, and their error nodes."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import Toy, toy

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.activations import Jump
from jax_interp.dictionaries.evaluation.controls import random_dictionary
from jax_interp.dictionaries.evaluation.cross_layer import evaluate_cross_layer
from jax_interp.dictionaries.forms import Dictionary
from jax_interp.dictionaries.forms.cross_layer import CrossLayer, Source
from jax_interp.dictionaries.replacement import measure_errors, replacement
from jax_interp.surgery import (
    Add,
    EditError,
    Site,
    Splice,
    Stack,
    Zero,
    at,
    call,
    edit,
    grad_at,
    read,
    replan,
    run_blocks,
    sites,
)

D, M, LAYERS = 16, 24, 3
READS = tuple(f"blocks.{i}.mlp_in" for i in range(LAYERS))
WRITES = tuple(f"blocks.{i}.mlp_out" for i in range(LAYERS))
TOKENS = jax.random.randint(jax.random.key(9), (3, 7), 0, 40)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class MLPBlock:
    """The toy's block with a name for what its MLP reads (which looks back one token) and what it writes."""

    W: jax.Array

    def __call__(self, x, site):
        x = site("resid_pre", x)
        before = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        return site("resid_post", x + site("mlp_out", jnp.tanh(site("mlp_in", x + before) @ self.W)))


@pytest.fixture(scope="module")
def model():
    plain = toy()
    return Toy(plain.E, [Stack.of([MLPBlock(block.W) for block in plain.blocks])], plain.U)


def cross_layer(window=LAYERS, skip=False, dtype=np.float32):
    rng = np.random.default_rng(2)
    normal = lambda *shape: jnp.asarray(0.3 * rng.standard_normal(shape), dtype)
    sources = [
        Source(
            normal(D, M),
            normal(M),
            normal(M, min(window, LAYERS - i), D),
            Jump(normal(M) - 1),
            normal(D, D) if skip else None,
        )
        for i in range(LAYERS)
    ]
    return CrossLayer(tuple(sources), normal(LAYERS, D))


def each_layer(clt):
    """Its sources as transcoders of one layer each."""
    return [
        Dictionary(s.W_enc, s.b_enc, s.W_dec[:, 0], b, s.activation, s.W_skip, centred=False)
        for s, b in zip(clt.sources, clt.b_dec)
    ]


def by_hand(model, clt, tokens, where=None):
    """(logits, latents) of the replacement model, float64."""
    f64 = lambda a: np.asarray(a, np.float64)
    W = [f64(block.W) for block in model.blocks[0].unstack()]
    x, z = f64(model.E)[np.asarray(tokens)], []
    for t in range(LAYERS):
        into = x + np.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        source = clt.sources[t]
        pre = into @ f64(source.W_enc) + f64(source.b_enc)
        z.append(pre * (pre > np.exp(f64(source.activation.log_threshold))))
        y = f64(clt.b_dec)[t] + (0 if source.W_skip is None else into @ f64(source.W_skip))
        for i in range(t + 1):
            if t - i < clt.sources[i].W_dec.shape[1]:
                y = y + z[i] @ f64(clt.sources[i].W_dec)[:, t - i]
        x = x + (y if where is None else np.where(np.asarray(where)[..., None], y, np.tanh(into @ W[t])))
    return x @ f64(model.U), z


@pytest.mark.parametrize(("window", "skip"), [(3, False), (2, True)])
def test_later_layers_see_what_earlier_ones_were_replaced_by(model, window, skip):
    clt, where = cross_layer(window, skip), jnp.arange(7) % 3 > 0
    where = jnp.broadcast_to(where, TOKENS.shape)
    local = replacement(model, READS, WRITES, clt, where=where)
    logits, acts = call(read(local, *(f"{one}.latents" for one in READS), "blocks.2.mlp_out"), TOKENS)
    want, z = by_hand(model, clt, TOKENS, where)
    np.testing.assert_allclose(logits, want, rtol=1e-3, atol=1e-4)
    for i in range(LAYERS):
        np.testing.assert_allclose(acts[f"{READS[i]}.latents"], z[i], rtol=1e-3, atol=1e-4)


def test_with_the_errors_of_a_clean_run_it_is_the_clean_run(model):
    clt = cross_layer()
    clean, values = call(read(model, "blocks.*.mlp_out"), TOKENS)
    errors = jax.jit(measure_errors(model, READS, WRITES, clt))(TOKENS)
    exact = replacement(model, READS, WRITES, clt, errors=errors)
    logits, acts = call(read(exact, *(f"{one}.error" for one in WRITES), "blocks.0.mlp_in.latents"), TOKENS)
    np.testing.assert_allclose(logits, clean, rtol=1e-5, atol=1e-5)
    assert float(abs(call(replacement(model, READS, WRITES, clt), TOKENS) - clean).max()) > 0.1
    for t in range(LAYERS):
        np.testing.assert_array_equal(errors.values[t], values["blocks.*.mlp_out"][t])
        np.testing.assert_allclose(acts[f"{WRITES[t]}.error"], errors[t], atol=1e-6)

    # Latents and errors are edited like any value. A latent's effect on the last layer's output, where no later latent
    # changes, is its decoder row.
    z = acts["blocks.0.mlp_in.latents"]
    feature = int(np.argmax(np.asarray(z).sum((0, 1))))
    without = edit(exact, at("blocks.0.mlp_in.latents", Zero(), feature=feature))
    _, moved = call(read(without, "blocks.0.mlp_out"), TOKENS)
    row = clt.sources[0].W_dec[feature, 0]
    want = values["blocks.*.mlp_out"][0] - z[:, :, feature, None] * row[None, None]
    np.testing.assert_allclose(moved["blocks.0.mlp_out"], want, atol=1e-5)
    shift = jnp.linspace(-1, 1, D)
    pushed = edit(exact, at("blocks.2.mlp_out.error", Add(shift), pos=3))
    want = clean.at[:, 3].add((shift @ model.U)[None])
    np.testing.assert_allclose(call(pushed, TOKENS), want, atol=1e-4)


def test_a_dictionary_at_a_value_of_another_width_is_refused_with_both(model):
    spliced = edit(model, at("blocks.1.mlp_out", Splice(random_dictionary(jax.random.key(0), 8, 32, k=2))))
    says = r"Splice cannot act on the value at 'blocks.1.mlp_out', float32\[3, 7, 16\].*reads values of width 8"
    with pytest.raises(EditError, match=says):
        call(spliced, TOKENS)


def test_without_its_errors_it_is_the_local_model_in_16_bits_too(model):
    """The reconstructions are a hundred times smaller than the errors, so a rounding of the errors would show."""
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), model)
    clt = jax.tree.map(lambda w: w * 0.1 if w.ndim > 1 else w, cross_layer())
    errors = jax.jit(measure_errors(half, READS, WRITES, clt))(TOKENS)
    exact, local = replacement(half, READS, WRITES, clt, errors=errors), replacement(half, READS, WRITES, clt)
    without = edit(exact, [at(f"{one}.error", Zero()) for one in WRITES])
    got, want = (call(read(one, *WRITES), TOKENS)[1] for one in (without, local))
    for one in WRITES:
        np.testing.assert_allclose(*(np.asarray(x[one], np.float32) for x in (got, want)), rtol=0.02, atol=1e-4)
    chex.assert_trees_all_equal(call(exact, TOKENS), call(half, TOKENS))


def test_gradients_go_through_the_dictionary_and_not_through_errors(model):
    """d metric / d latents of layer 0: by hand from the decoder, layer 1's and 2's encoders being off."""
    clt = cross_layer()
    shut = dataclasses.replace(clt.sources[1], activation=Jump(jnp.full(M, 20.0)))
    clt = dataclasses.replace(
        clt, sources=(clt.sources[0], shut, dataclasses.replace(clt.sources[2], activation=shut.activation))
    )
    errors = jax.jit(measure_errors(model, READS, WRITES, clt))(TOKENS)
    exact = replacement(model, READS, WRITES, clt, errors=errors)
    name = "blocks.0.mlp_in.latents"
    direction = jnp.cos(jnp.arange(40.0))
    _, grads = jax.jit(lambda f, t: grad_at(f, name)(lambda logits: (logits[:, 4] @ direction).sum())(t))(exact, TOKENS)
    want = jnp.einsum("mtd,dv,v->m", clt.sources[0].W_dec, model.U, direction)
    got = grads[name]
    np.testing.assert_allclose(got[:, 4], np.broadcast_to(want, got[:, 4].shape), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got[:, 5], np.zeros_like(got[:, 5]), atol=1e-6)


def test_transcoders_of_single_layers_are_a_list(model):
    clt = cross_layer(window=1)
    each = each_layer(clt)
    local = replacement(model, READS, WRITES, each)
    np.testing.assert_allclose(call(local, TOKENS), by_hand(model, clt, TOKENS)[0], rtol=1e-3, atol=1e-4)
    names = sites(local)(TOKENS)
    assert names["blocks.1.mlp_in.latents"].shape == (3, 7, M)
    # a scanned model stays scanned: some layers, every second one, a layout of both kinds, with errors and with a skip
    assert local.model is model
    _, clean = call(read(model, *WRITES), TOKENS)
    for layers in ([1], [0, 2], [1, 2]):
        names = [READS[i] for i in layers], [WRITES[i] for i in layers], [each[i] for i in layers]
        unrolled = replacement(replan(model, "*"), *names)
        for layout in (model, replan(model, 1)):
            scanned = replacement(layout, *names)
            assert scanned.model is layout
            np.testing.assert_allclose(call(scanned, TOKENS), call(unrolled, TOKENS), rtol=1e-4, atol=1e-4)
            errors = jax.jit(measure_errors(layout, *names))(TOKENS)
            exact = replacement(layout, *names, errors=errors)
            for name in names[1]:
                np.testing.assert_array_equal(call(read(exact, name), TOKENS)[1][name], clean[name])


def test_only_the_layers_that_a_cross_layer_transcoder_concerns_are_unrolled(model):
    clt = cross_layer()
    last = CrossLayer(clt.sources[1:], clt.b_dec[1:])
    one = replacement(model, READS[1:], WRITES[1:], last)
    assert [type(block) for block in one.model.blocks] == [Stack, MLPBlock, MLPBlock]
    unrolled = replan(model, "*")
    assert replacement(unrolled, READS, WRITES, clt).model is unrolled


def test_a_replacement_model_of_a_replacement_model(model):
    """The inner one writes first, the outer one writes over it; each uses its own latents."""
    clt, other = cross_layer(window=1), cross_layer(window=2)
    inner = replacement(model, READS, WRITES, clt)
    np.testing.assert_allclose(
        call(replacement(inner, READS, WRITES, other), TOKENS), by_hand(model, other, TOKENS)[0], rtol=1e-3, atol=1e-4
    )
    outside = replacement(replacement(model, READS, WRITES, other), READS, WRITES, clt)
    np.testing.assert_allclose(call(outside, TOKENS), by_hand(model, clt, TOKENS)[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("window", [1, 3])
def test_remat_gives_the_same_values_and_gradients(model, window):
    clt = cross_layer(window, skip=True)
    recomputed = Recomputed(model.E, model.blocks, model.U)
    direction = jnp.cos(jnp.arange(40.0))

    def run(model, clt):
        logits, acts = read(replacement(model, READS, WRITES, clt), "blocks.1.mlp_in.latents")(TOKENS)
        return jnp.sum(jnp.tanh(logits) @ direction) + jnp.sum(acts["blocks.1.mlp_in.latents"])

    plain, again = (jax.jit(jax.value_and_grad(run, (0, 1)))(one, clt) for one in (model, recomputed))
    np.testing.assert_allclose(plain[0], again[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(plain[1]), jax.tree.leaves(again[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_a_value_that_is_both_read_and_written():
    """Crosscoders on the stream: weakly causal ones read a value before they write it, strictly causal ones after."""
    model, clt = (
        toy(),
        dataclasses.replace(cross_layer(), sources=cross_layer().sources[1:], b_dec=cross_layer().b_dec[1:]),
    )
    names = [f"blocks.{i}.resid_post" for i in range(3)]
    _, clean = call(read(model, *names), TOKENS)
    weak = call(read(replacement(model, names[:2], names[:2], clt), names[0]), TOKENS)[1]
    x = clean[names[0]]
    np.testing.assert_allclose(weak[names[0]], clt.write(0, [clt.sources[0].encode(x)]), atol=1e-5)
    strict = call(read(replacement(model, names[:2], names[1:], clt), *names[1:]), TOKENS)[1]
    first = clt.sources[0].encode(x)
    second = clt.sources[1].encode(strict[names[1]])
    np.testing.assert_allclose(strict[names[1]], clt.write(0, [first]), atol=1e-5)
    np.testing.assert_allclose(strict[names[2]], clt.write(1, [first, second]), atol=1e-5)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Recomputed(Toy):
    def __call__(self, tokens, *, taps=()):
        site = Site.open(taps, self.blocks)
        x = run_blocks(self.blocks, site("embed", self.E[tokens]), site, remat=True)
        return site.close(site("logits", x @ self.U, "batch pos vocab"))


def test_its_loss_is_the_one_written_out(model):
    """Over the predictions that are kept, with values that are not kept left alone; and the figures layer by layer."""
    clt = cross_layer()
    keep = (np.arange(7) != 0) & (np.arange(3)[:, None] != np.arange(7) - 3)
    result = evaluate_cross_layer(model, READS, clt, [(TOKENS[:2], keep[:2]), (TOKENS[2:], keep[2:])], WRITES)
    log_p = []
    for where in (keep, np.zeros_like(keep)):
        logits = by_hand(model, clt, TOKENS, where)[0][:, :-1]
        log_p.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    kept, following = keep[:, :-1] & keep[:, 1:], np.asarray(TOKENS)[:, 1:, None]
    loss, clean = (-np.take_along_axis(p, following, -1)[..., 0][kept].mean() for p in log_p)
    kl = (np.exp(log_p[1]) * (log_p[1] - log_p[0])).sum(-1)[kept].mean()
    got, spliced = result.replacement, result.together.cross_entropy
    assert spliced.clean == pytest.approx(clean, rel=1e-5)
    assert got.cross_entropy == pytest.approx(loss, rel=1e-4)
    assert got.kl == pytest.approx(kl, rel=1e-3)
    assert got.kl_score_mean == pytest.approx(1 - kl / spliced.kl_mean_ablated, rel=1e-3)
    assert got.cross_entropy != pytest.approx(spliced.spliced, rel=1e-3), "errors accumulate"

    _, values = call(read(model, *READS, *WRITES), TOKENS)
    z = [np.asarray(source.encode(values[name])) for source, name in zip(clt.sources, READS)]
    for t, layer in enumerate(result.layers):
        assert (layer.reads, layer.writes) == (READS[t], WRITES[t])
        assert layer.l0 == pytest.approx((z[t][keep] != 0).sum(-1).mean())
        assert layer.dead == (~(z[t][keep] != 0).any(0)).sum()
        y = np.asarray(values[WRITES[t]])[keep]
        error = y - np.asarray(clt.write(t, [jnp.asarray(one) for one in z]))[keep]
        assert layer.fvu == pytest.approx((error**2).sum() / ((y - y.mean(0)) ** 2).sum(), rel=1e-3)
    assert result.to_json()["layers"][1] == dataclasses.asdict(result.layers[1])


def test_what_cannot_be_is_refused(model):
    clt = cross_layer()
    for reads, writes, says in (
        (READS[:2], WRITES, "2 addresses to read and 3 to write"),
        (("blocks.*.mlp_in",) * 3, WRITES, "several values"),
        ((READS[0],) * 3, WRITES, "there twice"),
    ):
        with pytest.raises(UserError, match=says):
            replacement(model, reads, writes, clt)
    with pytest.raises(UserError, match="made before the value that source 0 reads"):
        replacement(model, READS[::-1], WRITES, clt)(TOKENS)
    with pytest.raises(UserError, match="made before the value that source 0 reads"):
        replacement(model, WRITES[:1], READS[:1], each_layer(clt)[:1])(TOKENS)
