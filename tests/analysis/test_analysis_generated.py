"""Generated laws of all analyses: right in every layout and dtype, and an index that does not exist is refused."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generated import drawn
from small_models import peaky

from jax_interp import analysis
from jax_interp.analysis import FactoredMatrix, SingularVectors
from jax_interp.core.errors import UserError
from jax_interp.models import Config, Decoder
from jax_interp.surgery import Scale, at, edit, read, replan

BATCH, POS, VOCAB = 2, 6, 19
GIVEN = ("model", "acts")  # an analysis takes one of these first
# Edits are the subject of other tests: these compute from the weights of an edited model, which are the original ones.
OF_THE_STREAM = ("decompose_resid", "direct_logit_attribution", "get_full_resid_decomposition", "stack_head_results",
                 "stack_neuron_results", "accumulated_bias", "logit_attrs", "logit_directions")  # fmt: skip


def functions() -> dict[str, Any]:
    """Every public function of the package that takes a model or activations first, and trains nothing."""
    found = {name: getattr(analysis, name) for name in analysis.__all__}
    takes = lambda f: next(iter(inspect.signature(f).parameters)) in GIVEN
    # `intervention_effects` returns numbers of the host over many runs: test_circular.py
    others = ("needed", "intervention_effects")
    return {name: f for name, f in found.items() if inspect.isfunction(f) and takes(f) and name not in others}


def arguments(function: Any, model: Any, acts: Any, tokens: Any, inner: Decoder) -> dict[str, Any]:
    """A value for each argument without a default, and for those that make a difference."""
    values = {
        "model": model,
        "acts": acts,
        "tokens": tokens if function in (analysis.detect_head, analysis.kl_by_layer) else 7,
        "detection_pattern": "induction_head",
        "offset": -1,
        "lens": analysis.init_tuned_lens(inner),
        "stack": inner.embed.weight[...][tokens][None],
        "resid": inner.embed.weight[...][tokens],
        "layer": 1,
        "head": 1,
        "mode": "Q",
        "kind": "OV",
        "key": jax.random.key(0),
    }
    takes = inspect.signature(function).parameters.items()
    return {n: values[n] for n, one in takes if one.default is inspect.Parameter.empty or (n, function) in HEADS}


HEADS = {("head", analysis.singular_vectors)}


def plain(value: Any) -> Any:
    """Arrays of a result. Products are multiplied out, and the signs of singular vectors are dropped."""
    if isinstance(value, FactoredMatrix):
        return value.AB
    return jax.tree.map(jnp.abs, value) if isinstance(value, SingularVectors) else value


def all_analyses(model: Any, inner: Decoder, tokens: Any, edited: bool) -> dict[str, Any]:
    """The result of every analysis, or "refused" where it raises UserError."""
    found = {}
    chosen = {n: f for n, f in functions().items() if not (edited and n in OF_THE_STREAM)}
    of_acts = [function for function in chosen.values() if function in analysis.NEEDED]
    acts = read(model, *analysis.needed(model, *of_acts), output=False)(tokens)
    for name, function in chosen.items():
        try:
            found[name] = plain(function(**arguments(function, model, acts, tokens, inner)))
        except UserError:
            found[name] = "refused"
    return found


def drawn_config(rng: np.random.Generator) -> Config:
    norm = str(rng.choice(["layernorm", "rmsnorm", "none"]))
    return Config(
        n_layers=2,
        d_model=12,
        n_heads=4,
        n_kv_heads=int(rng.choice([1, 2, 4])),
        d_head=int(rng.choice([3, 4])),
        d_mlp=int(rng.choice([0, 10, 10])),
        vocab_size=VOCAB,
        n_ctx=8,
        act="gelu",
        gated_mlp=bool(rng.integers(2)),
        norm=norm,
        positions=str(rng.choice(["learned", "none"])),
        parallel=str(rng.choice(["no", "no", "one norm"])),
        qkv_bias=bool(rng.integers(2)),
        out_bias=bool(rng.integers(2)),
        mlp_bias=bool(rng.integers(2)),
        tied_embedding=bool(rng.integers(2)),
        logit_softcap=float(rng.choice([0.0, 5.0])),
    )


@pytest.mark.hardening
def test_every_analysis_is_right_in_every_layout_and_dtype(tally):
    """Against the unrolled model with the same weights in float64. An analysis refuses both models or none."""
    results = [wrong_analyses(case) for case in range(drawn(2, 4))]
    broken = [line for _, lines in results for line in lines]
    tally("analyses in every layout and dtype", tried=sum(count for count, _ in results), broken=len(broken))
    assert not broken, "\n".join(broken)


def wrong_analyses(case: int) -> tuple[int, list[str]]:
    """How many analyses one drawn case compares, and those that are wrong."""
    rng, broken = np.random.default_rng([30, case]), []
    dtype = (jnp.float32, jnp.bfloat16, jnp.float16)[case % 3]
    layout, edited = ["", "*", "1"][int(rng.integers(3))], bool(rng.integers(2))
    config = drawn_config(rng)
    narrow = peaky(config, seed=case, dtype=dtype)
    tokens = rng.integers(0, VOCAB, (BATCH, POS)).astype(np.int32)

    def run(inner: Decoder) -> tuple[dict[str, Any], set[str]]:
        refused: set[str] = set()

        def all_of(inner: Decoder, tokens: Any) -> dict[str, Any]:
            model = edit(inner, at("blocks.0.attn_out", Scale(np.float32(0.5)))) if edited else inner
            found = all_analyses(model, inner, tokens, edited)
            refused.update(name for name, value in found.items() if isinstance(value, str))
            return {name: value for name, value in found.items() if not isinstance(value, str)}

        return jax.device_get(jax.jit(all_of)(inner, tokens)), refused

    got, refused = run(replan(narrow, layout or ()))
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        want, also = run(jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), replan(narrow, "*")))
    where = f"case {case}: {config}, {dtype.__name__}, layout {layout!r}, edited {edited}"
    if refused != also:
        broken.append(f"{where}: {refused ^ also} refused in one of the two only")
    names = sorted(set(got) & set(want))
    for name in names:
        error = worst_error(got[name], want[name])
        if not error < (3e-3 if dtype == jnp.float32 else 0.15):
            broken.append(f"{where}: {name} is off by {error:.2g} of its largest entry")
    return len(names), broken


def worst_error(got: Any, want: Any) -> float:
    """The largest difference of two results, as a fraction of the largest entry; infinite where only one is NaN."""
    errors = [0.0]
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        if not np.array_equal(np.isnan(one), np.isnan(other)):
            return float("inf")
        errors.append(np.nanmax(np.abs(one - other), initial=0) / max(np.nanmax(np.abs(other), initial=0), 1e-3))
    return max(errors)


@pytest.fixture(scope="module")
def model() -> Decoder:
    return peaky(Config(n_layers=2, d_model=12, n_heads=4, d_head=4, d_mlp=10, vocab_size=VOCAB, n_ctx=8))


@pytest.fixture(scope="module")
def acts(model):
    of_acts = [function for function in functions().values() if function in analysis.NEEDED]
    return read(model, *analysis.needed(model, *of_acts), output=False)(jnp.ones((BATCH, POS), jnp.int32))


def outside(rng: np.random.Generator, size: int) -> int:
    """An index that an axis of this size does not have, from either end."""
    far = int(rng.integers(0, 1000)) if rng.random() < 0.5 else 0
    return size + far if rng.random() < 0.5 else -size - 1 - far


@pytest.mark.hardening
def test_an_index_that_does_not_exist_is_refused(model, acts, tally):
    """JAX takes the nearest entry instead, which would be another head's number."""
    config, logits = model.config, jnp.zeros((BATCH, VOCAB))
    calls = {
        "layer of OV": lambda i: analysis.OV(model)[i(2)],
        "head of QK": lambda i: analysis.QK(model)[0, i(4)],
        "row of OV": lambda i: analysis.OV(model)[0, 0, i(12)],
        "column of OV": lambda i: analysis.OV(model)[..., i(12)],
        "heads of OV": lambda i: analysis.OV(model)[0, np.array([0, i(4)])],
        "full_OV, layer": lambda i: analysis.full_OV(model, i(2), 0),
        "full_QK, head": lambda i: analysis.full_QK(model, 0, i(4)),
        "singular_vectors, layer": lambda i: analysis.singular_vectors(model, "OV", i(2), 0),
        "singular_vectors, head": lambda i: analysis.singular_vectors(model, "OV", 0, i(4)),
        "logit_lens, pos": lambda i: analysis.logit_lens(model, acts, pos=i(POS)),
        "logit_lens, positions": lambda i: analysis.logit_lens(model, acts, pos=jnp.array([0, i(POS)])),
        "accumulated_resid, pos": lambda i: analysis.accumulated_resid(model, acts, pos=i(POS)),
        "norm_into, layer": lambda i: analysis.norm_into(model, acts, i(config.n_layers + 1)),
        "token_ranks": lambda i: analysis.token_ranks(logits, i(VOCAB)),
        "token_ranks of rows": lambda i: analysis.token_ranks(logits, jnp.array([0, i(VOCAB)])),
        "diagonal_scores": lambda i: analysis.diagonal_scores(acts, -abs(i(POS)) if i(POS) < 0 else 1),
        "neuron_statistics, null_dims": lambda i: analysis.neuron_statistics(model, null_dims=i(13)),
        "label of Parts": lambda i: analysis.accumulated_resid(model, acts)[f"{i(3)}_pre"],
    }
    tried, broken = drawn(3, 20) * len(calls), []
    for case in range(tried):
        rng, name = np.random.default_rng([31, case]), list(calls)[case % len(calls)]
        index: list[int] = []

        def draw(size: int, rng=rng, index=index) -> int:
            index.append(outside(rng, size))
            return index[-1]

        try:
            calls[name](draw)
            broken.append(f"case {case}: {name} with {index} is accepted")
        except UserError:
            pass
        except Exception as error:
            broken.append(f"case {case}: {name} with {index}: {type(error).__name__}: {str(error)[:100]}")
    tally("indices of analyses that do not exist", tried=tried, broken=len(broken))
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    "mask", [jnp.ones((BATCH, POS), jnp.int32), jnp.ones((BATCH, POS + 1), bool), jnp.ones(POS, bool)]
)
def test_a_mask_is_boolean_and_has_the_shape_of_the_tokens(mask, model, acts):
    tokens = jnp.ones((BATCH, POS), jnp.int32)
    for of_mask in (
        lambda: analysis.detect_head(acts, tokens, "induction_head", mask=mask),
        lambda: analysis.norm_growth(acts, mask=mask),
        lambda: analysis.activation_statistics(acts, mask=mask),
        lambda: analysis.kl_by_layer(model, analysis.init_tuned_lens(model), tokens, mask),
    ):
        with pytest.raises(UserError, match="a mask is bool"):
            of_mask()


