"""Load dictionaries with `sae_lens`, and save what they compute.

    python saelens_read.py FOLDER

Each folder in FOLDER has the files of one dictionary, and `x.npy`. The result is `theirs.npz` beside them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from sae_lens import SAE


@torch.no_grad()
def main() -> None:
    for folder in sorted(Path(sys.argv[1]).iterdir()):
        sae = SAE.load_from_disk(folder)
        x = torch.from_numpy(np.load(folder / "x.npy"))
        np.savez(folder / "theirs.npz", latents=sae.encode(x).numpy(), output=sae(x).numpy())


if __name__ == "__main__":
    main()
