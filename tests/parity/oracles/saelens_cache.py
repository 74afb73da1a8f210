"""Cached activations as `sae_lens` leaves them: shards of `datasets`, joined by its runner.

saelens_cache.py FOLDER: writes FOLDER/cache (a dataset) and FOLDER/rows.npy (the activations in order).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from datasets import Array2D, Dataset, Features, Sequence, Value
from sae_lens.cache_activations_runner import CacheActivationsRunner

HOOK, CONTEXT, D = "blocks.1.hook_resid_post", 6, 8


def main(folder: Path) -> None:
    features = Features(
        {HOOK: Array2D(shape=(CONTEXT, D), dtype="float32"), "token_ids": Sequence(Value("int32"), length=CONTEXT)}
    )
    parts = []
    for i in range(3):
        acts = torch.randn(5, CONTEXT, D, generator=torch.Generator().manual_seed(i))
        tokens = torch.zeros(5, CONTEXT, dtype=torch.int32)
        shard = Dataset.from_dict({HOOK: acts, "token_ids": tokens}, features=features)
        shard.save_to_disk(str(folder / "shards" / f"shard_{i:05d}"), num_shards=1)
        parts.append(acts.reshape(-1, D).numpy())
    (folder / "cache").mkdir()
    joined = CacheActivationsRunner._consolidate_shards(folder / "shards", folder / "cache", copy_files=True)
    assert len(joined) == 15
    np.save(folder / "rows.npy", np.concatenate(parts))
    torch.save({"acts": torch.from_numpy(np.concatenate(parts)).to(torch.bfloat16)}, folder / "acts.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
