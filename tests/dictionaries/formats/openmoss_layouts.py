"""Random files of Llama Scope and llamascopium.

The formulas are those of llamascopium's code: inputs are scaled to a mean norm of sqrt(d), a latent is gated by its
pre-activation times its decoder norm, and outputs are scaled back.
"""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from tests.dictionaries.formats.layer_layouts import LAYERS, ROWS, D, M
from tests.dictionaries.formats.published import Layout, Layouts, floats, jump, layout, top_k, wide

LAYOUTS: Layouts = {}

K = 5
NORM_IN, NORM_OUT = 1.7, 6.2
HIGH = {"act_fn": "jumprelu", "norm_activation": "dataset-wise"}


def scale(norm):
    return D**0.5 / norm


def gated(pre, norms, kind, theta):
    """The activation of pre-activations times norms, divided by the norms."""
    score = pre * norms
    f = {"relu": lambda: np.maximum(score, 0), "jumprelu": lambda: jump(score, theta), "topk": lambda: top_k(score, K)}
    return f[kind]() / norms


def _llama_scope(name, *, flag, stored=np.float32, hook_in="blocks.7.hook_resid_post", hook_out=None, address=None,
                 writes=None, norm_out=NORM_IN):  # fmt: skip
    def write(directory, rng):
        path = directory / "fnlp/Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L7R-8x"
        (path / "checkpoints").mkdir(parents=True)
        tensors = {"encoder.weight": floats(rng, M, D), "encoder.bias": floats(rng, M, scale=0.3),
                   "decoder.weight": floats(rng, D, M), "decoder.bias": floats(rng, D)}  # fmt: skip
        tensors = {name: a.astype(stored) for name, a in tensors.items()}
        save_file(tensors, path / "checkpoints" / "final.safetensors")
        theta = 0.21
        config = HIGH | {"d_model": D, "d_sae": M, "jump_relu_threshold": theta, "use_decoder_bias": True,
                         "dataset_average_activation_norm": {"in": NORM_IN, "out": norm_out}, "top_k": 50,
                         "hook_point_in": hook_in, "hook_point_out": hook_out or hook_in, "use_glu_encoder": False,
                         "apply_decoder_bias_to_pre_encoder": False, "sparsity_include_decoder_norm": flag}  # fmt: skip
        (path / "hyperparams.json").write_text(json.dumps(config))
        t, x = wide(tensors), floats(rng, ROWS, D)
        pre = x.astype(np.float64) * scale(NORM_IN) @ t["encoder.weight"].T + t["encoder.bias"]
        norms = np.linalg.norm(t["decoder.weight"], axis=0) if flag else np.ones(M)
        f = gated(pre, norms, "jumprelu", theta * scale(NORM_IN))  # the threshold counts in raw activations
        outputs = (f @ t["decoder.weight"].T + t["decoder.bias"]) / scale(norm_out)
        return Layout(path, x, f, outputs, address or "blocks.7.resid_post", writes, "meta-llama/Llama-3.1-8B",
                      notes=("raw activations",) + (("decoder row",) if flag else ()))  # fmt: skip

    LAYOUTS[f"llama-scope {name}"] = write


_llama_scope("as SAELens reads it", flag=False)
_llama_scope("with decoder norms", flag=True)
_llama_scope("in bfloat16", flag=True, stored=ml_dtypes.bfloat16)
_llama_scope("transcoder", flag=True, hook_in="blocks.7.ln2.hook_normalized", hook_out="blocks.7.hook_mlp_out",
             address="blocks.7.ln2.normalized", writes="blocks.7.mlp_out", norm_out=NORM_OUT)  # fmt: skip


