"""Write sparse coders of every kind of sparsify with random weights, or load what was written for it.

python sparsify_files.py write FOLDER       FOLDER/<kind>/<hookpoint>/{cfg.json, sae.safetensors, expected.npz}
python sparsify_files.py load FOLDER        FOLDER/*/{cfg.json, sae.safetensors, x.npy} -> FOLDER/*/found.npz
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from sparsify import SparseCoder, SparseCoderConfig

D, K, ROWS = 16, 5, 32
KINDS = {
    "topk": {"num_latents": 40},
    "expansion": {"expansion_factor": 3, "normalize_decoder": False},
    "groupmax": {"num_latents": 40, "activation": "groupmax"},
    "transcoder": {"num_latents": 40, "transcode": True},
    "skip transcoder": {"num_latents": 40, "transcode": True, "skip_connection": True, "multi_topk": True},
    "skip SAE": {"num_latents": 40, "skip_connection": True},
    "groupmax skip transcoder": {
        "num_latents": 40, "transcode": True, "skip_connection": True, "activation": "groupmax",
    },
}  # fmt: skip


def computed(coder: SparseCoder, x: torch.Tensor) -> dict[str, np.ndarray]:
    """Latents, dense, and the output. As `forward`, which with `multi_topk` returns the output of 4 k latents."""
    with torch.no_grad():
        values, indices, _ = coder.encode(x)
        y = coder.decode(values, indices)
        if coder.W_skip is not None:
            y = y + x @ coder.W_skip.mT
        z = torch.zeros(len(x), coder.num_latents).scatter_(1, indices, values)
    return {"z": z.numpy(), "y": y.numpy()}


def write(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for kind, settings in KINDS.items():
        for dtype in (torch.float32, torch.bfloat16) if kind == "topk" else (torch.float32,):
            coder = SparseCoder(D, SparseCoderConfig(k=K, **settings), dtype=dtype)
            for value in coder.state_dict().values():
                value.copy_(torch.randn(value.shape, generator=generator))
            into = folder / (kind if dtype == torch.float32 else f"{kind} bfloat16") / "layers.3.mlp"
            coder.save_to_disk(into)
            (into.parent / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-160m", "ctx_len": 2048}))
            coder = SparseCoder.load_from_disk(into).float()
            x = torch.randn(ROWS, D, generator=generator) * 2
            np.savez(into / "expected.npz", x=x.numpy(), **computed(coder, x))


def load(folder: Path) -> None:
    for into in sorted(path.parent for path in folder.glob("*/cfg.json")):
        coder = SparseCoder.load_from_disk(into)
        np.savez(into / "found.npz", **computed(coder, torch.from_numpy(np.load(into / "x.npy"))))


if __name__ == "__main__":
    {"write": write, "load": load}[sys.argv[1]](Path(sys.argv[2]))
