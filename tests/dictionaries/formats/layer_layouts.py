"""Random files of Gemma Scope and Gemma Scope 2. The other layouts of this folder share its sizes."""

from __future__ import annotations

import json

import numpy as np
from safetensors.numpy import save_file

from tests.dictionaries.formats.published import Layout, Layouts, floats, jump, wide

D, M, LAYERS, ROWS = 6, 20, 3, 11


LAYOUTS: Layouts = {}


def thresholds(rng, *shape) -> np.ndarray:
    """Thresholds of both signs: with one below 0, a latent is a ReLU."""
    return rng.uniform(-0.3, 1.2, shape).astype(np.float32)


def gemma_tensors(rng, skip=False, case=str.lower) -> dict[str, np.ndarray]:
    tensors = {
        case("W_enc"): floats(rng, D, M),
        case("W_dec"): floats(rng, M, D),
        "b_enc": floats(rng, M),
        "b_dec": floats(rng, D),
        "threshold": thresholds(rng, M),
    }
    return tensors | ({"affine_skip_connection": floats(rng, D, D)} if skip else {})


def gemma_outputs(tensors, x, scale=1.0):
    """Latents and outputs for raw inputs that the model multiplies by `scale`."""
    t = wide({name.lower(): a for name, a in tensors.items()})
    x = x.astype(np.float64)
    f = jump(x / scale @ t["w_enc"] + t["b_enc"], t["threshold"])
    y = (f @ t["w_dec"] + t["b_dec"]) * scale
    return f, y + (x @ t["affine_skip_connection"] if "affine_skip_connection" in t else 0)


def _scope(folder, site, model, address, writes=None, case=str, **more):
    def write(directory, rng):
        path = directory / folder
        path.mkdir(parents=True)
        tensors, x = gemma_tensors(rng, case=case), floats(rng, ROWS, D)
        np.savez(path / "params.npz", **tensors)
        latents, outputs = gemma_outputs(tensors, x, more.pop("scale", 1.0))
        return Layout(path, x, latents, outputs, address, writes, model, **more)

    LAYOUTS[f"gemma-scope {site}"] = write


_scope("google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", "res", "google/gemma-2-2b",
       "blocks.20.resid_post", stated={"l0": 71.0})  # fmt: skip
_scope("models--google--gemma-scope-9b-it-att/snapshots/0a1b/layer_7/width_16k/average_l0_9", "att",
       "google/gemma-2-9b-it", "blocks.7.attn.z", stated={"l0": 9.0})  # fmt: skip
_scope("gemma-scope-27b-pt-mlp/layer_3/width_131k/average_l0_44", "mlp, lower case", "google/gemma-2-27b",
       "blocks.3.mlp_out", case=str.lower, stated={"l0": 44.0})  # fmt: skip
_scope("google/gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", "embedding", "google/gemma-2-2b", "embed",
       scale=D**0.5, notes=("sqrt(d)",), stated={"l0": 6.0})  # fmt: skip
_scope("google/gemma-scope-2b-pt-transcoders/layer_4/width_16k/average_l0_88", "transcoder", "google/gemma-2-2b",
       "blocks.4.ln2.normalized", "blocks.4.mlp_out", notes=("without the weight of the norm",),
       stated={"l0": 88.0})  # fmt: skip
_scope("somewhere/else", "no names", None, None, notes=("does not name its repository",))


HOOKS = {
    "resid_post": ("model.layers.{}.output", None, "blocks.{}.resid_post", None, None),
    "attn_out": ("model.layers.{}.self_attn.o_proj.input", None, "blocks.{}.attn.z", None, None),
    "mlp_out": ("model.layers.{}.post_feedforward_layernorm.output", None, "blocks.{}.mlp_out", None, None),
    "transcoder": ("model.layers.{}.pre_feedforward_layernorm.output",
                   "model.layers.{}.post_feedforward_layernorm.output", None, "blocks.{}.ln2.normalized",
                   "blocks.{}.mlp_out"),
}  # fmt: skip


def _scope_2(kind, folder, *, configured, skip=False, layer=13, model="google/gemma-3-1b-pt", named=None):
    def write(directory, rng):
        path = directory / folder
        path.mkdir(parents=True)
        tensors, x = gemma_tensors(rng, skip), floats(rng, ROWS, D)
        save_file(tensors, path / "params.safetensors")
        hook_in, hook_out, address, normalized, writes = (
            None if text is None else text.format(layer) for text in HOOKS[kind]
        )
        if configured:
            config = {"architecture": "jump_relu", "model_name": named or model, "hf_hook_point_in": hook_in,
                      "hf_hook_point_out": hook_out or hook_in, "affine_connection": skip, "width": M, "l0": 50,
                      "type": "transcoder" if hook_out else "sae"}  # fmt: skip
            (path / "config.json").write_text(json.dumps(config))
        latents, outputs = gemma_outputs(tensors, x)
        stated = {"l0": 50.0} if configured else {}
        return Layout(path, x, latents, outputs, address, writes, model, normalized, stated=stated)

    LAYOUTS[f"gemma-scope-2 {kind}{', skip' if skip else ''}{'' if configured else ', no config'}"] = write


