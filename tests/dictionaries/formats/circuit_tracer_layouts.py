"""Random folders of circuit-tracer and of the Qwen 3 transcoders."""

from __future__ import annotations

import json

import numpy as np
import yaml
from safetensors.numpy import save_file

from tests.dictionaries.formats.layer_layouts import LAYERS, ROWS, D, M, cross_layer_outputs
from tests.dictionaries.formats.published import Layout, Layouts, floats, jump, layout, top_k, wide

LAYOUTS: Layouts = {}

K = 4
HOOKS = {"mlp.hook_in": (None, "ln2.normalized"), "hook_resid_mid": ("resid_mid", None),
         "ln2.hook_normalized": ("ln2.normalized", None)}  # fmt: skip


def one_transcoder(rng, kind, skip=False):
    tensors = {"W_enc": floats(rng, M, D), "W_dec": floats(rng, M, D), "b_enc": floats(rng, M), "b_dec": floats(rng, D)}
    if kind == "jumprelu":
        tensors["activation_function.threshold"] = np.abs(floats(rng, M))
    return tensors | ({"W_skip": floats(rng, D, D)} if skip else {})


def transcoder_outputs(tensors, kind, x):
    t = wide(tensors)
    pre = x.astype(np.float64) @ t["W_enc"].T + t["b_enc"]
    f = top_k(pre, K) if kind == "topk" else jump(pre, t.get("activation_function.threshold", 0.0))
    return f, f @ t["W_dec"] + t["b_dec"] + (x @ t["W_skip"].T if "W_skip" in t else 0)


def _set(name, kind, hook_in, *, model="meta-llama/Llama-3.2-1B", skip=False, legacy=False, layers=LAYERS, **config):
    def write(directory, rng):
        path, x = directory / "set", floats(rng, layers, ROWS, D)
        path.mkdir()
        found = []
        for i in range(layers):
            tensors = one_transcoder(rng, kind, skip)
            found.append(transcoder_outputs(tensors, kind, x[i]))
            stored = tensors | {"W_dec": np.ascontiguousarray(tensors["W_dec"].T)} if legacy else tensors
            save_file(stored, path / f"layer_{i}.safetensors")
        described = {"model_name": model, "model_kind": "transcoder_set", "feature_input_hook": hook_in,
                     "feature_output_hook": "hook_mlp_out", "scan": "somebody/set"} | config  # fmt: skip
        (path / "config.yaml").write_text(yaml.safe_dump(described))
        latents, outputs = (np.stack(part) for part in zip(*found))
        return _layout(path, x, latents, outputs, hook_in, range(layers), model, ("first position",))

    LAYOUTS[f"circuit-tracer set, {name}"] = write


def _layout(path, x, latents, outputs, hook_in, layers, model, notes):
    value = lambda name: None if name is None else tuple(f"blocks.{i}.{name}" for i in layers)
    address, normalized = (value(name) for name in HOOKS[hook_in])
    if len(layers) == 1:
        address, normalized, x, latents, outputs = (
            address and address[0],
            normalized and normalized[0],
            x[0],
            latents[0],
            outputs[0],
        )
    writes = value("mlp_out") if len(layers) > 1 else f"blocks.{layers[0]}.mlp_out"
    optional = ("activation_function.threshold", "W_skip")  # what is there decides, as in circuit-tracer
    return Layout(path, x, latents, outputs, address, writes, model, normalized, notes, optional=optional)


_set("ReLU", "relu", "mlp.hook_in", activation="relu")
_set("JumpReLU with skip", "jumprelu", "ln2.hook_normalized", model="google/gemma-2-2b", skip=True)
_set("TopK", "topk", "mlp.hook_in", activation="topk", k=K)
_set("first Llama files", "relu", "hook_resid_mid", legacy=True)
_set("one layer", "relu", "mlp.hook_in", layers=1)


def _clt(name, threshold):
    def write(directory, rng):
        path, x = directory / "clt", floats(rng, LAYERS, ROWS, D)
        path.mkdir()
        W_enc, b_enc, b_dec = floats(rng, LAYERS, M, D), floats(rng, LAYERS, M), floats(rng, LAYERS, D)
        theta = np.abs(floats(rng, LAYERS, M)) if threshold else np.zeros((LAYERS, M), np.float32)
        W_dec = [floats(rng, M, LAYERS - i, D) for i in range(LAYERS)]
        for i in range(LAYERS):
            tensors = {f"W_enc_{i}": W_enc[i], f"b_enc_{i}": b_enc[i], f"b_dec_{i}": b_dec[i]}
            tensors |= {f"threshold_{i}": theta[i]} if threshold else {}
            save_file(tensors, path / f"W_enc_{i}.safetensors")
            save_file({f"W_dec_{i}": W_dec[i]}, path / f"W_dec_{i}.safetensors")
        config = {"model_name": "google/gemma-2-2b", "model_kind": "cross_layer_transcoder", "scan": "somebody/clt",
                  "feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}  # fmt: skip
        (path / "config.yaml").write_text(yaml.safe_dump(config))
        t = wide({"W_enc": W_enc.transpose(0, 2, 1), "b_enc": b_enc, "b_dec": b_dec, "theta": theta})
        relative = [W.astype(np.float64).transpose(1, 0, 2) for W in W_dec]
        latents, outputs = cross_layer_outputs(
            t["W_enc"], t["b_enc"], t["b_dec"], t["theta"], relative, x.astype(np.float64)
        )
        return _layout(path, x, latents, outputs, "hook_resid_mid", range(LAYERS), "google/gemma-2-2b", ("folding",))

    LAYOUTS[f"circuit-tracer CLT, {name}"] = write


_clt("ReLU", threshold=False)
_clt("JumpReLU", threshold=True)


@layout(LAYOUTS, "circuit-tracer, Qwen 3 with config.yaml")
def qwen(directory, rng):
    return _qwen(directory / "mwhanna/qwen3-4b-transcoders", rng, "wandb-config.yaml", "Qwen/Qwen3-4B", True)


@layout(LAYOUTS, "circuit-tracer, Qwen 3 without config.yaml")
def qwen_14b(directory, rng):
    return _qwen(directory / "mwhanna/qwen3-14b-transcoders-lowl0", rng, "wanb-config.yaml", "Qwen/Qwen3-14B", False)


def _qwen(path, rng, wandb, model, configured):
    path.mkdir(parents=True)
    x, found = floats(rng, LAYERS, ROWS, D), []
    for i in range(LAYERS):
        tensors = one_transcoder(rng, "relu")
        found.append(transcoder_outputs(tensors, "relu", x[i]))
        save_file(tensors, path / f"layer_{i}.safetensors")
    settings = {"d_model": {"value": D}, "d_feature": {"value": M}, "batch_size": {"value": 512}, "wandb_version": 1}
    (path / wandb).write_text(json.dumps(settings))  # JSON is YAML
    if configured:
        (path / "config.yaml").write_text(yaml.safe_dump({"model_name": model}))
    latents, outputs = (np.stack(part) for part in zip(*found))
    return _layout(path, x, latents, outputs, "mlp.hook_in", range(LAYERS), model, ("times the norm's weight",))
