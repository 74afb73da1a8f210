"""Random checkpoints of crosslayer-coding."""

from __future__ import annotations

import json

import numpy as np
from safetensors.numpy import save_file

from tests.dictionaries.formats.layer_layouts import LAYERS, ROWS, D, M
from tests.dictionaries.formats.published import Layout, Layouts, floats, jump, wide

LAYOUTS: Layouts = {}

ENCODER, DECODER = "encoder_module.encoders.", "decoder_module.decoders."


def _clt(tying, kind, scaled=False, templates=None, address=None, normalized=None, writes=None, notes=()):
    def write(directory, rng):
        path = directory / "clt"
        path.mkdir()
        pairs = [(s, t) for s in range(LAYERS) for t in range(s, LAYERS)]
        names = {"none": [f"{s}->{t}" for s, t in pairs], "per_source": range(LAYERS), "per_target": range(LAYERS)}[
            tying
        ]
        tensors = {f"{ENCODER}{i}.weight": floats(rng, M, D) for i in range(LAYERS)}
        tensors |= {f"{ENCODER}{i}.bias_param": floats(rng, M) for i in range(LAYERS)}
        tensors |= {f"{DECODER}{name}.weight": floats(rng, D, M) for name in names}
        tensors |= {f"{DECODER}{name}.bias_param": floats(rng, D) for name in names}
        tensors |= {"theta_manager.log_threshold": floats(rng, LAYERS, M)} if kind == "jumprelu" else {}
        if scaled:
            tensors |= {f"decoder_module.feature_scale.{i}": floats(rng, M) for i in range(LAYERS)}
            tensors |= {f"decoder_module.feature_offset.{i}": np.zeros(M, np.float32) for i in range(LAYERS)}
        save_file(tensors, path / "model.safetensors")
        config = {"num_features": M, "num_layers": LAYERS, "d_model": D, "activation_fn": kind, "decoder_tying": tying,
                  "normalization_method": "none", "topk_mode": "global",
                  "enable_feature_scale": scaled, "enable_feature_offset": scaled}  # fmt: skip
        (path / "cfg.json").write_text(json.dumps(config | (templates or {})))
        t, x = wide(tensors), floats(rng, LAYERS, ROWS, D)
        theta = np.exp(t["theta_manager.log_threshold"]) if kind == "jumprelu" else np.zeros((LAYERS, M))
        pre = [x[i] @ t[f"{ENCODER}{i}.weight"].T + t[f"{ENCODER}{i}.bias_param"] for i in range(LAYERS)]
        f = [jump(pre[i], theta[i]) for i in range(LAYERS)]
        y = [_outputs(t, f, target, tying) for target in range(LAYERS)]
        every = lambda value: None if value is None else tuple(f"blocks.{i}.{value}" for i in range(LAYERS))
        model = (templates or {}).get("model_name")
        return Layout(path, x, np.stack(f), np.stack(y), every(address), every(writes), model, every(normalized), notes)

    LAYOUTS[f"crosslayer-coding {tying}, {kind}{', scaled' if scaled else ''}"] = write


def _outputs(t, f, target, tying):
    """The reconstruction of one target from the latents of the sources before it."""
    scale = t.get(f"decoder_module.feature_scale.{target}", 1.0)
    before = [f[s] * scale for s in range(target + 1)]
    linear = lambda a, name: a @ t[f"{DECODER}{name}.weight"].T + t[f"{DECODER}{name}.bias_param"]
    if tying == "per_target":
        return linear(sum(before), target)
    return sum(linear(a, s if tying == "per_source" else f"{s}->{target}") for s, a in enumerate(before))


LENS = {"tl_input_template": "blocks.{}.hook_resid_mid", "tl_output_template": "blocks.{}.hook_mlp_out"}
GPT2 = {"model_name": "gpt2", "mlp_input_template": "transformer.h.{}.mlp.c_fc",
        "mlp_output_template": "transformer.h.{}.mlp.c_proj"}  # fmt: skip
_clt("none", "jumprelu", templates=LENS, address="resid_mid", writes="mlp_out")
_clt("none", "relu", templates=GPT2, normalized="ln2.normalized", writes="mlp_out", notes=("times the norm's weight",))
_clt("per_source", "relu", scaled=True, notes=("does not name",))
_clt("per_target", "jumprelu", scaled=True, notes=("does not name",))
