"""The model of the forward and reading benchmarks, for every library: the layout of GPT-2 with random weights."""

from __future__ import annotations

import os
from typing import Any

FULL = {
    "layers": 12,
    "d_model": 768,
    "heads": 12,
    "d_mlp": 3072,
    "vocab": 50257,
    "n_ctx": 1024,
    "batch": 4,
    "pos": 128,
    "gemm": 4096,
}
TINY = {**FULL, "layers": 2, "d_model": 64, "heads": 4, "d_mlp": 128, "vocab": 500, "n_ctx": 64, "pos": 16, "gemm": 256}


def forward_flops(sizes: dict[str, Any]) -> float:
    """FLOPs of the matrix products in one forward pass: 2 for each weight and token, and those of full attention."""
    tokens, d = sizes["batch"] * sizes["pos"], sizes["d_model"]
    layer = 2 * (4 * d * d + 2 * d * sizes["d_mlp"]) + 4 * sizes["pos"] * d
    return float(tokens * (sizes["layers"] * layer + 2 * d * sizes["vocab"]))


def our_model(sizes: dict[str, Any], stacked: bool):
    """(model, tokens) in `sizes["dtype"]`, or float32."""
    import jax

    from jax_interp.models import Config, init

    config = Config(
        n_layers=sizes["layers"],
        d_model=sizes["d_model"],
        n_heads=sizes["heads"],
        d_mlp=sizes["d_mlp"],
        vocab_size=sizes["vocab"],
        n_ctx=sizes["n_ctx"],
        act="gelu_tanh",
        gated_mlp=False,
        norm="layernorm",
        positions="learned",
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied_embedding=True,
    )
    model = init(config, jax.random.key(0), stacked=stacked, dtype=sizes.get("dtype", "float32"))
    tokens = jax.random.randint(jax.random.key(1), (sizes["batch"], sizes["pos"]), 0, sizes["vocab"])
    return model, tokens


def hf_model(sizes: dict[str, Any], attention: str = "sdpa"):
    """(transformers' model, tokens), without gradients, and with one thread for each core."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    config = GPT2Config(
        n_layer=sizes["layers"],
        n_embd=sizes["d_model"],
        n_head=sizes["heads"],
        n_inner=sizes["d_mlp"],
        vocab_size=sizes["vocab"],
        n_positions=sizes["n_ctx"],
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    config._attn_implementation = attention
    tokens = torch.randint(0, sizes["vocab"], (sizes["batch"], sizes["pos"]))
    return GPT2LMHeadModel(config).eval(), tokens


def lens_model(sizes: dict[str, Any]):
    """(TransformerLens's bridge around the same model, tokens). Attention is eager, so that its pattern can be read."""
    import tempfile

    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

    model, tokens = hf_model(sizes, "eager")
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(sizes["vocab"])}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with tempfile.TemporaryDirectory() as folder:  # loaded from disk, because the bridge copies a tokenizer by its path
        special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "t0")
        PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        bridge = TransformerBridge.boot_transformers("gpt2", hf_model=model, tokenizer=tokenizer, device="cpu")
    return bridge.eval(), tokens
