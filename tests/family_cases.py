"""A small model of each family: what the laws, the parity tests and the table in docs/models.md run over.

A registered family without a case here gets one with the attributes of a Llama. If its attributes have other names, add
a case.
"""

from __future__ import annotations

from typing import Any

from jax_interp.models import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import Family, families

IDS = {"vocab_size": 101, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LIKE = IDS | {
    "num_hidden_layers": 3,
    "hidden_size": 48,
    "num_attention_heads": 6,
    "intermediate_size": 80,
    "max_position_embeddings": 256,
}
GROUPED = LIKE | {"num_key_value_heads": 2}
WINDOW = {"sliding_window": 5}
GPT2 = IDS | {"n_layer": 3, "n_embd": 48, "n_head": 4, "n_positions": 64}
NEO = IDS | {"num_layers": 4, "hidden_size": 48, "num_heads": 4, "max_position_embeddings": 64, "window_size": 5}
OPT = IDS | {"num_hidden_layers": 3, "hidden_size": 48, "word_embed_proj_dim": 48, "num_attention_heads": 4,
             "ffn_dim": 80, "max_position_embeddings": 64}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32, "rope_theta": 500.0}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10_000.0}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
ROPES = {"full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
         "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}  # fmt: skip

LENS = {"n_layers": 2, "d_model": 48, "n_heads": 4, "d_head": 12, "n_ctx": 64, "d_vocab": 101, "act_fn": None,
        "normalization_type": "LN", "attn_only": True}  # fmt: skip

REFERENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("GPT2LMHeadModel", GPT2),
    "GPT-2, inner size, exact gelu": ("GPT2LMHeadModel", GPT2 | {"n_inner": 56, "activation_function": "gelu"}),
    "GPT-Neo": ("GPTNeoForCausalLM", NEO | {"attention_types": [[["global", "local"], 2]]}),
    "GPT-J": ("GPTJForCausalLM", GPT2 | {"rotary_dim": 4}),
    "GPT-NeoX, Pythia": ("GPTNeoXForCausalLM", LIKE | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                                                         "partial_rotary_factor": 0.25}}),
    "GPT-NeoX, sequential, tied": ("GPTNeoXForCausalLM", LIKE | {"use_parallel_residual": False,
                                   "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default",
                                   "rope_theta": 1e4, "partial_rotary_factor": 1.0}}),
    "OPT": ("OPTForCausalLM", OPT),
    "Llama": ("LlamaForCausalLM", LIKE | {"num_key_value_heads": 6}),
    "Llama, grouped, frequencies of Llama 3": ("LlamaForCausalLM", GROUPED | {"rope_parameters": LLAMA3}),
    "Llama, YaRN": ("LlamaForCausalLM", GROUPED | {"rope_parameters": YARN}),
    "Llama, multi-query, tied": ("LlamaForCausalLM", LIKE | {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "Llama, linear, biases, odd heads": ("LlamaForCausalLM", LIKE | {"num_key_value_heads": 3, "attention_bias": True,
                                         "mlp_bias": True, "head_dim": 10, "rope_parameters": LINEAR}),
    "Mistral": ("MistralForCausalLM", GROUPED | WINDOW),
    "Mixtral": ("MixtralForCausalLM", GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "Qwen 2": ("Qwen2ForCausalLM", GROUPED),
    "Qwen 2, windows": ("Qwen2ForCausalLM", GROUPED | WINDOW | {"use_sliding_window": True, "max_window_layers": 1}),
    "Qwen 3": ("Qwen3ForCausalLM", GROUPED | {"head_dim": 10}),
    "Phi-2": ("PhiForCausalLM", LIKE | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                                           "partial_rotary_factor": 0.5}}),
    "Phi-3": ("Phi3ForCausalLM", GROUPED | WINDOW),
    "Gemma": ("GemmaForCausalLM", GROUPED | {"head_dim": 10}),
    "Gemma 2": ("Gemma2ForCausalLM", GROUPED | WINDOW | {"head_dim": 10, "query_pre_attn_scalar": 13,
                "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    "Gemma 3": ("Gemma3ForCausalLM", GROUPED | WINDOW | {"head_dim": 10, "query_pre_attn_scalar": 13,
                "layer_types": MIXED, "rope_parameters": ROPES}),
    "OLMo 2": ("Olmo2ForCausalLM", GROUPED),
    "StableLM": ("StableLmForCausalLM", GROUPED | {"use_qkv_bias": True, "rope_parameters": {"rope_type": "default",
                 "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    "StableLM, parallel": ("StableLmForCausalLM", GROUPED | {"use_parallel_residual": True}),
}  # fmt: skip
"""Those that transformers has too: {case: (architecture, the values of its `config.json`)}."""

_OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "TransformerLens, attention only": ("HookedTransformer", LENS),
    "TransformerLens, SoLU": ("HookedTransformer", LENS | {"attn_only": False, "d_mlp": 80, "act_fn": "solu_ln"}),
}
_WITH_A_CASE = {architecture for architecture, _ in (REFERENCES | _OTHERS).values()}
_OTHERS |= {f.model_type: (f.architecture, GROUPED) for f in families() if f.architecture not in _WITH_A_CASE}
CASES = REFERENCES | _OTHERS


def config_of(case: str) -> Config:
    """The config of a case."""
    return family_of_case(case).read(Attributes(CASES[case][1], case))


def family_of_case(case: str) -> Family:
    """The family that the architecture of a case names."""
    return next(family for family in families() if family.architecture == CASES[case][0])


def reference(case: str) -> Any:
    """The model of transformers: float32, eager attention, weights so large that attention is peaky."""
    import torch
    import transformers

    architecture, values = REFERENCES[case]
    model_class = getattr(transformers, architecture)
    config_class = model_class.config_class
    large = 6 if case == "GPT-Neo" else 10  # whose scores are not divided by sqrt(d_head)
    torch.manual_seed(0)
    model = model_class(config_class(**values, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(large)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model