@layout(LAYOUTS, "llama-scope-r1 with its norm")
def llama_scope_r1(directory, rng):
    path, hook = directory / "Llama-Scope-R1-Distill/0-Slimpajama-800M-OpenR1-Math-220k/L7R", "blocks.7.hook_resid_post"
    path.mkdir(parents=True)
    tensors = {"encoder.weight": floats(rng, M, D), "encoder.bias": floats(rng, M), "decoder.weight": floats(rng, D, M),
               "decoder.bias": floats(rng, D), "log_jumprelu_threshold": floats(rng, M),
               f"dataset_average_activation_norm.{hook}": np.array(NORM_IN, np.float32)}  # fmt: skip
    save_file(tensors, path / "sae_weights.safetensors")
    config = {"d_model": D, "expansion_factor": M / D, "hook_point_in": hook, "sparsity_include_decoder_norm": False}
    (path / "config.json").write_text(json.dumps(config))
    t, x = wide(tensors), floats(rng, ROWS, D)
    s = scale(float(np.float32(NORM_IN)))
    f = jump(x.astype(np.float64) * s @ t["encoder.weight"].T + t["encoder.bias"], np.exp(t["log_jumprelu_threshold"]))
    outputs = (f @ t["decoder.weight"].T + t["decoder.bias"]) / s
    model = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    return Layout(path, x, f, outputs, "blocks.7.resid_post", None, model, notes=("units of its training",))


def save(path, config, tensors, file):
    (path / file).parent.mkdir(parents=True)
    save_file({name: np.ascontiguousarray(a) for name, a in tensors.items()}, path / file)
    (path / "config.json").write_text(json.dumps({"d_model": D, "expansion_factor": M / D, "top_k": K} | config))


def average_norms(rng, hooks):
    return {hook: float(np.float32(rng.uniform(0.8, 5))) for hook in hooks}


def stored_norms(norms):
    return {f"dataset_average_activation_norm.{hook}": np.array(norm, np.float32) for hook, norm in norms.items()}


THRESHOLD = "activation_function.log_jumprelu_threshold"


def _sae(name, kind, flag, *, mode="dataset-wise", transcoder=False, file="sae_weights.safetensors"):
    def write(directory, rng):
        hooks = (
            ["blocks.2.ln2.hook_normalized", "blocks.2.hook_mlp_out"]
            if transcoder
            else ["blocks.2.hook_resid_post"] * 2
        )
        norms = average_norms(rng, hooks)
        tensors = {"W_E": floats(rng, D, M), "b_E": floats(rng, M), "W_D": floats(rng, M, D), "b_D": floats(rng, D)}
        tensors |= {THRESHOLD: floats(rng, M)} if kind == "jumprelu" else {}
        config = {"sae_type": "sae", "act_fn": kind, "norm_activation": mode, "sparsity_include_decoder_norm": flag,
                  "hook_point_in": hooks[0], "hook_point_out": hooks[1]}  # fmt: skip
        save(directory / "sae", config, tensors | stored_norms(norms), file)
        t, x = wide(tensors), floats(rng, ROWS, D)
        into, out = (scale(norms[hook]) if mode == "dataset-wise" else 1.0 for hook in hooks)
        rows = np.linalg.norm(t["W_D"], axis=1) if flag else np.ones(M)
        f = gated(x.astype(np.float64) * into @ t["W_E"] + t["b_E"], rows, kind, np.exp(t.get(THRESHOLD, 0.0)))
        address = "blocks.2.ln2.normalized" if transcoder else "blocks.2.resid_post"
        writes = "blocks.2.mlp_out" if transcoder else None
        unused = tuple(stored_norms(norms)) if mode == "inference" else ()
        outputs = (f @ t["W_D"] + t["b_D"]) / out
        return Layout(directory / "sae", x, f, outputs, address, writes, optional=unused)

    LAYOUTS[f"llamascopium SAE, {name}"] = write


_sae("ReLU", "relu", True)
_sae("JumpReLU with decoder norms", "jumprelu", True)
_sae("JumpReLU, folded", "jumprelu", False, mode="inference", file="checkpoints/final.safetensors")
_sae("transcoder, TopK with decoder norms", "topk", True, transcoder=True)
_sae("TopK", "topk", False)


