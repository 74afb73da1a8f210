"""Layouts of the formats that come as torch files, of sparsify and of gpt-circuits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from tests.dictionaries.formats.published import Layout, Layouts, floats, jump, layout, relu, top_k, wide
from tests.torch_archives import Call, Name, Object, save, save_legacy, save_plain

LAYOUTS: Layouts = {}
D, M, ROWS = 6, 20, 11
PROCESSED = "center_writing_weights"


def made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value))


def linear(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Two `torch.nn.Linear`, the second one without a bias."""
    return {"encoder.weight": floats(rng, M, D), "encoder.bias": floats(rng, M), "decoder.weight": floats(rng, D, M)}


def direct(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"W_enc": floats(rng, D, M), "b_enc": floats(rng, M), "W_dec": floats(rng, M, D), "b_dec": floats(rng, D)}


def rows(rng: np.random.Generator, d: int = D) -> np.ndarray:
    return rng.standard_normal((ROWS, d)).astype(np.float32).astype(np.float64)


# --- dictionary_learning


def learned(directory: Path, kind: str, tensors: dict[str, Any], **settings: Any) -> Path:
    folder = made(directory / "resid_post_layer_3" / "trainer_0")
    save(folder / "ae.pt", tensors)
    trainer = {"dict_class": kind, "activation_dim": D, "dict_size": M, "layer": 3, "lm_name": "EleutherAI/pythia-70m"}
    trainer |= {"submodule_name": "resid_post_layer_3", "lr": 1e-4} | settings
    write_json(folder / "config.json", {"trainer": trainer, "buffer": {"ctx_len": 128}})
    return folder


def learned_layout(path: Path, x, z, y, **others: Any) -> Layout:
    return Layout(path, x, z, y, address="blocks.3.resid_post", model="EleutherAI/pythia-70m", **others)


@layout(LAYOUTS, "dictionary_learning AutoEncoder")
def auto_encoder(directory, rng):
    t = linear(rng) | {"bias": floats(rng, D)}
    w, x = wide(t), rows(rng)
    # from_pretrained gives rows of the decoder norm 1, and multiplies the encoder by the norms
    norms = np.linalg.norm(w["decoder.weight"], axis=0)
    z = relu((x - w["bias"]) @ w["encoder.weight"].T + w["encoder.bias"]) * norms
    y = (z / norms) @ w["decoder.weight"].T + w["bias"]
    return learned_layout(learned(directory, "AutoEncoder", t), x, z, y, notes=("norm 1 now",))


@layout(LAYOUTS, "dictionary_learning AutoEncoderNew, compiled, bfloat16")
def auto_encoder_new(directory, rng):
    t = {name: a.astype(ml_dtypes.bfloat16) for name, a in (linear(rng) | {"decoder.bias": floats(rng, D)}).items()}
    w, x = wide(t), rows(rng)
    z = relu(x @ w["encoder.weight"].T + w["encoder.bias"])
    y = z @ w["decoder.weight"].T + w["decoder.bias"]
    stored = {f"_orig_mod.{name}": a for name, a in t.items()}
    return learned_layout(learned(directory, "AutoEncoderNew", stored), x, z, y)


@layout(LAYOUTS, "dictionary_learning GatedAutoEncoder")
def gated(directory, rng):
    t = linear(rng)
    t["gate_bias"] = t.pop("encoder.bias")
    t |= {"r_mag": floats(rng, M, scale=0.3), "mag_bias": floats(rng, M), "decoder_bias": floats(rng, D)}
    w, x = wide(t), rows(rng)
    product = (x - w["decoder_bias"]) @ w["encoder.weight"].T
    z = (product + w["gate_bias"] > 0) * relu(product * np.exp(w["r_mag"]) + w["mag_bias"])
    y = z @ w["decoder.weight"].T + w["decoder_bias"]
    return learned_layout(learned(directory, "GatedAutoEncoder", t), x, z, y)