def test_no_tokens_are_refused(model, acts):
    tokens, acts = jnp.zeros((0, POS), jnp.int32), jax.tree.map(lambda value: value[:, :0], acts)
    for measure in (
        lambda: analysis.detect_head(acts, tokens, "induction_head"),
        lambda: analysis.diagonal_scores(acts, -1),
        lambda: analysis.kl_by_layer(model, analysis.init_tuned_lens(model), tokens),
    ):
        with pytest.raises(UserError, match="there are no tokens"):
            measure()


def test_a_row_of_padding_changes_no_score(model):
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (3, POS)), jnp.int32)
    acts = read(model, "blocks.*.attn.pattern", output=False)(tokens)
    two = read(model, "blocks.*.attn.pattern", output=False)(tokens[:2])
    mask = jnp.ones((3, POS), bool).at[2].set(False)
    for measure in ("mul", "abs"):
        got = analysis.detect_head(acts, tokens, "previous_token_head", mask=mask, error_measure=measure)
        want = analysis.detect_head(two, tokens[:2], "previous_token_head", error_measure=measure)
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_a_padded_vocabulary_and_a_neuron_without_weights():
    """Rows of zeros in the unembedding are left out; they do not make all statistics NaN."""
    config = Config(n_layers=1, d_model=12, n_heads=4, d_head=4, d_mlp=10, vocab_size=VOCAB, n_ctx=8, norm="none")
    model = peaky(config)
    weight = np.array(model.embed.weight[...])
    padded = np.concatenate([weight, np.zeros((3, 12), np.float32)])
    wider = jax.tree.map(lambda leaf: jnp.asarray(padded) if leaf.shape == weight.shape else leaf, model)
    for one, other in zip(*(jax.tree.leaves(analysis.neuron_statistics(m)) for m in (model, wider)), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-5)


def test_moments_of_equal_samples_are_not_rounding():
    from jax_interp.analysis.neurons import central_moments

    variance, skew, kurtosis = central_moments(jnp.full((3, 1000), jnp.float32(0.1)))
    assert float(jnp.max(variance)) < 1e-12
    assert np.isnan(skew).all()
    assert np.isnan(kurtosis).all()
    x = np.random.default_rng(0).standard_normal((2, 1000)) * 1e-3 + 0.1
    for got, want in zip(central_moments(jnp.asarray(x, jnp.float32)), moments(x), strict=True):
        np.testing.assert_allclose(got, want, rtol=0.05, atol=0.01)


def moments(x):
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1)
    return variance, (centred**3).mean(axis=-1) / variance**1.5, (centred**4).mean(axis=-1) / variance**2
