"""Processed weights are TransformerLens's: tensor by tensor, and a processed GPT-2's logits and ablations."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.models import Config, Rope, init, load
from jax_interp.models.processing import factor_attention, process
from jax_interp.surgery import Zero, at, edit, iter_blocks

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="parity needs torch and transformer-lens: `make parity`")
processing = pytest.importorskip("transformer_lens.weight_processing", reason="parity needs transformer-lens")

GPT2 = Config(
    n_layers=2, d_model=32, n_heads=4, d_mlp=48, vocab_size=61, n_ctx=24, act="gelu_tanh", gated_mlp=False,
    norm="layernorm", positions="learned", qkv_bias=True, out_bias=True, mlp_bias=True, tied_embedding=False,
    unembed_bias=True,
)  # fmt: skip
CASES = {
    "gpt2": GPT2,
    "neox": dataclasses.replace(GPT2, parallel="two norms", positions="rotary", rope=Rope(dim=4)),
    "gptj": dataclasses.replace(GPT2, parallel="one norm", positions="rotary", rope=Rope(dim=4)),
    "llama": Config(2, 32, 4, 48, 64, 24, n_kv_heads=2, tied_embedding=False),
    "qwen": Config(2, 32, 4, 48, 64, 24, n_kv_heads=2, tied_embedding=False, qkv_bias=True),
}


def random(config: Config):
    model = init(config, jax.random.key(0))
    leaves, tree = jax.tree.flatten(model)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [x + jnp.asarray(0.2 * rng.standard_normal(x.shape), x.dtype) for x in leaves])


def lens_weights(model) -> dict:
    """The model's weights under TransformerLens's names and in its shapes."""
    config, tensor = model.config, lambda p: torch.tensor(np.asarray(p[...]))
    grouped = "_" if config.n_kv_heads != config.n_heads else ""
    found = {"embed.W_E": tensor(model.embed.weight), "unembed.W_U": tensor(model.unembed.weight)}
    if model.unembed.bias is not None:
        found["unembed.b_U"] = tensor(model.unembed.bias)
    if model.pos_embed is not None:
        found["pos_embed.W_pos"] = tensor(model.pos_embed.weight)
    norms = {"ln_final": model.ln_final}
    blocks = [block for _, block in iter_blocks(model)]
    for i, block in enumerate(blocks):
        norms |= {f"blocks.{i}.ln1": block.ln1, f"blocks.{i}.ln2": block.ln2}
        for name in "qkv":
            linear, heads = getattr(block.attn, name), config.n_heads if name == "q" else config.n_kv_heads
            key = f"blocks.{i}.attn.{grouped if name != 'q' else ''}{{}}_{name.upper()}"
            weight = tensor(linear.weight).reshape(config.d_model, heads, -1)
            found[key.format("W")] = weight.permute(1, 0, 2).contiguous()
            if linear.bias is not None:
                found[key.format("b")] = tensor(linear.bias).reshape(heads, -1)
        found[f"blocks.{i}.attn.W_O"] = tensor(block.attn.o.weight).reshape(config.n_heads, -1, config.d_model)
        if block.attn.o.bias is not None:
            found[f"blocks.{i}.attn.b_O"] = tensor(block.attn.o.bias)
        for ours, theirs in (("up", "in"), ("gate", "gate"), ("down", "out")):
            linear = getattr(block.mlp, ours)
            if linear is not None:
                found[f"blocks.{i}.mlp.W_{theirs}"] = tensor(linear.weight)
                if linear.bias is not None:
                    found[f"blocks.{i}.mlp.b_{theirs}"] = tensor(linear.bias)
    for name, norm in norms.items():
        if norm is not None and norm.weight is not None:
            found[f"{name}.w"] = tensor(norm.weight)
            if config.norm == "layernorm":
                found[f"{name}.b"] = tensor(norm.bias)
    return found


def lens_config(config: Config) -> SimpleNamespace:
    return SimpleNamespace(
        n_layers=config.n_layers, n_heads=config.n_heads, d_head=config.d_head, d_model=config.d_model,
        d_vocab=config.vocab_size, gated_mlp=config.gated_mlp, act_fn=config.act,
        n_key_value_heads=None if config.n_kv_heads == config.n_heads else config.n_kv_heads,
        normalization_type="LN" if config.norm == "layernorm" else "RMS",
        parallel_attn_mlp=config.parallel != "no",
        positional_embedding_type="standard" if config.positions == "learned" else "rotary",
    )  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_weight(name):
    model = random(CASES[name])
    theirs = processing.ProcessWeights.process_weights(lens_weights(model), lens_config(model.config))
    ours = lens_weights(process(model))
    for key, value in theirs.items():
        if key in ours:
            np.testing.assert_allclose(ours.pop(key), value.numpy(), atol=2e-6, err_msg=key)
        elif key.endswith((".w", ".b")):  # norms: theirs have weights that change nothing
            np.testing.assert_array_equal(value.numpy(), 1 if key.endswith(".w") else 0, err_msg=key)
        else:
            pytest.fail(f"ours has no {key}")
    for key, value in ours.items():  # biases that a Linear of ours has because another's of its kind does
        assert not jnp.any(value.numpy()), key


def test_factored_heads_up_to_signs():
    model = random(GPT2)
    theirs = processing.ProcessWeights.refactor_factored_attn_matrices(lens_weights(model), lens_config(GPT2))
    ours = lens_weights(factor_attention(model))
    for i in range(GPT2.n_layers):
        at_layer = f"blocks.{i}.attn."
        for pair in (("W_Q", "W_K"), ("W_V", "W_O")):
            a, b = (np.asarray(ours[at_layer + name]) for name in pair)
            c, d = (theirs[at_layer + name].numpy() for name in pair)
            in_o = pair[1] == "W_O"
            signs = np.sign(np.sum(a * c, axis=1))[:, None, :]
            np.testing.assert_allclose(a * signs, c, atol=1e-4)
            np.testing.assert_allclose(b * (np.swapaxes(signs, 1, 2) if in_o else signs), d, atol=1e-4)
            if not in_o:
                for bias, name in (("b_Q", "q"), ("b_K", "k")):
                    got = np.asarray(ours[at_layer + bias]) * signs[:, 0]
                    np.testing.assert_allclose(got, theirs[at_layer + bias].numpy(), atol=1e-4, err_msg=name)
        for name in ("b_V", "b_O"):
            np.testing.assert_allclose(ours[at_layer + name], theirs[at_layer + name].numpy(), atol=2e-6)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A processed GPT-2 of TransformerLens and ours from the same files."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformer_lens.model_bridge import TransformerBridge

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=3, n_embd=48, n_head=4, vocab_size=101, n_positions=64, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    config._attn_implementation = "eager"
    hf = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.mul_(8) if parameter.ndim == 2 else parameter.add_(0.3 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("gpt2")
    hf.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(101)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "t0")
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder / "words")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "words")
    lens = TransformerBridge.boot_transformers("gpt2", hf_model=hf, tokenizer=tokenizer, device="cpu")
    lens.enable_compatibility_mode(no_processing=False)
    return lens.eval(), process(load(folder)[0])


def test_a_processed_gpt2_and_the_ablation_of_a_head_of_values(pair):
    lens, model = pair
    tokens = np.random.default_rng(0).integers(3, 101, (2, 17))

    def zero(value, hook):
        value = value.clone()
        value[:, :, 1] = 0
        return value

    with torch.no_grad():
        clean = lens(torch.tensor(tokens)).numpy()
        ablated = lens.run_with_hooks(torch.tensor(tokens), fwd_hooks=[("blocks.1.attn.hook_v", zero)]).numpy()
    np.testing.assert_allclose(model(jnp.asarray(tokens)), clean, atol=1e-4)
    ours = edit(model, at("blocks.1.attn.v", Zero(), head=1))(jnp.asarray(tokens))
    np.testing.assert_allclose(ours, ablated, atol=1e-4)
    assert np.max(np.abs(ablated - clean)) > 0.1
