"""What SAELens's loaders of other formats compute from files on this disk: data.npz, from FOLDER/cases.json.

    python saelens_loaders.py FOLDER

cases.json is a list of {"repository", "id", "loader", "overrides", "scale", "data"}: the loader reads
FOLDER/<repository>/<id>; `data` is a folder with x.npy, where data.npz is written. `scale` is the registry's
norm_scaling_factor. A hub download is replaced by a look into FOLDER.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.utils import EntryNotFoundError
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders
from safetensors import safe_open

ROOT = Path(sys.argv[1])


def local(repo_id, filename, subfolder=None, **_):
    path = ROOT / repo_id / (subfolder or "") / filename
    if not path.is_file():
        raise EntryNotFoundError(str(path))
    return str(path)


def shapes(repo_id, filename):
    with safe_open(local(repo_id, filename), "np") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  (no mapping)


def converted(case):
    """The loader of a case, with the settings of the case over those that it finds."""
    loader = loaders.NAMED_PRETRAINED_SAE_LOADERS[case["loader"]]

    def load(repo_id, folder_name, device, force_download, cfg_overrides):
        overrides = cfg_overrides | case["overrides"]
        return loader(repo_id, folder_name, device=device, force_download=force_download, cfg_overrides=overrides)

    return load


def main():
    loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes = local, shapes
    for case in json.loads((ROOT / "cases.json").read_text()):
        sae = SAE.from_pretrained(case["repository"], case["id"], converter=converted(case))
        if case["scale"] is not None:
            sae.fold_activation_norm_scaling_factor(case["scale"])
        x = torch.from_numpy(np.load(Path(case["data"]) / "x.npy"))
        with torch.no_grad():
            latents, outputs = sae.encode(x), sae(x)
        np.savez(Path(case["data"]) / "data.npz", latents=latents.numpy(), outputs=outputs.numpy())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
