"""SAELens's loaders of Gemma Scope, Llama Scope, Qwen 3 and CLT files compute what is read here, where they are right.

Where they differ, the difference is known and tested: SAELens leaves the bias of embedding SAEs unscaled, and sums the
decoders of a cross-layer transcoder (only its latents have a meaning).
"""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest
from measured import record
from oracle import run_oracle

from jax_interp.dictionaries import load_dictionary
from tests.dictionaries.formats import openmoss_layouts
from tests.dictionaries.formats.layer_layouts import LAYERS, D, M
from tests.dictionaries.formats.published import every_layout

LAYOUTS = every_layout()
pytestmark = pytest.mark.parity
SMALL = {"d_in": D, "d_sae": M}
SCALE = openmoss_layouts.scale(openmoss_layouts.NORM_IN)
CASES = {  # name of the layout -> (loader, how many folders of its path are the id, settings, scale of the registry)
    "gemma-scope res": ("gemma_2", 3, SMALL, None),
    "gemma-scope mlp, lower case": ("gemma_2", 3, SMALL, None),
    "gemma-scope embedding": ("gemma_2", 3, SMALL, None),
    "gemma-scope transcoder": ("gemma_2_transcoder", 3, SMALL | {"d_out": D}, None),
    "gemma-scope-2 resid_post": ("gemma_3", 2, {}, None),
    "gemma-scope-2 attn_out, no config": ("gemma_3", 2, {}, None),
    "gemma-scope-2 mlp_out": ("gemma_3", 2, {}, None),
    "gemma-scope-2 transcoder, skip": ("gemma_3", 2, {}, None),
    "gemma-scope-2 transcoder, no config": ("gemma_3", 2, {}, None),
    "gemma-scope-2 clt, relative, no config": ("gemma_3", 2, {}, None),
    "llama-scope as SAELens reads it": ("llama_scope", 1, {}, SCALE),
    "llama-scope-r1 with its norm": ("llama_scope_r1_distill", 2, {"d_sae": M}, SCALE),
    "circuit-tracer, Qwen 3 with config.yaml": ("mwhanna_transcoder", 0, {}, None),
    "circuit-tracer, Qwen 3 without config.yaml": ("mwhanna_transcoder", 0, {}, None),
    "circuit-tracer CLT, ReLU": ("mntss_clt_layer_transcoder", 0, {}, None),
}
OF_LAYER = {
    "gemma_3": "/params_layer_{}",
    "mwhanna_transcoder": "layer_{}.safetensors",
    "mntss_clt_layer_transcoder": "{}",
}


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """{(name, layer): (what was written, folder with what SAELens computes)}; the layer is None for a single one."""
    root, cases, found = tmp_path_factory.mktemp("saelens_loaders"), [], {}
    for i, (name, (loader, depth, overrides, scale)) in enumerate(CASES.items()):
        (root / str(i)).mkdir()
        written = LAYOUTS[name](root / str(i), np.random.default_rng(i))
        parts = written.path.relative_to(root).parts
        repository, inside = "/".join(parts[: len(parts) - depth]), "/".join(parts[len(parts) - depth :])
        for layer in range(LAYERS) if written.x.ndim == 3 else [None]:
            data = root / "data" / f"{i}_{layer}"
            data.mkdir(parents=True)
            np.save(data / "x.npy", written.x if layer is None else written.x[layer])
            at = inside if layer is None else inside + OF_LAYER[loader].format(layer)
            cases.append({"repository": repository, "id": at, "loader": loader, "overrides": overrides, "scale": scale,
                          "data": str(data)})  # fmt: skip
            found[name, layer] = written, data
    (root / "cases.json").write_text(json.dumps(cases))
    run_oracle("saelens", "saelens_loaders.py", root)
    return found


@pytest.mark.parametrize("name", CASES)
def test_saelens_computes_what_is_read_here(name, computed):
    for (case, layer), (written, data) in computed.items():
        if case != name:
            continue
        theirs = np.load(data / "data.npz")
        saved = load_dictionary(written.path, check=False)
        dictionary = saved.dictionary
        x = jnp.asarray(written.x)
        latents, outputs = np.asarray(dictionary.encode(x)), np.asarray(dictionary(x))
        if layer is not None:
            latents, outputs = latents[layer], outputs[layer]
        pairs = [(latents, theirs["latents"])]
        if name == "gemma-scope embedding":
            b_dec = np.asarray(dictionary.b_dec)
            outputs = outputs - b_dec + b_dec / D**0.5
        if "clt" not in name.lower():
            pairs.append((outputs, theirs["outputs"]))
        worst = max(np.abs(ours - other).max() / max(1, np.abs(other).max()) for ours, other in pairs)
        assert worst < 1e-5
        if saved.format != "circuit-tracer":  # whose own library is compared in test_circuit_tracer_format.py
            record(saved.format, name, "read", float(worst))
