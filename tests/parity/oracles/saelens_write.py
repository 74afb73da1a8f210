"""Write dictionaries of every architecture of SAELens with random weights, and what they compute.

    python saelens_write.py FOLDER

Each case is one folder with the files that `sae_lens` writes, and `expected.npz` with inputs x, latents and output.
For a checkpoint of training this is what `sae_lens` computes after it has folded scales and exported it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from sae_lens import SAE
from sae_lens.registry import get_sae_class, get_sae_training_class
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening
from safetensors.torch import save_file

D, M, ROWS, HEADS, SCALE = 8, 24, 40, 2, 0.37
FOLDER = Path(sys.argv[1])
HOOK = {"hook_name": "blocks.1.hook_resid_post", "model_name": "gpt2", "prepend_bos": True}
OUT = {"hook_name": "blocks.1.ln2.hook_normalized", "hook_name_out": "blocks.1.hook_mlp_out", "model_name": "gpt2"}
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")


def draw(sae) -> None:
    """Random weights of about unit scale, thresholds above 0, decoder rows of different norms."""
    positive = {"threshold": 0.5, "topk_threshold": 0.4}
    for name, a in (*sae.named_parameters(), *sae.named_buffers()):
        if name in positive:
            a.data.copy_(positive[name] + torch.rand(a.shape))
        elif name.startswith("attn_layers") or name == "W_skip":
            a.data.normal_(0, 0.3)
        else:
            a.data.normal_(0, 1.0 if a.ndim == 1 else a.shape[-1 if name == "W_dec" else 0] ** -0.5)
    sae.W_dec.data.mul_(torch.linspace(0.5, 2, M)[:, None])


def made(architecture: str, training: bool = False, metadata: dict | None = None, **settings):
    """A dictionary with random weights. Settings are those of its config class."""
    sae_class, config_class = (get_sae_training_class if training else get_sae_class)(architecture)
    if architecture in TRANSCODERS:
        settings = {"d_out": D + 4, "apply_b_dec_to_input": False} | settings
        metadata = OUT if metadata is None else metadata
    config = config_class(d_in=D, d_sae=M, **settings)
    config.metadata = SAEMetadata(**(HOOK if metadata is None else metadata))
    sae = sae_class(config)
    torch.manual_seed(len(architecture))
    draw(sae)
    return sae.eval()


@torch.no_grad()
def expect(case: str, sae, x: torch.Tensor | None = None) -> None:
    """Save what `sae` computes. Training may follow: it is in the state that `sae_lens` loads for inference."""
    torch.manual_seed(7)
    if x is None:
        x = torch.randn(4, ROWS // 4, D) * 2 + 0.3
    arrays = {"x": x, "latents": sae.encode(x), "output": sae(x)}
    np.savez(FOLDER / case / "expected.npz", **{name: a.float().numpy() for name, a in arrays.items()})


def inference(case: str, architecture: str, x: torch.Tensor | None = None, **settings) -> None:
    sae = made(architecture, **settings)
    sae.save_model(FOLDER / case)
    expect(case, SAE.load_from_disk(FOLDER / case), x)


def inference_cases() -> None:
    inference("standard", "standard")
    inference("standard, no pre-bias", "standard", apply_b_dec_to_input=False)
    inference("gated", "gated")
    inference("gated, no pre-bias", "gated", apply_b_dec_to_input=False)
    inference("jumprelu", "jumprelu")
    for name in ("topk", "abstopk"):
        inference(name, name, k=5)
        inference(f"{name}, decoder norms", name, k=5, rescale_acts_by_decoder_norm=True)
    unit = {"residual_threshold": 0.6, "max_iterations": 6}
    inference("matching_pursuit", "matching_pursuit", **unit)
    inference("matching_pursuit, no stop at a retake", "matching_pursuit", stop_on_duplicate_support=False, **unit)
    inference("matching_pursuit, no pre-bias", "matching_pursuit", apply_b_dec_to_input=False)
    for name in TRANSCODERS:
        inference(name, name)
    for mode in ("layer_norm", "constant_norm_rescale"):
        inference(f"standard, {mode}", "standard", normalize_activations=mode)
        inference(f"topk, {mode}", "topk", k=5, normalize_activations=mode, apply_b_dec_to_input=False)
        inference(f"transcoder, {mode}", "transcoder", normalize_activations=mode)
    inference("skip_transcoder, layer_norm", "skip_transcoder", normalize_activations="layer_norm")
    heads = torch.randn(ROWS, HEADS, D // HEADS)
    z = {"hook_name": "blocks.1.attn.hook_z", "model_name": "gpt2"}
    inference("standard, hook_z", "standard", heads, reshape_activations="hook_z", metadata=z)
    inference(
        "jumprelu, hook_z, layer_norm", "jumprelu", heads, reshape_activations="hook_z", metadata=z,
        normalize_activations="layer_norm",
    )  # fmt: skip
    temporal = {"n_heads": 2, "bottleneck_factor": 3, "n_attn_layers": 2}
    rescaled = {"normalize_activations": "constant_scalar_rescale", "activation_normalization_factor": SCALE}
    inference("temporal", "temporal", kval_topk=5, **temporal, **rescaled)
    inference("temporal, untied, relu", "temporal", tied_weights=False, sae_diff_type="relu", **temporal)
    sae = made("jumprelu", dtype="bfloat16")  # SAELens computes in float32 with it, as from_pretrained does
    sae.save_model(FOLDER / "jumprelu, bfloat16")
    expect("jumprelu, bfloat16", SAE.load_from_disk(FOLDER / "jumprelu, bfloat16", dtype="float32"))


def checkpoint(case: str, architecture: str, factor: float | None = None, whiten: bool = False, **settings) -> None:
    """A checkpoint of training, and what the dictionary computes that training would export."""
    modes = {"expected_average_only_in": factor is not None, "covariance_whitening": whiten}
    mode = next((name for name, on in modes.items() if on), "none")
    sae = made(architecture, training=True, normalize_activations=mode, **settings)
    sae.save_model(FOLDER / case)
    scaler = ActivationScaler(factor)
    if whiten:
        A = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64))[0]
        size = torch.linspace(0.3, 3, D, dtype=torch.float64)
        scaler.whitening = ActivationWhitening(torch.randn(D, dtype=torch.float64), A / size, size[:, None] * A.T)
    scaler.save(str(FOLDER / case / "activation_scaler.json"))
    if factor is not None:
        sae.fold_activation_norm_scaling_factor(factor)
    if scaler.whitening is not None:
        w = scaler.whitening
        sae.fold_activation_whitening(w.mean, w.matrix, w.inverse_matrix)
    exported = FOLDER / f"{case}, exported"
    sae.save_inference_model(exported)
    loaded = SAE.load_from_disk(exported)
    expect(f"{case}, exported", loaded)
    expect(case, loaded)


def training_cases() -> None:
    for name in ("standard", "gated", "jumprelu"):
        checkpoint(f"{name} checkpoint", name)
    for name in ("topk", "abstopk", "batchtopk"):
        checkpoint(f"{name} checkpoint", name, k=5)
        checkpoint(f"{name} checkpoint, scaled", name, SCALE, k=5)
        checkpoint(f"{name} checkpoint, no decoder norms, scaled", name, SCALE, k=5, rescale_acts_by_decoder_norm=False)
        checkpoint(f"{name} checkpoint, whitened", name, whiten=True, k=5)
    checkpoint("matryoshka_batchtopk checkpoint", "matryoshka_batchtopk", k=5, matryoshka_widths=[8, 24])
    checkpoint("matching_pursuit checkpoint", "matching_pursuit", max_iterations=5)
    for name in ("standard", "gated", "jumprelu"):
        checkpoint(f"{name} checkpoint, scaled", name, SCALE)
        checkpoint(f"{name} checkpoint, whitened", name, whiten=True)
        checkpoint(f"{name} checkpoint, no pre-bias, whitened", name, whiten=True, apply_b_dec_to_input=False)
    # the layout of older checkpoints
    sae = made("jumprelu", training=True)
    case = "jumprelu checkpoint, log_threshold"
    sae.save_model(FOLDER / case)
    tensors = {name: a.detach().clone() for name, a in sae.state_dict().items()}
    tensors["log_threshold"] = tensors.pop("threshold").log()
    save_file(tensors, FOLDER / case / "sae_weights.safetensors")
    sae.load_weights_from_checkpoint(FOLDER / case)
    expect(case, sae)


def legacy(case: str, factor: float | None = None, ones: bool = False, architecture: str = "standard", **cfg) -> None:
    """The flat config of before version 6."""
    known = {"k": cfg["activation_fn_kwargs"]["k"]} if "activation_fn_kwargs" in cfg else {}
    sae = made(architecture, **known)
    folder = FOLDER / case
    folder.mkdir(parents=True)
    tensors = {name: a.detach() for name, a in sae.state_dict().items()}
    if ones:
        tensors["scaling_factor"] = torch.ones(M)
    save_file(tensors, folder / "sae_weights.safetensors")
    base = {
        "d_in": D, "d_sae": M, "dtype": "torch.float32", "model_name": "gpt2-small", "l1_coefficient": 8e-5,
        "hook_point_layer": 8, "expansion_factor": 3,
    }  # fmt: skip
    named = {"architecture": architecture} if architecture == "gated" else {}
    (folder / "cfg.json").write_text(json.dumps(base | named | cfg))
    loaded = SAE.load_from_disk(folder)
    if factor is not None:
        (folder / "release.json").write_text(json.dumps({"norm_scaling_factor": factor}))
        loaded.fold_activation_norm_scaling_factor(factor)
    expect(case, loaded)


def legacy_cases() -> None:
    legacy("legacy standard", hook_point="blocks.8.hook_resid_pre", hook_point_head_index=None, ones=True)
    legacy(
        "legacy standard, scaled by the release", SCALE, hook_name="blocks.8.hook_resid_pre",
        normalize_activations="expected_average_only_in", apply_b_dec_to_input=False, activation_fn_str="relu",
    )  # fmt: skip
    legacy("legacy standard, boolean scale", SCALE, hook_name="blocks.8.hook_resid_pre", normalize_activations=True)
    legacy(
        "legacy topk", architecture="topk", hook_name="blocks.8.hook_mlp_out", activation_fn_str="topk",
        activation_fn_kwargs={"k": 4}, normalize_activations="none", sae_lens_version="5.9.1",
    )  # fmt: skip
    legacy("legacy gated", architecture="gated", hook_name="blocks.8.hook_resid_post", normalize_activations=None)


if __name__ == "__main__":
    torch.manual_seed(0)
    for write in (inference_cases, training_cases, legacy_cases):
        write()
