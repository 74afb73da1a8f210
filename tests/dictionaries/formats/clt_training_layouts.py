"""Random folders of clt-training."""

from __future__ import annotations

import json

import numpy as np
from safetensors.numpy import save_file

from tests.dictionaries.formats.layer_layouts import LAYERS, ROWS, D, M
from tests.dictionaries.formats.published import Layout, Layouts, floats, top_k, wide

LAYOUTS: Layouts = {}

K = 4


def one_layer(rng, n, tied, scaled, skip, normed):
    tensors = {"encoder.weight": floats(rng, M, D), "encoder.bias": floats(rng, M)}
    tensors |= {"W_dec": floats(rng, M, D)} if tied else {f"W_decs.{j}": floats(rng, M, D) for j in range(n)}
    for j in range(n):
        tensors |= {f"b_decs.{j}": floats(rng, D), f"post_encs.{j}": np.zeros(M, np.float32)}
        tensors |= {f"post_enc_scales.{j}": floats(rng, M)} if scaled else {}
        tensors |= {f"W_skips.{j}": floats(rng, D, D) * (j == 0)} if skip else {}
    norms = {"in_norm": 3.5, "out_norm": 0.75} if normed else {}
    return tensors | {name: np.array([norm + rng.integers(3)], np.float32) for name, norm in norms.items()}


def _clt(name, *, window=LAYERS, tied=False, scaled=False, skip=False, normed=False):
    def write(directory, rng):
        root, layers = directory / "clt", []
        for i in range(LAYERS):
            n = min(window, LAYERS - i)
            path = root / f"layers.{i}.mlp"
            path.mkdir(parents=True)
            layers.append(one_layer(rng, n, tied, scaled, skip, normed))
            save_file(layers[i], path / "sae.safetensors")
            config = {"activation": "topk", "k": K, "transcode": True, "n_targets": n, "n_sources": i, "d_in": D,
                      "normalize_io": normed, "post_encoder_scale": scaled, "per_source_tied": tied,
                      "skip_connection": skip, "coalesce_topk": "none", "num_latents": M}  # fmt: skip
            (path / "cfg.json").write_text(json.dumps(config))
        (root / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-70m"}))
        x, t = floats(rng, LAYERS, ROWS, D), [wide(layer) for layer in layers]
        read = [x[i] * (D**0.5 / t[i]["in_norm"][0] if normed else 1.0) for i in range(LAYERS)]
        f = [top_k(read[i] @ t[i]["encoder.weight"].T + t[i]["encoder.bias"], K) for i in range(LAYERS)]
        y = []
        for target in range(LAYERS):
            out = 0
            for s in range(max(0, target - window + 1), target + 1):
                j = target - s
                W = t[s]["W_dec"] if tied else t[s][f"W_decs.{j}"]
                out = out + (f[s] * t[s].get(f"post_enc_scales.{j}", 1.0)) @ W + t[s][f"b_decs.{j}"]
                out = out + (read[s] @ t[s][f"W_skips.{j}"].T if skip else 0)
            y.append(out * (t[target]["out_norm"][0] / D**0.5 if normed else 1.0))
        every = lambda value: tuple(f"blocks.{i}.{value}" for i in range(LAYERS))
        return Layout(root, x, np.stack(f), np.stack(y), None, every("mlp_out"), "EleutherAI/pythia-70m",
                      every("ln2.normalized"), ("added up",),
                      optional=tuple(f"post_encs.{j}" for j in range(LAYERS)))  # fmt: skip

    LAYOUTS[f"clt-training {name}"] = write


_clt("untied, skip", skip=True)
_clt("tied, scaled, normed", tied=True, scaled=True, normed=True)
_clt("window of two, normed, skip", window=2, normed=True, skip=True)