def _clt(name, kind, flag):
    def write(directory, rng):
        hooks = [[f"blocks.{i}.{value}" for i in range(LAYERS)] for value in ("hook_resid_mid", "hook_mlp_out")]
        norms = average_norms(rng, hooks[0] + hooks[1])
        tensors = {"W_E": floats(rng, LAYERS, D, M), "b_E": floats(rng, LAYERS, M)}
        tensors |= {f"W_D.{t}": floats(rng, t + 1, M, D) for t in range(LAYERS)}
        tensors |= {f"b_D.{t}": floats(rng, D) for t in range(LAYERS)}
        tensors |= {THRESHOLD: floats(rng, LAYERS, M)} if kind == "jumprelu" else {}
        config = {"sae_type": "clt", "act_fn": kind, "norm_activation": "dataset-wise", "hook_points_in": hooks[0],
                  "hook_points_out": hooks[1], "sparsity_include_decoder_norm": flag}  # fmt: skip
        save(directory / "clt", config, tensors | stored_norms(norms), "sae_weights.safetensors")
        t, x = wide(tensors), floats(rng, LAYERS, ROWS, D)
        into, out = ([scale(norms[hook]) for hook in one] for one in hooks)
        rows = [np.sqrt(sum((t[f"W_D.{j}"][i] ** 2).sum(-1) for j in range(i, LAYERS))) for i in range(LAYERS)]
        theta = np.exp(t.get(THRESHOLD, np.zeros((LAYERS, M))))
        pre = [x[i].astype(np.float64) * into[i] @ t["W_E"][i] + t["b_E"][i] for i in range(LAYERS)]
        f = [gated(pre[i], rows[i] if flag else np.ones(M), kind, theta[i]) for i in range(LAYERS)]
        y = [(sum(f[i] @ t[f"W_D.{j}"][i] for i in range(j + 1)) + t[f"b_D.{j}"]) / out[j] for j in range(LAYERS)]
        if kind == "topk" and flag:  # latents are given in units of unit decoder rows
            f = [f[i] * rows[i] for i in range(LAYERS)]
        value = lambda name: tuple(f"blocks.{i}.{name}" for i in range(LAYERS))
        return Layout(directory / "clt", x, np.stack(f), np.stack(y), value("resid_mid"), value("mlp_out"))

    LAYOUTS[f"llamascopium CLT, {name}"] = write


_clt("ReLU", "relu", False)
_clt("JumpReLU with decoder norms", "jumprelu", True)
_clt("TopK with decoder norms", "topk", True)
_clt("TopK", "topk", False)


def _crosscoder(name, kind, equal):
    def write(directory, rng):
        hooks = [f"blocks.{i}.hook_resid_post" for i in range(LAYERS)]
        norms = average_norms(rng, hooks)
        W_D = floats(rng, LAYERS, M, D)
        if equal:
            W_D = (W_D / np.linalg.norm(W_D, axis=-1, keepdims=True)).astype(np.float32)
        tensors = {"W_E": floats(rng, LAYERS, D, M), "b_E": floats(rng, LAYERS, M), "W_D": W_D,
                   "b_D": floats(rng, LAYERS, D)}  # fmt: skip
        tensors |= {THRESHOLD: floats(rng, M)} if kind == "jumprelu" else {}
        config = {"sae_type": "crosscoder", "act_fn": kind, "norm_activation": "dataset-wise", "hook_points": hooks,
                  "sparsity_include_decoder_norm": True}  # fmt: skip
        save(directory / "crosscoder", config, tensors | stored_norms(norms), "sae_weights.safetensors")
        t, x = wide(tensors), floats(rng, ROWS, LAYERS, D)
        s = np.asarray([scale(norms[hook]) for hook in hooks])
        pre = np.einsum("rhd,h,hdm->rm", x.astype(np.float64), s, t["W_E"]) + t["b_E"].sum(0)
        rows = np.linalg.norm(t["W_D"], axis=-1)
        f = np.stack([gated(pre, rows[h], kind, np.exp(t.get(THRESHOLD, 0.0))) for h in range(LAYERS)], axis=1)
        y = (np.einsum("rhm,hmd->rhd", f, t["W_D"]) + t["b_D"]) / s[:, None]
        latents = f[:, 0] if kind == "relu" else f.reshape(ROWS, -1)
        value = tuple(f"blocks.{i}.resid_post" for i in range(LAYERS))
        notes = ("its own copy",) if kind == "jumprelu" else ()
        return Layout(directory / "crosscoder", x.reshape(ROWS, -1), latents, y.reshape(ROWS, -1), value, notes=notes)

    LAYOUTS[f"llamascopium crosscoder, {name}"] = write


_crosscoder("ReLU", "relu", False)
_crosscoder("JumpReLU, gates of each value", "jumprelu", False)
