"""Reading a `config.json`: what is absent means what it means to transformers, and null is not absent.

The parity tests compare logits. Here are the parts of that law that need no torch.
"""

from __future__ import annotations

import json

import pytest
from config_variants import DEFAULTS
from family_cases import REFERENCES, family_of_case

from jax_interp.core.errors import UserError
from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes


def config(case: str, values: dict) -> Config | None:
    """Our config of a `config.json`; None if it is refused."""
    attributes = Attributes(values, "config.json")
    try:
        found = family_of_case(case).read(attributes)
        attributes.close()
    except UserError:
        return None
    return found


@pytest.mark.hardening
def test_absent_and_null_mean_what_they_mean_to_transformers(tally):
    tried, broken = 0, []
    for case, defaults in json.loads(DEFAULTS.read_text()).items():
        values = REFERENCES[case][1]
        for how in ("absent", "null"):
            for key, meaning in defaults[how].items():
                rest = {name: value for name, value in values.items() if name != key}
                ours = config(case, rest if how == "absent" else rest | {key: None})
                if meaning is None and how == "null":
                    continue  # null stays null: its meaning is in the modelling code, which the parity tests run
                tried += 1
                if ours is not None and ours != config(case, rest | {key: meaning}):
                    broken.append(f"{case}: {key} {how} is not {meaning}")
    tally("config.json, defaults of absent and null attributes", tried=tried, broken=len(broken))
    assert not broken, broken
    assert tried > 400


@pytest.mark.parametrize(
    ("case", "changes", "field", "value"),
    [
        ("Gemma 2", {"attn_logit_softcapping": None}, "attn_softcap", 0.0),
        ("Gemma 2", {"final_logit_softcapping": None}, "logit_softcap", 0.0),
        ("Mistral", {"sliding_window": None}, "sliding", ()),
        ("Gemma", {"hidden_act": "gelu"}, "act", "gelu_tanh"),
        ("Gemma", {"hidden_act": "gelu", "hidden_activation": None}, "act", "gelu_tanh"),
        ("Gemma 2", {"hidden_act": "relu"}, "act", "gelu_tanh"),
        ("GPT-2", {"tie_word_embeddings": False}, "tied_embedding", False),
    ],
)
def test_values_that_were_once_read_wrongly(case, changes, field, value):
    found = config(case, REFERENCES[case][1] | changes)
    assert found is not None
    assert getattr(found, field) == value


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ("Gemma 2", {"final_logit_softcapping": 0.0}),
        ("Gemma 2", {"sliding_window": None}),
        ("Gemma 3", {"attn_logit_softcapping": 2.0}),
        ("Gemma 3", {"rope_parameters": {"rope_theta": 50.0}}),
        ("Gemma", {"hidden_act": "gelu", "hidden_activation": "silu"}),
        ("Llama", {"partial_rotary_factor": 0.5}),
        ("Llama", {"rope_parameters": {"rope_theta": 50.0}, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ("Llama", {"num_hidden_layers": 10**9}),
        ("Llama", {"rms_norm_eps": float("nan")}),
        ("Llama", {"attention_bias": "false"}),
        ("Qwen 2", {"layer_types": ["sliding_attention"] * 3}),
        ("Qwen 2, windows", {"layer_types": ["full_attention"] * 2}),
        ("Mixtral", {"num_experts": 3}),
        ("GPT-Neo", {"attention_types": [[["global"], 10**9]]}),
        ("GPT-Neo", {"intermediate_size": 0}),
        ("GPT-NeoX, Pythia", {"use_parallel_residual": 1}),
    ],
)
def test_what_would_give_other_logits_is_refused(case, changes):
    assert config(case, REFERENCES[case][1]) is not None
    assert config(case, REFERENCES[case][1] | changes) is None
