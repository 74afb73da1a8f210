"""The laws of every registered family: parts sum, layouts and the cache agree, padding never leaks, files come back."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import CASES, config_of, family_of_case
from small_models import LLAMA_LIKE, peaky

from jax_interp.core.errors import UserError
from jax_interp.core.leaves import flatten
from jax_interp.models import init, load, load_shapes, save
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import FAMILIES, family_for
from jax_interp.models.hf.fill import parameters
from jax_interp.models.hf.llama import Llama
from jax_interp.models.sharding import rules
from jax_interp.surgery import read, replan, sites
from jax_interp.training.sharding import specs

DOC = Path(__file__).parents[2] / "docs" / "models.md"

# The computations of these are those of other cases. They run with the slow tests, and in parity.
SLOW = {
    *("GPT-2, inner size, exact gelu", "GPT-NeoX, Pythia", "GPT-NeoX, sequential, tied", "OPT"),
    *("Llama", "Llama, YaRN", "Llama, multi-query, tied", "Llama, linear, biases, odd heads"),
    *("Mistral", "Qwen 2", "Qwen 2, windows", "Qwen 3", "Phi-2", "Phi-3", "Gemma", "Gemma 2"),
    *("StableLM", "StableLM, parallel", "TransformerLens, attention only", "TransformerLens, SoLU"),
}


@pytest.fixture(
    scope="module", params=[pytest.param(case, marks=pytest.mark.slow) if case in SLOW else case for case in CASES]
)
def model(request):
    return peaky(config_of(request.param))


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.random.default_rng(0).integers(0, 101, (2, 11)), jnp.int32)


@pytest.mark.parametrize("case", CASES)
def test_a_config_is_written_and_read_back(case):
    config = config_of(case)
    assert family_of_case(case).has(config)
    family, values = family_for(config)
    assert family.read(Attributes(values, "config.json")) == config


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_has_a_tensor_and_a_rule(case):
    config = config_of(case)
    abstract = jax.eval_shape(lambda key: init(config, key), jax.random.key(0))
    assert {p.name for p in parameters(abstract)} == set(family_of_case(case).tensors(config))
    specs(abstract, rules(config))  # raises for a parameter without a rule, and for a rule without a parameter


@pytest.mark.parametrize(("case", "dtype"), list(zip(CASES, itertools.cycle(("float32", "bfloat16", "float16")))))
def test_saving_and_loading_give_the_same_bits(case, dtype, tmp_path):
    """In the layout of the family itself, and in that of the most general family that has the model."""
    model = peaky(config_of(case), dtype=jnp.dtype(dtype))
    for layout in {family_of_case(case).model_type, family_for(model.config)[0].model_type}:
        back, _ = load(save(model, tmp_path / layout, family=layout))
        assert back.config == model.config
        for (name, leaf), (other_name, other) in zip(flatten(back).items(), flatten(model).items(), strict=True):
            assert (name, leaf.dtype) == (other_name, other.dtype)
            np.testing.assert_array_equal(leaf, other, err_msg=name)


def test_a_family_of_ones_own_takes_part_where_it_is_defined(tmp_path, monkeypatch):
    monkeypatch.setattr(FAMILIES, "_variants", dict(FAMILIES._variants))

    @FAMILIES.register
    class Own(Llama):
        model_type = "own"
        architecture = "OwnForCausalLM"

        def read(self, attributes):
            return dataclasses.replace(super().read(attributes), qk_norm="all heads")

    model = peaky(dataclasses.replace(LLAMA_LIKE, qk_norm="all heads"))
    assert load_shapes(save(model, tmp_path / "own")).config == model.config
    assert json.loads((tmp_path / "own" / "config.json").read_text())["architectures"] == ["OwnForCausalLM"]
    assert family_for(LLAMA_LIKE)[0].model_type == "llama", "one that derives from a family does not take its models"


def test_parts_sum_to_the_stream_and_to_the_logits_in_every_layout(model, call, tokens):
    config = model.config
    writers = ["blocks.*.attn_out"] + (["blocks.*.mlp_out"] if config.d_mlp else [])
    starts = ["embed"] + (["pos_embed"] if config.positions in ("learned", "sinusoidal") else [])
    last = "ln_final.normalized"
    asked = read(model, *starts, *writers, "blocks.*.resid_post", "blocks.*.attn.result", last)
    logits, acts = call(asked, tokens)

    stream = sum(acts[name] for name in starts)[None] + jnp.cumsum(sum(acts[name] for name in writers), axis=0)
    scale = float(jnp.max(jnp.abs(acts["blocks.*.resid_post"])))
    np.testing.assert_allclose(stream, acts["blocks.*.resid_post"], atol=1e-6 * scale)

    heads = acts["blocks.*.attn.result"].sum(3)
    attn = model.blocks[0].block.attn
    if attn.o.bias is not None:
        heads = heads + attn.o.bias[...][:, None, None]
    if config.norm_places == "before":  # elsewhere a norm stands between the heads and the stream
        np.testing.assert_allclose(heads, acts["blocks.*.attn_out"], atol=2e-6 * scale)

    final, weight = acts[last], model.ln_final.weight[...][None, None]
    final = final * (weight + 1 if config.norm_offset else weight)
    if config.norm == "layernorm":
        final = final + model.ln_final.bias[...][None, None]
    head = model.embed.weight[...].T if model.unembed is None else model.unembed.weight[...]
    expected = final @ head
    if config.unembed_bias:
        expected = expected + model.unembed.bias[...][None, None]
    if config.logit_softcap:
        expected = config.logit_softcap * jnp.tanh(expected / config.logit_softcap)
    np.testing.assert_allclose(expected, logits, atol=2e-5)

    unrolled, others = call(replan(asked, "*"), tokens)
    # bitwise, or last bits in each layer where what is fused around a product differs
    bound = 4 * config.n_layers * np.finfo(np.float32).eps
    np.testing.assert_allclose(unrolled, logits, rtol=0, atol=bound * float(jnp.max(jnp.abs(logits))))
    stacked, apart = (a["blocks.*.resid_post"] for a in (acts, others))
    np.testing.assert_allclose(apart, stacked, rtol=0, atol=bound * scale)


def test_prefill_is_step_by_step(model, call, tokens):
    """With rows of different lengths, and past the end of a sliding window."""
    mask = jnp.ones_like(tokens, dtype=bool).at[0, :3].set(False)
    whole = call(model, tokens, mask=mask)
    start = jax.jit(lambda model, tokens, mask: model(tokens, mask=mask, cache=11))
    logits, cache = start(model, tokens[:, :6], mask[:, :6])
    got = [logits]
    for i in range(6, 11):
        logits, cache = call(model, tokens[:, i : i + 1], cache=cache)
        got.append(logits)
    np.testing.assert_allclose(jnp.concatenate(got, 1)[mask], whole[mask], atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_never_leaks(model, call, tokens, side):
    width = ((0, 0), (4, 0) if side == "left" else (0, 4))
    mask = jnp.pad(jnp.ones_like(tokens, dtype=bool), width)
    real = slice(4, None) if side == "left" else slice(0, 11)
    zeros, others = jnp.pad(tokens, width), jnp.pad(tokens, width, constant_values=7)
    one, other = (call(model, padded, mask=mask)[:, real] for padded in (zeros, others))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(one, call(model, tokens), atol=1e-4)


def test_grouped_heads_are_expanded_ones(model, call, tokens):
    config = model.config
    if config.n_kv_heads == config.n_heads or config.qk_norm == "all heads":
        pytest.skip("no head is shared here, or all are normed as one vector")
    repeats = config.n_heads // config.n_kv_heads
    expanded = dataclasses.replace(config, n_kv_heads=config.n_heads)
    wide = jax.eval_shape(lambda key: init(expanded, key), jax.random.key(0))
    leaves = []
    for p, leaf, new in zip(parameters(model), jax.tree.leaves(model), jax.tree.leaves(wide), strict=True):
        if re.search(r"attn\.[kv]\.", p.name):
            by_head = leaf.reshape(*leaf.shape[:-1], config.n_kv_heads, config.d_head)
            leaf = jnp.repeat(by_head, repeats, axis=-2).reshape(new.shape)
        leaves.append(leaf)
    wide = jax.tree.unflatten(jax.tree.structure(wide), leaves)
    np.testing.assert_allclose(call(wide, tokens), call(model, tokens), atol=2e-5)


def names_of(case: str) -> set[str]:
    config = config_of(case)
    abstract = jax.eval_shape(lambda key: init(config, key), jax.random.key(0))
    found = sites(abstract)(jax.ShapeDtypeStruct((1, 3), jnp.int32))
    return {re.sub(r"^blocks\.\d+\.", "blocks.*.", name) for name in found}


def table() -> str:
    """Which value exists where, as markdown."""
    by_family: dict[str, set[str]] = {}
    for case in CASES:
        by_family.setdefault(case.split(",")[0], set()).update(names_of(case))
    order = list(dict.fromkeys(name for case in CASES for name in sorted(names_of(case))))
    everywhere = [name for name in order if all(name in names for names in by_family.values())]
    lines = ["In every family of the table: " + ", ".join(f"`{name}`" for name in everywhere) + ".", ""]
    lines += ["| | " + " | ".join(by_family) + " |", "|---|" + "---|" * len(by_family)]
    for name in order:
        if name not in everywhere:
            marks = ("×" if name in names else "" for names in by_family.values())
            lines.append(f"| `{name}` | " + " | ".join(marks) + " |")
    return "\n".join(lines)


def test_the_table_in_the_docs_is_true():
    assert table() in DOC.read_text(), f"docs/models.md should have this table:\n\n{table()}"


def test_gpt_neox_may_give_its_rotation_twice_but_not_two_rotations(tmp_path):
    architecture, values = CASES["GPT-NeoX, Pythia"]
    own = {name: value for name, value in values.items() if name != "rope_parameters"}
    own |= {"architectures": [architecture], "rotary_emb_base": 500.0, "rotary_pct": 0.5}
    twice = {"rope_theta": 500.0, "partial_rotary_factor": 0.5}
    (tmp_path / "config.json").write_text(json.dumps(own | twice))
    rope = load_shapes(tmp_path).config.rope
    assert (rope.base, rope.dim) == (500.0, 4)
    for name, other in (("rope_theta", 10_000.0), ("partial_rotary_factor", 0.25)):
        (tmp_path / "config.json").write_text(json.dumps(own | twice | {name: other}))
        with pytest.raises(UserError, match=f"{name}={other}, supported is .*: it must be rotary_"):
            load_shapes(tmp_path)


def test_a_directory_is_known_by_its_config_alone(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [CASES["Qwen 3"][0]], **CASES["Qwen 3"][1]}))
    for dtype, expected in ((None, "float32"), ("bfloat16", "bfloat16")):
        shapes = load_shapes(tmp_path, dtype=dtype)
        assert shapes.config == config_of("Qwen 3")
        assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes)} == {expected}
        found = sites(shapes)(jax.ShapeDtypeStruct((1, 3), jnp.int32))
        assert found["logits"].shape == (1, 3, 101)
