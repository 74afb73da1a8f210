"""The published sizes of some models, for planning without their files.

    model = public_shapes("llama-3.1-8b")              a Decoder of shapes: no weights, no network

Each entry has the attributes of the model's `config.json` on the Hugging Face hub that decide shapes and computation.
The number of parameters is the published one. A test compares it with the shapes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxtyping import DTypeLike

from jax_interp.models.decoder import Decoder
from jax_interp.models.hf.load import shapes_of


@dataclasses.dataclass(frozen=True)
class PublicShape:
    """The size of a published model.

    Attributes:
      name: the short name.
      source: the repository on the Hugging Face hub whose `config.json` has these attributes.
      parameters: the number of parameters that its files hold.
      attributes: the attributes.
    """

    name: str
    source: str
    parameters: int
    attributes: dict[str, Any]


def _gpt2(name: str, parameters: int, width: int, layers: int, heads: int) -> PublicShape:
    sizes = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": 1024, "vocab_size": 50257}
    common = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "layer_norm_epsilon": 1e-5}
    return PublicShape(name, f"openai-community/{name}", parameters, common | sizes)


def _pythia(size: str, parameters: int, width: int, layers: int, heads: int, vocab: int = 50304) -> PublicShape:
    attributes = {
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_size": width,
        "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": 4 * width,
        "vocab_size": vocab, "max_position_embeddings": 2048, "rotary_pct": 0.25, "rotary_emb_base": 10000,
        "use_parallel_residual": True, "hidden_act": "gelu", "layer_norm_eps": 1e-5, "tie_word_embeddings": False,
        "dtype": "float16",
    }  # fmt: skip
    return PublicShape(f"pythia-{size}", f"EleutherAI/pythia-{size}", parameters, attributes)


def _llama(
    name: str, source: str, parameters: int, sizes: tuple[int, int, int, int], factor: float = 0.0, d_head: int = 128
) -> PublicShape:
    """A Llama 3 model of (width, layers, heads, neurons). `factor`: of the rotation's scaling, 0 if it has none."""
    width, layers, heads, inner = sizes
    scaling = {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    attributes = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": d_head,
        "intermediate_size": inner, "vocab_size": 128256, "max_position_embeddings": 131072 if factor else 8192,
        "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": factor == 32, "dtype": "bfloat16",
        "rope_scaling": scaling if factor else None,
    }  # fmt: skip
    return PublicShape(name, source, parameters, attributes)


def _gemma2(size: str, parameters: int, width: int, layers: int, heads: int, kv_heads: int, inner: int) -> PublicShape:
    attributes = {
        "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_size": width,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 256,
        "intermediate_size": inner, "vocab_size": 256000, "max_position_embeddings": 8192, "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0, "hidden_activation": "gelu_pytorch_tanh", "dtype": "float32",
    }  # fmt: skip
    return PublicShape(f"gemma-2-{size}", f"google/gemma-2-{size}", parameters, attributes)


PUBLIC_SHAPES = (
    _gpt2("gpt2", 124_439_808, 768, 12, 12),
    _gpt2("gpt2-medium", 354_823_168, 1024, 24, 16),
    _gpt2("gpt2-large", 774_030_080, 1280, 36, 20),
    _gpt2("gpt2-xl", 1_557_611_200, 1600, 48, 25),
    _pythia("70m", 70_426_624, 512, 6, 8),
    _pythia("160m", 162_322_944, 768, 12, 12),
    _pythia("410m", 405_334_016, 1024, 24, 16),
    _pythia("1b", 1_011_781_632, 2048, 16, 8),
    _pythia("1.4b", 1_414_647_808, 2048, 24, 16),
    _pythia("2.8b", 2_775_208_960, 2560, 32, 32),
    _pythia("6.9b", 6_857_302_016, 4096, 32, 32, 50432),
    _pythia("12b", 11_846_072_320, 5120, 36, 40, 50688),
    _llama("llama-3.2-1b", "meta-llama/Llama-3.2-1B", 1_235_814_400, (2048, 16, 32, 8192), 32.0, 64),
    _llama("llama-3.2-3b", "meta-llama/Llama-3.2-3B", 3_212_749_824, (3072, 28, 24, 8192), 32.0),
    _llama("llama-3-8b", "meta-llama/Meta-Llama-3-8B", 8_030_261_248, (4096, 32, 32, 14336)),
    _llama("llama-3.1-8b", "meta-llama/Llama-3.1-8B", 8_030_261_248, (4096, 32, 32, 14336), 8.0),
    _llama("llama-3.1-70b", "meta-llama/Llama-3.1-70B", 70_553_706_496, (8192, 80, 64, 28672), 8.0),
    _gemma2("2b", 2_614_341_888, 2304, 26, 8, 4, 9216),
    _gemma2("9b", 9_241_705_984, 3584, 42, 16, 8, 14336),
)


def find_public_shape(name: str) -> PublicShape | None:
    """The entry with this short name, or of this repository on the hub. None if there is none."""
    return next((one for one in PUBLIC_SHAPES if name.lower() in (one.name, one.source.lower())), None)


def public_shapes(name: str, *, dtype: DTypeLike | None = None, stacked: bool = True) -> Decoder | None:
    """The shapes of a published model, as `load_shapes` would read them from its `config.json`.

    Args:
      name: a short name ("gpt2", "llama-3.1-8b") or the name on the hub. Upper and lower case are the same.
      dtype: the dtype of the parameters. Default: the published one.
      stacked: True: one scanned `Stack` of blocks. False: a list of blocks.

    Returns:
      The model of shapes. None: there is no entry of this name.
    """
    found = find_public_shape(name)
    return None if found is None else shapes_of(found.attributes, found.source, dtype=dtype, stacked=stacked)