_REPO = "google/gemma-scope-2-1b-pt"
_scope_2("resid_post", f"{_REPO}/resid_post/layer_13_width_16k_l0_small", configured=True, named="gemma-v3-1b-pt")
_scope_2("resid_post", f"{_REPO}/resid_post_all/layer_13_width_16k_l0_small", configured=False)
_scope_2("attn_out", f"{_REPO}/attn_out/layer_13_width_16k_l0_big", configured=False)
_scope_2("mlp_out", "google/gemma-scope-2-270m-pt/mlp_out/layer_13_width_16k_l0_big", configured=True,
         named="gemma-3-270m-pt", model="google/gemma-3-270m")  # fmt: skip
_scope_2("transcoder", f"{_REPO}/transcoder_all/layer_13_width_16k_l0_small_affine", configured=True, skip=True)
_scope_2("transcoder", "google/gemma-scope-2-4b-it/transcoder/layer_13_width_16k_l0_small", configured=False,
         model="google/gemma-3-4b-it")  # fmt: skip


def cross_layer_outputs(W_enc, b_enc, b_dec, theta, W_dec, x, skip=None):
    """Latents [source, row, m] and outputs [target, row, d]; W_dec[s][t - s] is [m, d]."""
    f = np.stack([jump(x[s] @ W_enc[s] + b_enc[s], theta[s]) for s in range(len(x))])
    y = []
    for t in range(len(x)):
        out = b_dec[t] + sum(f[s] @ W_dec[s][t - s] for s in range(t + 1))
        y.append(out + (0 if skip is None else x[t] @ skip[t]))
    return f, np.stack(y)


def _scope_2_layers(kind, axis, *, skip=False, configured=True):
    def write(directory, rng):
        crosscoder = kind == "crosscoder"
        layers, name = ([7, 13, 17], "layer_7_13_17_width_65k_l0_big") if crosscoder else (
            list(range(LAYERS)), f"width_262k_l0_big{'_affine' if skip else ''}")  # fmt: skip
        path = directory / f"{_REPO}/{kind}/{name}"
        path.mkdir(parents=True)
        x, files, W_dec = floats(rng, LAYERS, ROWS, D), [], []
        for i in range(LAYERS):
            tensors = gemma_tensors(rng, skip)
            W = floats(rng, M, LAYERS - i, D)
            W_dec.append(W.astype(np.float64).transpose(1, 0, 2))
            stored = W if axis == "relative" else np.concatenate([np.zeros((M, i, D), np.float32), W], axis=1)
            files.append(tensors | {"w_dec": stored})
            save_file(files[i], path / f"params_layer_{i}.safetensors")
        if configured:
            hooks = ["model.layers.{}.output"] * 2 if crosscoder else HOOKS["transcoder"][:2]
            places = "{7,13,17}" if crosscoder else "{all}"
            config = {"architecture": "jump_relu", "model_name": "google/gemma-3-1b-pt", "type": kind,
                      "hf_hook_point_in": hooks[0].replace("{}", places), "l0": 150, "width": LAYERS * M,
                      "hf_hook_point_out": hooks[1].replace("{}", places), "affine_connection": skip}  # fmt: skip
            (path / "config.json").write_text(json.dumps(config))
        t = {name: np.stack([tensors[name] for tensors in files]).astype(np.float64)
             for name in files[0] if name != "w_dec"}  # fmt: skip
        latents, outputs = cross_layer_outputs(t["w_enc"], t["b_enc"], t["b_dec"], t["threshold"], W_dec,
                                               x.astype(np.float64), t.get("affine_skip_connection"))  # fmt: skip
        value = lambda name: tuple(f"blocks.{layer}.{name}" for layer in layers)
        address, normalized = (value("resid_post"), None) if crosscoder else (None, value("ln2.normalized"))
        writes = value("resid_post" if crosscoder else "mlp_out")
        stated = {"l0": 150.0} if configured else {}
        return Layout(path, x, latents, outputs, address, writes, "google/gemma-3-1b-pt", normalized, stated=stated)

    LAYOUTS[f"gemma-scope-2 {kind}, {axis}{', skip' if skip else ''}{'' if configured else ', no config'}"] = write


_scope_2_layers("clt", "absolute", skip=True)
_scope_2_layers("clt", "relative", configured=False)
_scope_2_layers("crosscoder", "absolute")
_scope_2_layers("crosscoder", "relative", configured=False)
