"""Layouts of SAELens, of temporal SAEs and of the attention SAEs that SAELens reads too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.dictionaries.formats.published import Layout, Layouts, floats, jump, layout, relu, top_k, wide
from tests.dictionaries.formats.torch_layouts import D, M, direct, made, rows, write_json
from tests.torch_archives import save

LAYOUTS: Layouts = {}
SITE = {"hook_name": "blocks.2.hook_resid_pre", "model_name": "gpt2", "prepend_bos": True}
BOS = "with a BOS token in front"
OUT = 10  # the width of what a transcoder writes


def saelens(directory: Path, tensors: dict[str, np.ndarray], architecture: str, metadata: Any = None, **cfg) -> Path:
    folder = made(directory / "sae")
    save_file(tensors, folder / "sae_weights.safetensors")
    base = {"d_in": D, "d_sae": M, "dtype": "float32", "device": "cpu", "normalize_activations": "none"}
    base |= {"apply_b_dec_to_input": True, "reshape_activations": "none", "architecture": architecture}
    base["metadata"] = {"sae_lens_version": "6.54.12"} | (SITE if metadata is None else metadata)
    write_json(folder / "cfg.json", base | cfg)
    return folder


def found(path: Path, x, z, y, **others: Any) -> Layout:
    labels = {"address": "blocks.2.resid_pre", "model": "gpt2", "notes": (BOS,)} | others
    return Layout(path, x, z, y, **labels)


def encoded(x, w, centred=True):
    return (x - w["b_dec"] * centred) @ w["W_enc"] + w["b_enc"]


@layout(LAYOUTS, "saelens standard")
def standard(directory, rng):
    t, x = direct(rng), rows(rng)
    path = saelens(directory, t, "standard")
    sparsity = np.where(np.arange(M) == 3, -10, -1.0).astype(np.float32)
    save_file({"sparsity": sparsity}, path / "sparsity.safetensors")
    w = wide(t)
    z = relu(encoded(x, w))
    stated = {"l0": float((10.0 ** sparsity.astype(np.float64)).sum()), "dead": 1.0}
    return found(path, x, z, z @ w["W_dec"] + w["b_dec"], stated=stated)


@layout(LAYOUTS, "saelens standard, no pre-bias, layer norm")
def layer_norm(directory, rng):
    t, x = direct(rng), 3 * rows(rng) + 1
    path = saelens(directory, t, "standard", apply_b_dec_to_input=False, normalize_activations="layer_norm")
    w, mean, std = wide(t), x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
    z = relu(encoded((x - mean) / (std + 1e-5), w, centred=False))
    return found(path, x, z, (z @ w["W_dec"] + w["b_dec"]) * std + mean)


@layout(LAYOUTS, "saelens jumprelu, constant norm")
def constant_norm(directory, rng):
    t, x = direct(rng) | {"threshold": np.abs(floats(rng, M))}, 3 * rows(rng) + 1
    path = saelens(directory, t, "jumprelu", normalize_activations="constant_norm_rescale")
    w, factor = wide(t), D**0.5 / np.linalg.norm(x, axis=1, keepdims=True)
    z = jump(encoded(x * factor, w), w["threshold"])
    return found(path, x, z, (z @ w["W_dec"] + w["b_dec"]) / factor)


@layout(LAYOUTS, "saelens jumprelu checkpoint with logarithms")
def log_threshold(directory, rng):
    t, x = direct(rng) | {"log_threshold": floats(rng, M, scale=0.5)}, rows(rng)
    w = wide(t)
    z = jump(encoded(x, w), np.exp(w["log_threshold"]))
    settings = {"jumprelu_bandwidth": 0.05, "l0_coefficient": 1.0, "decoder_init_norm": 0.1}
    return found(saelens(directory, t, "jumprelu", **settings), x, z, z @ w["W_dec"] + w["b_dec"])


@layout(LAYOUTS, "saelens topk by decoder norms")
def topk(directory, rng):
    t, x = direct(rng), rows(rng)
    w = wide(t)
    norms = np.linalg.norm(w["W_dec"], axis=1)
    z = top_k(encoded(x, w) * norms, 4)
    path = saelens(directory, t, "topk", k=4, rescale_acts_by_decoder_norm=True)
    return found(path, x, z, (z / norms) @ w["W_dec"] + w["b_dec"])


@layout(LAYOUTS, "saelens abstopk")
def abstopk(directory, rng):
    t, x = direct(rng), rows(rng)
    w = wide(t)
    pre = encoded(x, w)
    z = np.where(np.abs(pre) >= np.sort(np.abs(pre), 1)[:, -4, None], pre, 0)
    path = saelens(directory, t, "abstopk", k=4, rescale_acts_by_decoder_norm=False)
    return found(path, x, z, z @ w["W_dec"] + w["b_dec"])


@layout(LAYOUTS, "saelens gated")
def gated(directory, rng):
    t = {name: a for name, a in direct(rng).items() if name != "b_enc"}
    t |= {"b_gate": floats(rng, M), "b_mag": floats(rng, M), "r_mag": floats(rng, M, scale=0.3)}
    x, w = rows(rng), wide(t)
    linear = (x - w["b_dec"]) @ w["W_enc"]
    z = (linear + w["b_gate"] > 0) * relu(linear * np.exp(w["r_mag"]) + w["b_mag"])
    return found(saelens(directory, t, "gated"), x, z, z @ w["W_dec"] + w["b_dec"])


@layout(LAYOUTS, "saelens batchtopk checkpoint, scaled inputs")
def batchtopk(directory, rng):
    """It is exported with decoder rows of norm 1 and for raw inputs, which multiplies latents by the norms over s."""
    t, x, s = direct(rng) | {"topk_threshold": np.asarray(1.3, np.float64)}, rows(rng), 0.4
    path = saelens(
        directory, t, "batchtopk", k=3.5, topk_threshold_lr=0.01, rescale_acts_by_decoder_norm=True,
        normalize_activations="expected_average_only_in", aux_loss_coefficient=1.0,
    )  # fmt: skip
    write_json(path / "activation_scaler.json", {"scaling_factor": s, "has_whitening": False})
    w = wide(t)
    norms, pre = np.linalg.norm(w["W_dec"], axis=1), encoded(s * x, w)
    on = jump(pre * norms, 1.3)
    return found(path, x, on / s, ((on / norms) @ w["W_dec"] + w["b_dec"]) / s)


@layout(LAYOUTS, "saelens standard checkpoint, whitened inputs")
def whitened(directory, rng):
    t, x = direct(rng), rows(rng)
    path = saelens(directory, t, "standard", normalize_activations="covariance_whitening", apply_b_dec_to_input=False)
    basis = np.linalg.qr(rng.standard_normal((D, D)))[0]
    size = np.linspace(0.5, 2, D)
    maps = {"mean": rng.standard_normal(D), "matrix": basis / size, "inverse_matrix": size[:, None] * basis.T}
    save_file(
        {name: np.ascontiguousarray(a, np.float64) for name, a in maps.items()},
        path / "activation_whitening.safetensors",
    )
    w = wide(t)
    z = relu(encoded((x - maps["mean"]) @ maps["matrix"], w, centred=False))
    return found(path, x, z, (z @ w["W_dec"] + w["b_dec"]) @ maps["inverse_matrix"] + maps["mean"])


@layout(LAYOUTS, "saelens matching_pursuit")
def matching_pursuit(directory, rng):
    t, x = {name: a for name, a in direct(rng).items() if name in ("W_dec", "b_dec")}, rows(rng)
    t["W_dec"] /= np.linalg.norm(t["W_dec"], axis=1, keepdims=True)
    w, z = wide(t), np.zeros((len(x), M))
    for i, rest in enumerate(x - w["b_dec"]):
        for _ in range(5):
            j = int(np.argmax(relu(w["W_dec"] @ rest)))
            value, before = max(0.0, w["W_dec"][j] @ rest), z[i] != 0
            z[i, j] += value
            rest = rest - value * w["W_dec"][j]
            if ((z[i] != 0) == before).all() or np.linalg.norm(rest) < 0.7:
                break
    settings = {"max_iterations": 5, "residual_threshold": 0.7, "stop_on_duplicate_support": True}
    path = saelens(directory, t, "matching_pursuit", **settings)
    return found(path, x, z, z @ w["W_dec"] + w["b_dec"])


@layout(LAYOUTS, "saelens jumprelu_skip_transcoder")
def transcoder(directory, rng):
    t = {"W_enc": floats(rng, D, M), "b_enc": floats(rng, M), "threshold": np.abs(floats(rng, M))}
    t |= {"W_dec": floats(rng, M, OUT), "b_dec": floats(rng, OUT), "W_skip": floats(rng, OUT, D)}
    metadata = {"model_name": "gpt2", "hook_name": "blocks.1.ln2.hook_normalized"}
    metadata |= {"hook_name_out": "blocks.1.hook_mlp_out", "model_from_pretrained_kwargs": {"fold_ln": True}}
    path = saelens(directory, t, "jumprelu_skip_transcoder", metadata, apply_b_dec_to_input=False, d_out=OUT)
    x, w = rows(rng), wide(t)
    z = jump(x @ w["W_enc"] + w["b_enc"], w["threshold"])
    labels = {
        "address": "blocks.1.ln2.normalized",
        "writes": "blocks.1.mlp_out",
        "notes": ("loaded with fold_ln=True",),
    }
    return found(path, x, z, z @ w["W_dec"] + w["b_dec"] + x @ w["W_skip"].T, **labels)


def earlier(directory: Path, tensors: dict[str, np.ndarray], **cfg: Any) -> Path:
    """The flat config of before version 6, with some of its settings of training."""
    folder = made(directory / "blocks.8.hook_resid_pre")
    save_file(tensors, folder / "sae_weights.safetensors")
    base = {"model_name": "gpt2-small", "hook_point": "blocks.8.hook_resid_pre", "hook_point_layer": 8}
    base |= {"hook_point_head_index": None, "d_in": D, "d_sae": M, "l1_coefficient": 8e-05, "lr": 0.0004}
    write_json(folder / "cfg.json", base | {"use_ghost_grads": True, "dtype": "torch.float32"} | cfg)
    return folder


@layout(LAYOUTS, "saelens before version 6")
def before_6(directory, rng):
    scale = 1 + np.abs(floats(rng, M))
    t, x = direct(rng) | {"scaling_factor": scale}, rows(rng)
    kwargs = {"center_writing_weights": True}
    path = earlier(directory, t, finetuning_scaling_factor=True, model_from_pretrained_kwargs=kwargs)
    w = wide(t)
    z = relu(encoded(x, w))
    labels = {"address": "blocks.8.resid_pre", "model": "gpt2-small", "optional": ("scaling_factor",)}
    return found(path, x, z, (z * scale) @ w["W_dec"] + w["b_dec"], notes=("center_writing_weights=True",), **labels)


@layout(LAYOUTS, "saelens before version 6, topk")
def before_6_topk(directory, rng):
    t, x = direct(rng), rows(rng)
    settings = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}, "normalize_activations": False}
    path = earlier(directory, t, sae_lens_training_version="3.4.0", prepend_bos=False, **settings)
    w = wide(t)
    z = top_k(encoded(x, w), 3)
    labels = {"address": "blocks.8.resid_pre", "model": "gpt2-small", "notes": ("without a BOS token",)}
    return found(path, x, z, z @ w["W_dec"] + w["b_dec"], **labels)


def temporal(rng, tied: bool) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """(tensors under the published names, x, novel latents, output), one layer of two heads, keys of width 4."""
    t = {"D": floats(rng, M, D), "b": floats(rng, D)} | ({} if tied else {"E": floats(rng, D, M)})
    for name, n in (("q_target", 4), ("k_ctx", 4), ("v_ctx", M), ("c_proj", M)):
        t |= {
            f"attn_layers.0.{name}.weight": floats(rng, n, M, scale=0.4),
            f"attn_layers.0.{name}.bias": floats(rng, n),
        }
    w, x, novel, out = wide(t), rng.standard_normal((2, 5, D)), [], []
    layer = {name: (w[f"attn_layers.0.{name}.weight"], w[f"attn_layers.0.{name}.bias"]) for name in
             ("q_target", "k_ctx", "v_ctx", "c_proj")}  # fmt: skip
    through = lambda name, a: a @ layer[name][0].T + layer[name][1]
    encoder = w["D"].T if tied else w["E"]
    for text in x:
        rest = 0.7 * text - w["b"]
        code = relu(rest / (4 * D) @ encoder)
        earlier = np.vstack([np.zeros((1, M)), code[:-1]])
        q, k, v = through("q_target", code), through("k_ctx", earlier), through("v_ctx", earlier)
        mixed = np.zeros((len(text), M))
        for h in range(2):
            scores = q[:, 2 * h : 2 * h + 2] @ k[:, 2 * h : 2 * h + 2].T / 2**0.5
            pattern = np.tril(np.exp(scores))
            half = slice(h * M // 2, (h + 1) * M // 2)
            mixed[:, half] = pattern / pattern.sum(1, keepdims=True) @ v[:, half]
        part = relu(through("c_proj", mixed))
        written = part @ w["D"]
        factor = (written * rest).sum(1, keepdims=True) / (np.linalg.norm(written, axis=1, keepdims=True) + 1e-6) ** 2
        z = top_k((rest - factor * written) / (4 * D) @ encoder, 4)
        novel.append(z)
        out.append(((z + factor * part) @ w["D"] + w["b"]) / 0.7)
    return t, x, np.stack(novel), np.stack(out)


@layout(LAYOUTS, "temporal")
def temporal_checkpoint(directory, rng):
    t, x, z, y = temporal(rng, tied=False)
    folder = made(directory / "layer_12" / "temporal")
    save_file(t, folder / "latest_ckpt.safetensors")
    sae = {"exp_factor": M / D, "n_heads": 2, "n_attn_layers": 1, "bottleneck_factor": 5, "sae_diff_type": "topk"}
    sae |= {"kval_topk": 4, "tied_weights": False, "scaling_factor": 0.7}
    write_json(folder / "conf.yaml", {"llm": {"dimin": D}, "sae": sae, "data": {"dtype": "float32"}})  # JSON is YAML
    return Layout(folder, x, z, y, address="blocks.12.resid_post")


@layout(LAYOUTS, "saelens temporal")
def temporal_of_saelens(directory, rng):
    t, x, z, y = temporal(rng, tied=True)
    t = {{"D": "W_dec", "b": "b_dec"}.get(name, name): a for name, a in t.items()}
    path = saelens(
        directory, t, "temporal", n_heads=2, n_attn_layers=1, bottleneck_factor=5, kval_topk=4, tied_weights=True,
        normalize_activations="constant_scalar_rescale", activation_normalization_factor=0.7,
    )  # fmt: skip
    return found(path, x, z, y)


@layout(LAYOUTS, "attention SAE")
def connor_rob(directory, rng):
    t, x = direct(rng), rows(rng)
    folder = made(directory / "attn-saes")
    save(folder / "L5_v9.pt", t)
    save(folder / "L6_v9.pt", t)
    for name in ("L5_v9", "L6_v9"):
        layer = name[1]
        cfg = {"act_name": f"blocks.{layer}.attn.hook_z", "act_size": D, "dict_size": M, "l1_coeff": 1.0}
        write_json(folder / f"{name}_cfg.json", cfg)
    w = wide(t)
    z = relu(encoded(x, w))
    return Layout(folder / "L5_v9.pt", x, z, z @ w["W_dec"] + w["b_dec"], address="blocks.5.attn.z")
