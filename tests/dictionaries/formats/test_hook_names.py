"""Names of values in other libraries, as addresses.

tests/parity/test_hook_names_of_transformers.py compares the values themselves.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import CASES, config_of, family_of_case
from small_models import peaky

from jax_interp import call, read, sites
from jax_interp.core.errors import UserError
from jax_interp.dictionaries import Dictionary, ReLU
from jax_interp.dictionaries.formats import hook_names
from jax_interp.dictionaries.formats.hook_names import hook_value, module_value
from jax_interp.dictionaries.formats.norm_weight import read_normalized
from jax_interp.dictionaries.forms.cross_layer import from_transcoders
from jax_interp.dictionaries.storage import Saved
from jax_interp.models import init

WITH_MODULES = [case for case in CASES if not case.startswith("TransformerLens")]


@pytest.mark.parametrize("case", WITH_MODULES)
def test_every_translated_value_exists_in_a_model_of_the_family(case):
    model_type, config = family_of_case(case).model_type, config_of(case)
    model = jax.eval_shape(lambda key: init(config, key), jax.random.key(0))
    exist = set(sites(model)(jnp.zeros((1, 4), jnp.int32)))
    layout = hook_names._layouts()[model_type]
    assert len(layout) > 8
    assert "blocks.{}.attn.z" in {value.address for value in layout.values()}
    for value in layout.values():
        parallel = config.parallel == "one norm" and model_type == "stablelm"
        for address in (value.address, value.normalized):
            if address is not None and not (parallel and ".ln2" in address):
                assert address.replace("{}", "1") in exist, (case, address)


@pytest.mark.parametrize(
    ("name", "model", "address"),
    [
        ("model.layers.5.output", None, "blocks.5.resid_post"),
        ("model.layers.5.input", None, "blocks.5.resid_pre"),
        ("model.language_model.layers.5.output", "google/gemma-3-4b-pt", "blocks.5.resid_post"),
        ("model.layers.11.self_attn.o_proj.input", "google/gemma-3-1b-it", "blocks.11.attn.z"),
        ("model.layers.5.post_feedforward_layernorm.output", None, "blocks.5.mlp_out"),
        ("model.layers.5.post_attention_layernorm.output", "google/gemma-2-2b", "blocks.5.attn_out"),
        ("layers.3.mlp.output", "EleutherAI/pythia-70m-deduped", "blocks.3.mlp_out"),
        ("gpt_neox.layers.3.mlp.output", None, "blocks.3.mlp_out"),
        ("model.layers.3.mlp.output", "meta-llama/Llama-3.2-1B", "blocks.3.mlp_out"),
        ("h.3.output", None, "blocks.3.resid_post"),
        ("transformer.h.3.mlp.output", None, "blocks.3.mlp_out"),
        ("transformer.h.3.attn.c_proj.input", "openai-community/gpt2", "blocks.3.attn.z"),
        ("layers.0.mlp.down_proj.input", "Qwen/Qwen3-4B", "blocks.0.mlp.post"),
        ("embed_in.output", None, "embed"),
        ("blocks.5.hook_resid_post", None, "blocks.5.resid_post"),
        ("blocks.5.attn.hook_z", None, "blocks.5.attn.z"),
        ("blocks.5.ln2.hook_normalized", None, "blocks.5.ln2.normalized"),
        ("blocks.5.mlp.hook_out", "Qwen/Qwen3-4B", "blocks.5.mlp_out"),
        ("hook_embed", None, "embed"),
    ],
)
def test_known_names(name, model, address):
    assert hook_value(name, model).address == address


@pytest.mark.parametrize(
    ("name", "model", "why"),
    [
        ("model.layers.5.mlp.output", "google/gemma-2-2b", "a norm follows"),
        ("model.layers.5.mlp.output", None, "depends on the family"),
        ("model.layers.5.post_attention_layernorm.output", None, "depends on the family"),
        ("model.layers.5.pre_feedforward_layernorm.output", "google/gemma-3-1b-pt", "times the norm's weight"),
        ("blocks.5.mlp.hook_in", "Qwen/Qwen3-4B", "times the norm's weight"),
        ("blocks.5.mlp.hook_in", None, "depends on the family"),
        ("blocks.5.mlp.hook_out", "google/gemma-2-2b", "a norm follows"),
        ("blocks.5.hook_mlp_in", "google/gemma-3-1b-pt", "before the norm"),
        ("embed_tokens.output", "google/gemma-2-2b", "scales its embeddings"),
        ("vision_tower.encoder.layers.3.output", None, "no value here"),
        ("layers.3.qkv.output", None, "no value here"),
        ("blocks.3.hook_q_input", None, "no value here"),
        ("blocks.*.hook_resid_post", None, "no value here"),
        ("", None, "not the name of a value"),
    ],
)
def test_what_has_no_address_gets_none_and_a_reason(name, model, why):
    value = hook_value(name, model)
    assert value.address is None
    assert why in str(value.note)
    with pytest.raises(UserError, match="has no address here"):
        hook_names.address_of(value, name)


def test_names_of_models():
    told = {
        "google/gemma-2b": "gemma", "google/gemma-1.1-7b-it": "gemma", "google/gemma-2-2b": "gemma2",
        "gemma-3-1b-pt": "gemma3_text", "meta-llama/Llama-3.1-8B": "llama", "Qwen/Qwen3-1.7B-Base": "qwen3",
        "Qwen/Qwen3-30B-A3B-Base": None, "Qwen/Qwen3.5-9B-Base": None, "Qwen/Qwen2.5-7B-Instruct": "qwen2",
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": "llama", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": "qwen2",
        "EleutherAI/gpt-neox-20b": "gpt_neox", "EleutherAI/gpt-neo-125m": "gpt_neo", "EleutherAI/gpt-j-6b": "gptj",
        "openai-community/gpt2-medium": "gpt2", "distilgpt2": "gpt2", "facebook/opt-125m": "opt",
        "allenai/OLMo-2-1124-7B": "olmo2", "mistralai/Mistral-7B-v0.1": "mistral", "microsoft/phi-2": "phi",
        "microsoft/Phi-3-mini-4k-instruct": "phi3", "openai/gpt-oss-20b": None, None: None,
    }  # fmt: skip
    assert {name: hook_names.model_type_of(name) for name in told} == told


@pytest.mark.parametrize("case", ["Gemma 2", "GPT-2", "Qwen 3"])
@pytest.mark.parametrize("cross_layer", [False, True])
def test_the_weight_of_a_norm_moves_into_the_encoder(case, cross_layer):
    model, rng = peaky(config_of(case)), np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(3, 90, (2, 6)))
    _, acts = call(read(model, "blocks.*.ln2.normalized"), tokens)
    d, m, layers = model.config.d_model, 30, range(model.config.n_layers)
    random = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    one = [
        Dictionary(random(d, m), random(m), random(m, 7), random(7), ReLU(), random(d, 7), centred=False)
        for _ in layers
    ]
    addresses = tuple(f"blocks.{i}.ln2.normalized" for i in layers)

    normalized = [acts[address] for address in addresses]
    norms = [block.ln2 for block in model.blocks[0].unstack()]
    inputs = [
        n * norm.multiplier()[None, None] + (0.0 if norm.bias is None else norm.bias[...][None, None])
        for n, norm in zip(normalized, norms, strict=True)
    ]
    if cross_layer:
        saved = Saved(from_transcoders(one), None, None, normalized=addresses)
        x, n = jnp.stack(inputs), jnp.stack(normalized)
    else:
        saved, x, n = Saved(one[1], None, None, normalized=addresses[1]), inputs[1], normalized[1]
    with pytest.raises(UserError, match="read_normalized"):
        saved.reads()
    folded = read_normalized(saved, model)
    assert folded.reads() == saved.normalized
    assert folded.normalized is None
    np.testing.assert_allclose(folded.dictionary.encode(n), saved.dictionary.encode(x), atol=2e-3, rtol=2e-5)
    np.testing.assert_allclose(folded.dictionary(n), saved.dictionary(x), atol=2e-2, rtol=2e-5)


def test_a_model_without_these_norms_is_refused():
    model = peaky(config_of("OLMo 2"))
    W = jnp.ones((48, 5))
    dictionary = Dictionary(W, jnp.zeros(5), W.T, jnp.zeros(48), ReLU(), centred=False)
    with pytest.raises(UserError, match=r"no norm blocks\.1\.ln2"):
        read_normalized(Saved(dictionary, None, None, normalized="blocks.1.ln2.normalized"), model)
    with pytest.raises(UserError, match="not the whole output"):
        read_normalized(Saved(dictionary, "blocks.1.resid_post", None), model)
    bare = peaky(dataclasses.replace(config_of("Qwen 3"), norm_affine=False))
    with pytest.raises(UserError, match="has no weight"):
        read_normalized(Saved(dictionary, None, None, normalized="blocks.1.ln2.normalized"), bare)
    centred = dataclasses.replace(dictionary, centred=True)
    with pytest.raises(UserError, match="subtracts b_dec"):
        read_normalized(Saved(centred, None, None, normalized="blocks.1.ln2.normalized"), peaky(config_of("Qwen 3")))


def test_module_value_defaults_to_the_output():
    assert module_value("layers.2") == module_value("layers.2", "output") != module_value("layers.2", "input")
