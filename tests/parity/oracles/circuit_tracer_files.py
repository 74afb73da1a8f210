"""Random transcoders of circuit-tracer, written by it, or what it computes from folders that others wrote.

python circuit_tracer_files.py write FOLDER      FOLDER/<name>/{files, data.npz}
python circuit_tracer_files.py read FOLDER       FOLDER/<name>/data.npz, from <name>/{files, x.npy}
"""

import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from circuit_tracer.transcoder.activation_functions import JumpReLU, TopK
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder, load_clt
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet, load_transcoder_set

D, M, LAYERS, ROWS, K = 12, 40, 3, 16, 6
HOOKS = {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}
SETS = {"relu": (False, {}), "jumprelu": (False, {}), "topk": (False, {"activation": "topk", "k": K}),
        "relu_skip": (True, {}), "jumprelu_skip": (True, {})}  # fmt: skip


def fill(module):
    """Random numbers in every parameter; thresholds are positive."""
    for name, parameter in module.named_parameters():
        parameter.data = torch.randn_like(parameter)
        if name.endswith("threshold"):
            parameter.data = parameter.data.abs()
    return module.eval()


def activation(name):
    kinds = {
        "relu": lambda: torch.nn.functional.relu,
        "topk": lambda: TopK(K),
        "jumprelu": lambda: JumpReLU(torch.zeros(M)),
    }
    return kinds[name.removesuffix("_skip")]()


def describe(path, kind, more):
    config = {"model_name": "google/gemma-2-2b", "model_kind": kind, "scan": "test/test"} | HOOKS | more
    (path / "config.yaml").write_text(yaml.safe_dump(config))


def save(path, x, latents, outputs):
    np.savez(path / "data.npz", x=x.numpy(), latents=latents.numpy(), outputs=outputs.numpy())


def write(folder):
    for name, (skip, config) in SETS.items():
        path = folder / name
        path.mkdir(parents=True)
        one = {
            i: fill(SingleLayerTranscoder(D, M, activation(name), i, skip_connection=skip, dtype=torch.float32))
            for i in range(LAYERS)
        }
        transcoders = TranscoderSet(one, **HOOKS)
        transcoders.to_safetensors(str(path))
        describe(path, "transcoder_set", config)
        x = torch.randn(LAYERS, ROWS, D)
        latents = transcoders.encode(x)
        save(path, x, latents, transcoders.decode(latents, x))
    for kind in ("relu", "jump_relu"):
        path = folder / f"clt_{kind}"
        path.mkdir(parents=True)
        clt = fill(CrossLayerTranscoder(LAYERS, M, D, kind, lazy_decoder=False, dtype=torch.float32))
        clt.to_safetensors(str(path))
        describe(path, "cross_layer_transcoder", {})
        x = torch.randn(LAYERS, ROWS, D)
        save(path, x, clt.encode(x), clt(x))


def read(folder):
    for path in folder.iterdir():
        read_one(path)


def read_one(folder):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    x = torch.from_numpy(np.load(folder / "x.npy"))
    hooks = {name: config[name] for name in HOOKS}
    if config["model_kind"] == "cross_layer_transcoder":
        clt = load_clt(str(folder), **hooks, dtype=torch.float32)
        save(folder, x, clt.encode(x), clt(x))
        return
    paths = {i: str(folder / f"layer_{i}.safetensors") for i in range(len(x))}
    transcoders = load_transcoder_set(paths, scan="test/test", **hooks, dtype=torch.float32)
    latents = transcoders.encode(x)
    save(folder, x, latents, transcoders.decode(latents, x))


if __name__ == "__main__":
    torch.manual_seed(0)
    with torch.no_grad():
        {"write": write, "read": read}[sys.argv[1]](*map(Path, sys.argv[2:]))
