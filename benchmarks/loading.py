"""The time and peak memory to load one Llama, compared with from_pretrained of transformers.

Both read the same directory: float32, in several files with an index. It is made in out/ if it does not exist. The
files are sparse files of zeros, so they take no disk space. After the first turn they are in the page cache, so the
disk is not measured. Every parameter is summed once, because memory that is only mapped is not loaded yet. The peak is
that of the whole process, with its libraries.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from pathlib import Path

from timing import ROOT, Rounds, Work, Worker, main

FULL = {"layers": 6, "d_model": 2048, "heads": 16, "d_mlp": 8192, "vocab": 32_000, "files": 4}
TINY = {"layers": 2, "d_model": 64, "heads": 4, "d_mlp": 128, "vocab": 500, "files": 2}


def checkpoint(sizes) -> Path:
    """The directory. It is made if it does not exist."""
    directory = ROOT / "out" / ("loading-" + "-".join(str(sizes[name]) for name in sorted(sizes)))
    if directory.exists():
        return directory
    directory.parent.mkdir(exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".loading", dir=directory.parent))
    shapes, files = _shapes(sizes), sizes["files"]
    weight_map = {}
    for i in range(files):
        header, end = {}, 0
        for name in list(shapes)[i::files]:
            start, end = end, end + 4 * math.prod(shapes[name])
            header[name] = {"dtype": "F32", "shape": shapes[name], "data_offsets": [start, end]}
        text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
        file = f"model-{i + 1:05d}-of-{files:05d}.safetensors"
        with (fresh / file).open("wb") as handle:
            handle.write(len(text).to_bytes(8, "little") + text)
            handle.truncate(8 + len(text) + end)
        weight_map |= dict.fromkeys(header, file)
    index = {"metadata": {"total_size": _bytes(sizes)}, "weight_map": weight_map}
    (fresh / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": sizes["vocab"],
        "hidden_size": sizes["d_model"],
        "intermediate_size": sizes["d_mlp"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["heads"],
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }
    (fresh / "config.json").write_text(json.dumps(config))
    try:
        os.replace(fresh, directory)
    except OSError:  # another worker has already made it
        shutil.rmtree(fresh)
    return directory


def _shapes(sizes) -> dict[str, list[int]]:
    d, f = sizes["d_model"], sizes["d_mlp"]
    shapes = {"model.embed_tokens.weight": [sizes["vocab"], d], "lm_head.weight": [sizes["vocab"], d]}
    shapes["model.norm.weight"] = [d]
    for layer in range(sizes["layers"]):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": [d, d] for name in "qkvo"}
        shapes |= {f"{at}.mlp.{name}_proj.weight": [f, d] for name in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = [d, f]
        shapes |= {f"{at}.{name}_layernorm.weight": [d] for name in ("input", "post_attention")}
    return shapes


def _bytes(sizes) -> int:
    return 4 * sum(map(math.prod, _shapes(sizes).values()))


def ours(stacked: bool):
    def build(sizes):
        import jax
        import jax.numpy as jnp

        from jax_interp.models import load

        directory = checkpoint(sizes)
        total = jax.jit(lambda model: [jnp.sum(leaf) for leaf in jax.tree.leaves(model)])

        def step():
            model, _ = load(directory, stacked=stacked)
            jax.block_until_ready(total(model))

        yield Work("load", step, note=f"{_bytes(sizes) / 2**20:.0f} MB")

    return build


def transformers(sizes):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    torch.set_grad_enabled(False)
    directory = checkpoint(sizes)

    def step():
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        return [float(parameter.sum()) for parameter in model.parameters()]

    yield Work("load", step, note=f"{_bytes(sizes) / 2**20:.0f} MB")


WORKERS = {
    "ours stacked": Worker(ours(stacked=True), packages=("jax", "jaxlib", "flax", "safetensors")),
    "ours unrolled": Worker(ours(stacked=False), packages=("jax", "jaxlib", "flax", "safetensors")),
    "transformers": Worker(transformers, home="v", packages=("torch", "transformers", "safetensors")),
}


def conclude(rounds: Rounds) -> list[str]:
    lines = []
    for worker in WORKERS:
        name = f"{worker}: load"
        if name not in rounds.rows:
            continue
        ratio = rounds.ratio(name, "transformers: load")
        against = "" if ratio is None or worker == "transformers" else f", {ratio:.2f} of transformers' time"
        peak = rounds.peak_mb(name)
        size = rounds.info[name]["note"]
        shown = "" if peak is None else f", peak {peak:.0f} MB for a model of {size}"
        lines.append(f"{worker}: {rounds.seconds(name):.2f} s{against}{shown}")
    return lines


if __name__ == "__main__":
    main(__doc__, __file__, WORKERS, FULL, TINY, conclude)
