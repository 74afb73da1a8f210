"""Inputs and outputs of modules of small random models of transformers: FOLDER/<model_type>/{model, data.npz}.

python transformers_values.py FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

SIZES = {"vocab_size": 61, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WIDE = SIZES | {"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2,
                "intermediate_size": 40, "max_position_embeddings": 32}  # fmt: skip
GEMMA = WIDE | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}
GPT2 = SIZES | {"n_layer": 2, "n_embd": 24, "n_head": 4, "n_positions": 32}
MODELS = {
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt_neox": (
        "GPTNeoXForCausalLM",
        {name: n for name, n in WIDE.items() if name != "num_key_value_heads"} | {"rotary_pct": 1.0},
    ),
    "llama": ("LlamaForCausalLM", WIDE),
    "qwen3": ("Qwen3ForCausalLM", WIDE | {"head_dim": 8}),
    "gemma2": ("Gemma2ForCausalLM", GEMMA),
    "gemma3_text": ("Gemma3ForCausalLM", GEMMA),
    "olmo2": ("Olmo2ForCausalLM", WIDE),
}


def first(value):
    while isinstance(value, (tuple, list)):
        value = value[0]
    return value


def record(model, tokens):
    """{path.input or path.output: array} of the modules of block 1, of the embedding, and the logits."""
    found = {}

    def hook(name):
        def keep(module, args, kwargs, output):
            given = first(args) if args else kwargs.get("hidden_states")
            for side, value in (("input", given), ("output", first(output))):
                if torch.is_tensor(value) and value.is_floating_point():
                    found[f"{name}.{side}"] = value.numpy().copy()

        return keep

    for name, module in model.named_modules():
        if ".1" in f".{name}." or "embed" in name or name.endswith("wte"):
            module.register_forward_hook(hook(name), with_kwargs=True)
    with torch.no_grad():
        found["logits"] = model(tokens).logits.numpy()
    return found


def main():
    for model_type, (architecture, values) in MODELS.items():
        torch.manual_seed(0)
        kind = getattr(transformers, architecture)
        model = kind(kind.config_class(**values, attn_implementation="eager")).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        folder = Path(sys.argv[1]) / model_type
        model.save_pretrained(folder / "model")
        if model_type == "gpt_neox":  # this version also writes new names of what rotary_pct and rotary_emb_base say
            config = json.loads((folder / "model" / "config.json").read_text())
            kept = {name: v for name, v in config.items() if name not in ("partial_rotary_factor", "rope_theta")}
            (folder / "model" / "config.json").write_text(json.dumps(kept))
        tokens = torch.randint(3, 60, (2, 7))
        np.savez(folder / "data.npz", tokens=tokens.numpy(), **record(model, tokens))
        (folder / "done.json").write_text(json.dumps({"transformers": transformers.__version__}))


if __name__ == "__main__":
    main()
