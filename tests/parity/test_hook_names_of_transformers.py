"""The value that a module path means in transformers is the value of the address that it is translated to."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from oracle import run_oracle

from jax_interp import call, read
from jax_interp.dictionaries.formats.hook_names import hook_value
from jax_interp.dictionaries.formats.norm_weight import _norms
from jax_interp.models import load

pytestmark = pytest.mark.parity
NAMES = {"gpt2": "gpt2", "gpt_neox": "EleutherAI/pythia-70m", "llama": "meta-llama/Llama-3.2-1B", "olmo2": "OLMo-2-1B",
         "qwen3": "Qwen/Qwen3-0.6B", "gemma2": "google/gemma-2-2b", "gemma3_text": "google/gemma-3-1b-pt"}  # fmt: skip


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformers_values")
    run_oracle("circuit_tracer", "transformers_values.py", folder)
    return folder


@pytest.mark.parametrize("model_type", NAMES)
@pytest.mark.parametrize("told", [True, False])
def test_translated_paths_have_the_values_of_transformers(model_type, told, recorded):
    data = dict(np.load(recorded / model_type / "data.npz"))
    model, _ = load(recorded / model_type / "model")
    values = {path: hook_value(path, NAMES[model_type] if told else None) for path in data if path[-3:] == "put"}
    named = {path: value for path, value in values.items() if value.address or value.normalized}
    addresses = sorted({value.address or value.normalized for value in named.values()})
    logits, acts = call(read(model, *addresses), jnp.asarray(data["tokens"]))
    np.testing.assert_allclose(logits, data["logits"], atol=1e-4 * np.abs(data["logits"]).max())
    assert len(named) >= (9 if told else 4), sorted(named)
    for path, value in named.items():
        found = np.asarray(acts[value.address or value.normalized])
        if value.address is None:
            ((weight, bias),) = _norms(model, [value.normalized])
            found = found * np.asarray(weight) + np.asarray(bias)
        expected = data[path]
        scale = max(1, np.abs(expected).max())
        np.testing.assert_allclose(found.reshape(expected.shape) / scale, expected / scale, atol=1e-5, err_msg=path)
