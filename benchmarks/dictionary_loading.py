"""The time and peak memory to load an SAE of 65,536 latents and width 4,096, compared with SAELens.

Both read the same folder in SAELens's layout, float32. Ours also reads the same weights in the layout of sparsify,
whose encoder is transposed. The folders are made in out/ if they do not exist. After the first turn the files are in
the page cache, so the disk is not measured. Every weight is summed once, because memory that is only mapped is not
loaded yet. Memory is counted above what the process had before, in parts of the size of the file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from timing import ROOT, Rounds, Work, Worker, _status_mb, main

FULL = {"features": 65_536, "width": 4096}
TINY = {"features": 512, "width": 64}
LAYOUTS = {"saelens": "sae_weights.safetensors", "sparsify": "sae.safetensors"}


def folder(sizes, layout: str) -> Path:
    """The folder of a layout. It is made if it does not exist."""
    import numpy as np

    directory = ROOT / "out" / f"dictionary-{sizes['features']}-{sizes['width']}" / layout
    if (directory / "cfg.json").exists():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    m, d = sizes["features"], sizes["width"]
    config = {
        "saelens": {
            "architecture": "standard", "d_in": d, "d_sae": m, "dtype": "float32", "device": "cpu",
            "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
            "metadata": {"sae_lens_version": "6.54.12", "model_name": "gpt2", "hook_name": "blocks.1.hook_resid_post"},
        },
        "sparsify": {
            "activation": "topk", "expansion_factor": m // d, "normalize_decoder": True, "num_latents": m, "k": 32,
            "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": d,
        },
    }[layout]  # fmt: skip
    rng = np.random.default_rng(0)
    rows = lambda: (rng.standard_normal((min(m, 4096), d), np.float32) / d**0.5 for _ in range(max(1, m // 4096)))
    decoder, encoder = ("W_dec", "W_enc") if layout == "saelens" else ("W_dec", "encoder.weight")
    bias = "b_enc" if layout == "saelens" else "encoder.bias"
    shapes = {decoder: [m, d], encoder: [d, m] if layout == "saelens" else [m, d], bias: [m], "b_dec": [d]}
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = directory / LAYOUTS[layout]
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    at = {
        name: np.memmap(path, np.float32, "r+", 8 + len(text) + h["data_offsets"][0], tuple(h["shape"]))
        for name, h in header.items()
    }
    start = 0
    for block in rows():  # the encoder is the transposed decoder, as at the start of training
        at[decoder][start : start + len(block)] = block
        if layout == "saelens":
            at[encoder][:, start : start + len(block)] = block.T
        else:
            at[encoder][start : start + len(block)] = block
        start += len(block)
    for array in at.values():
        array.flush()
    (directory / "cfg.json").write_text(json.dumps(config))
    return directory


def _note(directory: Path) -> str:
    file = max(path.stat().st_size for path in directory.iterdir()) / 2**20
    return json.dumps({"file_mb": file, "before_mb": _status_mb("VmRSS")})


def ours(sizes):
    import jax
    import jax.numpy as jnp

    from jax_interp.dictionaries import load_dictionary

    total = jax.jit(lambda dictionary: [jnp.sum(leaf) for leaf in jax.tree.leaves(dictionary)])
    for layout in LAYOUTS:
        directory = folder(sizes, layout)

        def step(directory=directory):
            jax.block_until_ready(total(load_dictionary(directory).dictionary))

        if layout == "saelens":
            jax.block_until_ready(total(jnp.zeros(4)))  # the backend starts
        yield Work(layout, step, note=_note(directory))


def saelens(sizes):
    import torch
    from sae_lens import SAE

    torch.set_num_threads(os.cpu_count() or 1)
    torch.set_grad_enabled(False)
    directory = folder(sizes, "saelens")

    def step():
        sae = SAE.load_from_disk(directory)
        return [float(parameter.sum()) for parameter in sae.parameters()]

    yield Work("saelens", step, note=_note(directory))


WORKERS = {
    "ours": Worker(ours, packages=("jax", "jaxlib", "safetensors")),
    "SAELens": Worker(saelens, home="v_sae", packages=("torch", "sae-lens", "safetensors")),
}


def conclude(rounds: Rounds) -> list[str]:
    lines = []
    for name in rounds.rows:
        ratio = None if name.startswith("SAELens") else rounds.ratio(name, "SAELens: saelens")
        against = "" if ratio is None else f", {ratio:.2f} of SAELens's time"
        peak, note = rounds.peak_mb(name), json.loads(rounds.info[name]["note"])
        more = "" if peak is None else f", {(peak - note['before_mb']) / note['file_mb']:.2f} x the file in memory"
        lines.append(f"{name}: {rounds.seconds(name):.2f} s{against}{more} ({note['file_mb']:.0f} MB)")
    return lines


if __name__ == "__main__":
    main(__doc__, __file__, WORKERS, FULL, TINY, conclude)
