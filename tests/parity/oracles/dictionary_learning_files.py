"""Write dictionaries of every class of dictionary_learning with random weights, or load what was written for it.

python dictionary_learning_files.py write FOLDER       FOLDER/<class>/{ae.pt, config.json, expected.npz}
python dictionary_learning_files.py load FOLDER        FOLDER/*/{ae.pt, config.json, x.npy} -> FOLDER/*/found.npz
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary

D, M, K, ROWS = 16, 48, 5, 32
MADE = {
    "AutoEncoder": lambda: AutoEncoder(D, M),
    "AutoEncoderNew": lambda: AutoEncoderNew(D, M),
    "GatedAutoEncoder": lambda: GatedAutoEncoder(D, M),
    "JumpReluAutoEncoder": lambda: JumpReluAutoEncoder(D, M),
    "AutoEncoderTopK": lambda: AutoEncoderTopK(D, M, K),
    "BatchTopKSAE": lambda: BatchTopKSAE(D, M, K),
    "MatryoshkaBatchTopKSAE": lambda: MatryoshkaBatchTopKSAE(D, M, K, [16, 32]),
}


def randomise(module: torch.nn.Module, generator: torch.Generator) -> None:
    for name, value in module.state_dict().items():
        if name == "threshold":
            value.copy_(torch.rand(value.shape, generator=generator) * 1.5)
        elif value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=generator))


def write(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for compiled in (False, True):
        for kind, make in MADE.items():
            if compiled and kind not in ("AutoEncoderTopK", "MatryoshkaBatchTopKSAE"):
                continue
            module = make()
            randomise(module, generator)
            into = folder / (f"{kind} compiled" if compiled else kind)
            into.mkdir(parents=True)
            # what is saved after `torch.compile`, without compiling anything
            stored = torch.compile(module) if compiled else module
            torch.save(stored.state_dict(), into / "ae.pt")
            trainer = {
                "dict_class": kind,
                "activation_dim": D,
                "dict_size": M,
                "lm_name": "EleutherAI/pythia-70m-deduped",
            }
            trainer |= {"layer": 3, "submodule_name": "resid_post_layer_3", "lr": 1e-4}
            trainer |= {"k": K} if hasattr(module, "k") else {}
            (into / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
            if not compiled:
                module, _ = load_dictionary(str(into), "cpu")
            x = torch.randn(ROWS, D, generator=generator) * 2
            with torch.no_grad():
                z = module.encode(x)
                np.savez(into / "expected.npz", x=x.numpy(), z=z.numpy(), y=module.decode(z).numpy())


def load(folder: Path) -> None:
    for into in sorted(path.parent for path in folder.glob("*/ae.pt")):
        module, _ = load_dictionary(str(into), "cpu")
        x = torch.from_numpy(np.load(into / "x.npy"))
        with torch.no_grad():
            z = module.encode(x)
            np.savez(into / "found.npz", kind=type(module).__name__, z=z.numpy(), y=module.decode(z).numpy())


if __name__ == "__main__":
    {"write": write, "load": load}[sys.argv[1]](Path(sys.argv[2]))