@layout(LAYOUTS, "dictionary_learning JumpReluAutoEncoder")
def jump_relu(directory, rng):
    t = direct(rng) | {"threshold": rng.uniform(-0.3, 1.5, M).astype(np.float32)}
    w, x = wide(t), rows(rng)
    z = jump(x @ w["W_enc"] + w["b_enc"], w["threshold"])
    return learned_layout(learned(directory, "JumpReluAutoEncoder", t), x, z, z @ w["W_dec"] + w["b_dec"])


@layout(LAYOUTS, "dictionary_learning AutoEncoderTopK")
def auto_encoder_top_k(directory, rng):
    t = linear(rng) | {"b_dec": floats(rng, D), "k": np.asarray(4, np.int32), "threshold": np.asarray(0.8, np.float32)}
    w, x = wide(t), rows(rng)
    z = top_k((x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"], 4)
    y = z @ w["decoder.weight"].T + w["b_dec"]
    path = learned(directory, "AutoEncoderTopK", t, k=4)
    return learned_layout(path, x, z, y, optional=("threshold", "k"), notes=("threshold 0.8 of the file is not used",))


@layout(LAYOUTS, "dictionary_learning BatchTopKSAE")
def batch_top_k(directory, rng):
    t = linear(rng) | {"b_dec": floats(rng, D), "k": np.asarray(4, np.int32), "threshold": np.asarray(0.8, np.float32)}
    w, x = wide(t), rows(rng)
    z = jump((x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"], w["threshold"])
    y = z @ w["decoder.weight"].T + w["b_dec"]
    return learned_layout(learned(directory, "BatchTopKSAE", t, k=4), x, z, y, optional=("k",))


@layout(LAYOUTS, "dictionary_learning MatryoshkaBatchTopKSAE")
def matryoshka(directory, rng):
    t = direct(rng) | {"k": np.asarray(4, np.int32), "threshold": np.asarray(0.8, np.float32)}
    t["group_sizes"] = np.asarray([5, 15])
    w, x = wide(t), rows(rng)
    z = jump((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], w["threshold"])
    path = learned(directory, "MatryoshkaBatchTopKSAE", t, k=4)
    return learned_layout(path, x, z, z @ w["W_dec"] + w["b_dec"], optional=("k", "group_sizes"))


@layout(LAYOUTS, "dictionary_learning without a config, older torch file")
def pythia(directory, rng):
    t = linear(rng) | {"bias": floats(rng, D)}
    t["decoder.weight"] /= np.linalg.norm(t["decoder.weight"], axis=0)
    folder = made(directory / "dictionaries" / "pythia-70m-deduped" / "mlp_out_layer2" / "10_32768")
    save_legacy(folder / "ae.pt", t)
    w, x = wide(t), rows(rng)
    z = relu((x - w["bias"]) @ w["encoder.weight"].T + w["encoder.bias"])
    y = z @ w["decoder.weight"].T + w["bias"]
    return Layout(folder / "ae.pt", x, z, y, address="blocks.2.mlp_out")


# --- one file without a config file


@layout(LAYOUTS, "deepseek-r1")
def deepseek(directory, rng):
    t = {name: a.astype(ml_dtypes.bfloat16) for name, a in (linear(rng) | {"decoder.bias": floats(rng, D)}).items()}
    name = "DeepSeek-R1-Distill-Llama-8B-SAE-l19"
    path = save(made(directory / name) / f"{name}.pt", t)
    w, x = wide(t), rows(rng)
    z = relu(x @ w["encoder.weight"].T + w["encoder.bias"])
    y = z @ w["decoder.weight"].T + w["decoder.bias"]
    return Layout(path, x, z, y, address="blocks.19.resid_post", model="deepseek-ai/DeepSeek-R1-Distill-Llama-8B")


@layout(LAYOUTS, "goodfire")
def goodfire(directory, rng):
    t = linear(rng) | {"decoder.bias": floats(rng, D)}
    name = "Llama-3.3-70B-Instruct-SAE-l50"
    folder = made(directory / name)
    save(folder / f"{name}.pt", {key.replace(".", "_linear."): a for key, a in t.items()})
    w, x = wide(t), rows(rng)
    z = relu(x @ w["encoder.weight"].T + w["encoder.bias"])
    y = z @ w["decoder.weight"].T + w["decoder.bias"]
    return Layout(folder, x, z, y, address="blocks.50.resid_post", model="meta-llama/Llama-3.3-70B-Instruct")


@layout(LAYOUTS, "qwen-scope")
def qwen(directory, rng):
    m, k = 1024, 5
    t = {"W_enc": floats(rng, m, D), "W_dec": floats(rng, D, m), "b_enc": floats(rng, m), "b_dec": floats(rng, D)}
    folder = made(directory / f"SAE-Res-Qwen3-8B-Base-W1K-L0_{k}")
    path = save(folder / "layer12.sae.pt", t)
    w, x = wide(t), rows(rng)
    z = top_k(x @ w["W_enc"].T + w["b_enc"], k)
    y = z @ w["W_dec"].T + w["b_dec"]
    return Layout(path, x, z, y, address="blocks.12.resid_post", model="Qwen/Qwen3-8B-Base", stated={"l0": k})


@layout(LAYOUTS, "openai-gpt2 ReLU")
def openai(directory, rng):
    t = {"pre_bias": floats(rng, D), "latent_bias": floats(rng, M)}
    t |= {"encoder.weight": floats(rng, M, D), "decoder.weight": floats(rng, D, M)}
    statistics = {
        "stats_last_nonzero": np.arange(M),
        "latents_activation_frequency": np.ones(M, np.float32),
        "latents_mean_square": np.ones(M, np.float32),
    }
    others = {"activation": "ReLU", "activation_state_dict": {}}
    path = save(made(directory / "gpt2-small" / "mlp_post_act_v4" / "autoencoders") / "7.pt", t | statistics | others)
    w, x = wide(t), rows(rng)
    z = relu((x - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"])
    y = z @ w["decoder.weight"].T + w["pre_bias"]
    optional = (*statistics, "decoder.weight")
    return Layout(path, x, z, y, "blocks.7.mlp.post", model="gpt2", notes=(PROCESSED,), optional=optional)


def layer_norm(x):
    """(normalised, mean, standard deviation), as OpenAI and bartbussmann compute them."""
    mean = x.mean(-1, keepdims=True)
    std = (x - mean).std(-1, keepdims=True, ddof=1)
    return (x - mean) / (std + 1e-5), mean, std


@layout(LAYOUTS, "openai-gpt2 TopK, tied")
def openai_top_k(directory, rng):
    t = {"pre_bias": floats(rng, D), "latent_bias": floats(rng, M), "encoder.weight": floats(rng, M, D)}
    others = {"activation": "TopK", "activation_state_dict": {"k": 4, "postact_fn": "ReLU"}}
    path = save(made(directory / "gpt2-small" / "resid_post_attn_v5_32k" / "autoencoders") / "8.pt", t | others)
    w, x = wide(t), 3 * rows(rng) + 1
    normal, mean, std = layer_norm(x)
    z = top_k((normal - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"], 4)
    y = (z @ w["encoder.weight"] + w["pre_bias"]) * std + mean
    return Layout(path, x, z, y, "blocks.8.resid_mid", model="gpt2", notes=(PROCESSED,))


@layout(LAYOUTS, "e2e-sae")
def end_to_end(directory, rng):
    t = linear(rng) | {"decoder.bias": floats(rng, D)}
    site = "blocks-6-hook_resid_pre"
    names = {name: f"{site}.{name.replace('encoder.', 'encoder.0.')}" for name in t}
    path = save(made(directory) / "e2e_similar_ce_layer_6.pt", {names[name]: a for name, a in t.items()})
    path.with_suffix(".yaml").write_text("tlens_model_name: gpt2-small\nsaes:\n  dict_size_to_input_ratio: 60.0\n")
    w, x = wide(t), rows(rng)
    z = relu(x @ w["encoder.weight"].T + w["encoder.bias"])
    y = z @ (w["decoder.weight"] / np.linalg.norm(w["decoder.weight"], axis=0)).T + w["decoder.bias"]
    return Layout(path, x, z, y, address="blocks.6.resid_pre", model="gpt2", notes=(PROCESSED,))


def runner_config(**settings: Any) -> Object:
    device = Call(Name("torch", "device"), ("cuda",))
    common = {"model_name": "gpt2-small", "d_in": D, "device": device, "dtype": Name("torch", "float32"), "lr": 4e-4}
    return Object("sae_training.config.LanguageModelSAERunnerConfig", common | settings)


@layout(LAYOUTS, "transcoder_circuits transcoder")
def transcoder(directory, rng):
    t = direct(rng) | {"W_dec": floats(rng, M, D + 2), "b_dec_out": floats(rng, D + 2)}
    config = runner_config(
        is_transcoder=True,
        hook_point="blocks.8.ln2.hook_normalized",
        out_hook_point="blocks.8.hook_mlp_out",
        d_out=D + 2,
    )
    path = save(made(directory) / "final_sparse_autoencoder_gpt2.pt", {"cfg": config, "state_dict": t})
    w, x = wide(t), rows(rng)
    z = relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    y = z @ w["W_dec"] + w["b_dec_out"]
    return Layout(path, x, z, y, "blocks.8.ln2.normalized", "blocks.8.mlp_out", "gpt2", notes=(PROCESSED,))


@layout(LAYOUTS, "transcoder_circuits SAE")
def circuits_sae(directory, rng, write=save_legacy, ending=".pt"):
    t = direct(rng)
    config = runner_config(is_transcoder=False, hook_point="blocks.2.hook_mlp_out")
    path = write(made(directory) / f"sae.pt{ending}", {"cfg": config, "state_dict": t})
    w, x = wide(t), rows(rng)
    z = relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    return Layout(path, x, z, z @ w["W_dec"] + w["b_dec"], "blocks.2.mlp_out", None, "gpt2", notes=(PROCESSED,))


@layout(LAYOUTS, "transcoder_circuits SAE, compressed pickle")
def circuits_pickle(directory, rng):
    return circuits_sae(directory, rng, save_plain, ".pkl.gz")


# --- crosscoders


def crosscoder(rng: np.random.Generator, layers: int = 2) -> dict[str, np.ndarray]:
    return {
        "encoder.weight": floats(rng, layers, D, M),
        "encoder.bias": floats(rng, M),
        "decoder.weight": floats(rng, layers, M, D),
        "decoder.bias": floats(rng, layers, D),
    }


def flat(a: np.ndarray) -> np.ndarray:
    return a.reshape(len(a), -1)


@layout(LAYOUTS, "ckkissane")
def ckkissane(directory, rng):
    t = {
        "W_enc": floats(rng, 2, D, M),
        "W_dec": floats(rng, M, 2, D),
        "b_enc": floats(rng, M),
        "b_dec": floats(rng, 2, D),
    }
    folder = made(directory / "blocks.14.hook_resid_pre")
    save(folder / "cc_weights.pt", t)
    write_json(
        folder / "cfg.json", {"hook_point": "blocks.14.hook_resid_pre", "model_name": "gemma-2-2b", "dict_size": M}
    )
    w, x = wide(t), rng.standard_normal((ROWS, 2, D))
    z = relu(np.einsum("rld,ldm->rm", x, w["W_enc"]) + w["b_enc"])
    y = np.einsum("rm,mld->rld", z, w["W_dec"]) + w["b_dec"]
    notes = ("fold_input_scale", "blocks.14.resid_pre")
    return Layout(folder, flat(x), z, flat(y), ("model_0", "model_1"), None, "gemma-2-2b", notes=notes)


def normalised(t: dict[str, np.ndarray], rng, layers: int, relative: bool) -> tuple[Any, Any]:
    """Add statistics, and return the normalisation and its inverse."""
    mean, std = floats(rng, layers, D), rng.uniform(0.5, 2, (layers, D)).astype(np.float32)
    rms = np.float32(1.5)
    scale = (rms / np.sqrt((std**2).sum(-1) + 1e-8)).astype(np.float32)
    stored = scale if relative else np.ones(layers, np.float32)
    t |= {
        "activation_mean": mean,
        "activation_std": std,
        "target_rms": np.asarray(rms),
        "activation_global_scale": stored,
    }
    mean, std, scale = (a.astype(np.float64) for a in (mean, std, scale))
    if relative:
        return (lambda x: (x - mean) * scale[:, None]), (lambda y: y / (scale[:, None] + 1e-8) + mean)
    return (lambda x: (x - mean) / (std + 1e-8)), (lambda y: y * (std + 1e-8) + mean)


STATISTICS = ("activation_global_scale", "activation_mean", "activation_std", "target_rms")


@layout(LAYOUTS, "crosscoder_learning ReLU, three layers")
def relu_crosscoder(directory, rng):
    t = crosscoder(rng, 3)
    unset = np.full((3, D), np.nan, np.float32)
    t |= {"activation_mean": unset, "activation_std": unset, "target_rms": np.asarray(np.float32(1))}
    t |= {"activation_global_scale": np.ones(3, np.float32), "code_normalization_id": np.asarray(1)}
    path = save(made(directory) / "model_final.pt", {f"_orig_mod.{name}": a for name, a in t.items()})
    w, x = wide(t), rng.standard_normal((ROWS, 3, D))
    z = relu(np.einsum("rld,ldm->rm", x, w["encoder.weight"]) + w["encoder.bias"])
    y = np.einsum("rm,lmd->rld", z, w["decoder.weight"]) + w["decoder.bias"]
    optional = (*STATISTICS, "code_normalization_id")
    return Layout(path, flat(x), z, flat(y), optional=optional, notes=("do not say which",))


def batch_top_k_crosscoder(directory, rng, norm: int, relative: bool, config: dict[str, Any] | None = None) -> Layout:
    t = crosscoder(rng)
    threshold = np.float32(9.0 if norm != 4 else 1.2)
    t |= {"k": np.asarray(4, np.int32), "threshold": np.asarray(threshold), "code_normalization_id": np.asarray(norm)}
    w, x = wide(t), rng.standard_normal((ROWS, 2, D))
    forth, back = normalised(t, rng, 2, relative)
    pre = relu(np.einsum("rld,ldm->rm", forth(x), w["encoder.weight"]) + w["encoder.bias"])
    each = np.linalg.norm(w["decoder.weight"], axis=2)
    norms = {1: each.sum(0), 2: np.sqrt((each**2).sum(0)), 4: np.ones(M)}
    norms[3] = 0.75 * norms[2] + 0.25 * norms[1]
    z = pre * (pre * norms[norm] > threshold)
    y = back(np.einsum("rm,lmd->rld", z, w["decoder.weight"]) + w["decoder.bias"])
    folder = made(directory / "run")
    if config is None:
        path = save(folder / "model.pt", t)
    else:
        write_json(folder / "config.json", config)
        save_file(t, folder / "model.safetensors")
        path = folder
    optional = ("code_normalization_id",)  # older files lack it; what they mean then is in a note
    optional += () if relative else ("activation_global_scale", "target_rms")  # not used
    return Layout(path, flat(x), z, flat(y), ("model_0", "model_1"), optional=optional, notes=("do not say which",))


@layout(LAYOUTS, "crosscoder_learning BatchTopK, crosscoder norm")
def crosscoder_norm(directory, rng):
    return batch_top_k_crosscoder(directory, rng, 1, True)


@layout(LAYOUTS, "crosscoder_learning BatchTopK, SAE norm, coordinates normalised")
def sae_norm(directory, rng):
    return batch_top_k_crosscoder(directory, rng, 2, False, {"keep_relative_variance": False, "k": 4})


@layout(LAYOUTS, "crosscoder_learning BatchTopK, mixed norm")
def mixed_norm(directory, rng):
    shares = {"code_normalization_alpha_sae": 0.75, "code_normalization_alpha_cc": 0.25}
    return batch_top_k_crosscoder(directory, rng, 3, True, {"code_normalization": "MIXED", **shares})


@layout(LAYOUTS, "crosscoder_learning BatchTopK, no norm")
def no_norm(directory, rng):
    return batch_top_k_crosscoder(directory, rng, 4, True)


# --- bartbussmann/BatchTopK


def batch_top_k_repository(directory, rng, kind: str, t: dict[str, np.ndarray], z, **settings: Any) -> Layout:
    folder = made(directory / f"gpt2-small_blocks.8.hook_resid_pre_{M}_{kind}_1000")
    save(folder / "sae.pt", t)
    config = {"sae_type": kind, "act_size": D, "dict_size": M, "model_name": "gpt2-small", "input_unit_norm": False}
    config |= {"hook_point": "blocks.8.hook_resid_pre", "layer": 8, "site": "resid_pre", "dtype": "torch.float32"}
    write_json(folder / "config.json", config | settings)
    w, x = wide(t), 3 * rows(rng) + 1
    normal, mean, std = layer_norm(x) if settings.get("input_unit_norm") else (x, 0, 1)
    latents = z(normal, w)
    y = (latents @ w["W_dec"] + w["b_dec"]) * std + mean
    return Layout(folder, x, latents, y, "blocks.8.resid_pre", model="gpt2", notes=(PROCESSED,))


@layout(LAYOUTS, "bartbussmann vanilla")
def vanilla(directory, rng):
    z = lambda x, w: relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    return batch_top_k_repository(directory, rng, "vanilla", direct(rng), z)


@layout(LAYOUTS, "bartbussmann topk, normalised inputs")
def repository_top_k(directory, rng):
    t = direct(rng) | {"b_enc": np.zeros(M, np.float32)}
    z = lambda x, w: top_k((x - w["b_dec"]) @ w["W_enc"], 4)
    return batch_top_k_repository(directory, rng, "topk", t, z, top_k=4, input_unit_norm=True)


@layout(LAYOUTS, "bartbussmann batchtopk with a threshold")
def repository_batch_top_k(directory, rng):
    t = direct(rng) | {"b_enc": np.zeros(M, np.float32), "threshold": np.asarray(0.8, np.float32)}
    z = lambda x, w: jump((x - w["b_dec"]) @ w["W_enc"], w["threshold"])
    return batch_top_k_repository(directory, rng, "batchtopk", t, z, top_k=4)


@layout(LAYOUTS, "bartbussmann jumprelu")
def repository_jump(directory, rng):
    t = direct(rng) | {"jumprelu.log_threshold": floats(rng, M, scale=0.5)}
    z = lambda x, w: jump(x @ w["W_enc"] + w["b_enc"], np.exp(w["jumprelu.log_threshold"]))
    return batch_top_k_repository(directory, rng, "jumprelu", t, z)


# --- sparsify


def sparsified(directory, rng, hook: str, settings: dict[str, Any], z, model: str | None = None, **others) -> Layout:
    t = {"encoder.weight": floats(rng, M, D), "encoder.bias": floats(rng, M), "W_dec": floats(rng, M, D)}
    t["b_dec"] = floats(rng, D)
    if settings.get("skip_connection"):
        t["W_skip"] = floats(rng, D, D)
    folder = made(directory / "sae-model-32x" / hook)
    save_file(t, folder / "sae.safetensors")
    write_json(folder / "cfg.json", {"expansion_factor": 32, "num_latents": M, "k": 4, "d_in": D} | settings)
    if model is not None:
        write_json(folder.parent / "config.json", {"model": model, "dataset": "pile", "ctx_len": 2048})
    w, x = wide(t), rows(rng)
    latents = z((x if settings.get("transcode") else x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"])
    y = latents @ w["W_dec"] + w["b_dec"]
    y = y + (x @ w["W_skip"].T if "W_skip" in w else 0)
    return Layout(folder, x, latents, y, model=model, **others)


@layout(LAYOUTS, "sparsify topk, older config")
def sparsify_top_k(directory, rng):
    settings = {"normalize_decoder": True, "signed": False, "multi_topk": False}
    z = lambda pre: top_k(pre, 4)
    model = "meta-llama/Meta-Llama-3-8B"
    return sparsified(directory, rng, "layers.10", settings, z, model, address="blocks.10.resid_post")


@layout(LAYOUTS, "sparsify groupmax, skip transcoder")
def sparsify_group_max(directory, rng):
    settings = {"activation": "groupmax", "transcode": True, "skip_connection": True, "multi_topk": True}

    def z(pre):
        groups = relu(pre).reshape(ROWS, 4, -1)
        return np.where(groups == groups.max(-1, keepdims=True), groups, 0).reshape(ROWS, M)

    labels = {"address": None, "writes": "blocks.3.mlp_out", "normalized": "blocks.3.ln2.normalized"}
    return sparsified(directory, rng, "layers.3.mlp", settings, z, "EleutherAI/pythia-160m", **labels)


@layout(LAYOUTS, "sparsify signed")
def sparsify_signed(directory, rng):
    def z(pre):
        least = np.sort(np.abs(pre), axis=-1)[:, -4, None]
        return np.where(np.abs(pre) >= least, pre, 0)

    return sparsified(
        directory, rng, "h.5", {"signed": True}, z, "openai-community/gpt2", address="blocks.5.resid_post"
    )


# --- gpt-circuits


def gpt_circuits(directory, rng, variant: str, t: dict[str, np.ndarray], z, **settings: Any) -> Layout:
    folder = made(directory / f"{variant}.tiny_64x4")
    save_file(t, folder / "sae.1.safetensors")
    save_file({"W_dec": floats(rng, 2, 2)}, folder / "sae.0.safetensors")
    config = {"n_features": [8, M, 8, 8, 8], "sae_variant": variant}
    write_json(folder / "sae.json", config | settings)
    write_json(folder / "model.json", {"n_layer": 4, "n_embd": D})
    w, x = wide(t), rows(rng)
    latents = z(x - w["b_dec"], w)
    y = latents @ w["W_dec"] + w["b_dec"]
    return Layout(folder / "sae.1.safetensors", x, latents, y, address="blocks.1.resid_pre")


@layout(LAYOUTS, "gpt-circuits standard")
def circuits_standard(directory, rng):
    return gpt_circuits(directory, rng, "standard", direct(rng), lambda x, w: relu(x @ w["W_enc"] + w["b_enc"]))


@layout(LAYOUTS, "gpt-circuits standard, tied")
def circuits_tied(directory, rng):
    t = {name: a for name, a in direct(rng).items() if name != "W_enc"}
    return gpt_circuits(directory, rng, "standard_v2", t, lambda x, w: relu(x @ w["W_dec"].T + w["b_enc"]))


@layout(LAYOUTS, "gpt-circuits topk")
def circuits_top_k(directory, rng):
    found = gpt_circuits(
        directory, rng, "topk", direct(rng), lambda x, w: top_k(x @ w["W_enc"] + w["b_enc"], 3), top_k=[2, 3, 2, 2, 2]
    )
    found.notes = ("no ReLU after TopK",)
    return found


@layout(LAYOUTS, "gpt-circuits jumprelu")
def circuits_jump(directory, rng):
    t = direct(rng) | {"jumprelu.log_threshold": floats(rng, M, scale=0.5)}
    z = lambda x, w: jump(x @ w["W_enc"] + w["b_enc"], np.exp(w["jumprelu.log_threshold"]))
    return gpt_circuits(directory, rng, "jumprelu", t, z)


def gate(x, w, encoder):
    product = x @ encoder
    r_mag = w.get("r_mag", np.zeros(M))
    return (product + w["b_gate"] > 0) * relu(product * np.exp(r_mag) + w["b_mag"])


@layout(LAYOUTS, "gpt-circuits gated")
def circuits_gated(directory, rng):
    t = {
        "W_gate": floats(rng, D, M),
        "W_dec": floats(rng, M, D),
        "b_dec": floats(rng, D),
        "r_mag": floats(rng, M, scale=0.3),
    }
    t |= {"b_gate": floats(rng, M), "b_mag": floats(rng, M)}
    return gpt_circuits(directory, rng, "gated", t, lambda x, w: gate(x, w, w["W_gate"]))


@layout(LAYOUTS, "gpt-circuits gated, tied")
def circuits_gated_tied(directory, rng):
    t = {"W_dec": floats(rng, M, D), "b_dec": floats(rng, D), "b_gate": floats(rng, M), "b_mag": floats(rng, M)}
    return gpt_circuits(directory, rng, "gated_v2", t, lambda x, w: gate(x, w, w["W_dec"].T))
