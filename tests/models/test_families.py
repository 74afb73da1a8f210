"""What holds in every family: parts sum, layouts and the cache agree, padding never leaks, names are one vocabulary."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import CASES, config_of
from small_models import peaky

from jax_interp.models import init, load_shapes
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import families, family_for
from jax_interp.models.hf.fill import parameters
from jax_interp.models.sharding import rules
from jax_interp.surgery import read, replan, sites
from jax_interp.training.sharding import specs

DOC = Path(__file__).parents[2] / "docs" / "models.md"
BY_ARCHITECTURE = {family.architecture: family for family in families()}


# One of each kind of block, norm, attention and position in the fast run; parity runs all of them.
FAST = ("GPT-2", "GPT-Neo", "GPT-J", "Llama, grouped, frequencies of Llama 3", "Mixtral", "Gemma 3", "OLMo 2")


@pytest.fixture(
    scope="module", params=[case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def model(request):
    return peaky(config_of(request.param))


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.random.default_rng(0).integers(0, 101, (2, 11)), jnp.int32)


def test_every_architecture_has_a_case():
    assert {architecture for architecture, _ in CASES.values()} == set(BY_ARCHITECTURE) - {"HookedTransformer"}


@pytest.mark.parametrize("case", CASES)
def test_a_config_is_written_and_read_back(case):
    config = config_of(case)
    own = BY_ARCHITECTURE[CASES[case][0]]
    assert own.has(config)
    family, values = family_for(config)
    again = family.read(Attributes(values, "config.json"))
    assert again == config


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_has_a_tensor_and_a_rule(case):
    config = config_of(case)
    abstract = jax.eval_shape(lambda key: init(config, key), jax.random.key(0))
    table = BY_ARCHITECTURE[CASES[case][0]].tensors(config)
    assert {p.name for p in parameters(abstract)} == set(table)
    specs(abstract, rules(config))  # raises for a parameter without a rule, and for a rule without a parameter


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


def test_a_directory_is_known_by_its_config_alone(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [CASES["Qwen 3"][0]], **CASES["Qwen 3"][1]}))
    for dtype, expected in ((None, "float32"), ("bfloat16", "bfloat16")):
        shapes = load_shapes(tmp_path, dtype=dtype)
        assert shapes.config == config_of("Qwen 3")
        assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes)} == {expected}
        found = sites(shapes)(jax.ShapeDtypeStruct((1, 3), jnp.int32))
        assert found["logits"].shape == (1, 3, 101)
