"""Loading two gigabytes takes the model's memory and that of one tensor more, measured in a process of its own.

What is measured is the process's peak resident size (VmHWM): memory of its own and pages of mapped files that are
resident, so a file's page cache counts while its tensor is read. What importing and compiling take is there before:
the process first loads a small model of the same family. The files are sparse, all zeros: a page of zeros that is read
from a file, or copied to memory, is as resident as any other.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

FULL = {"vocab": 64_000, "d_model": 2048, "d_mlp": 8192, "layers": 4, "heads": 16}
SMALL = {"vocab": 64, "d_model": 32, "d_mlp": 48, "layers": 2, "heads": 4}

MEASURE = """
import json, sys
import jax
from jax_interp.models import load

def kilobytes(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

small, full, stacked = sys.argv[1], sys.argv[2], sys.argv[3] == "stacked"
jax.block_until_ready(load(small, stacked=stacked)[0])
before = kilobytes("VmRSS")
model, _ = load(full, stacked=stacked)
jax.block_until_ready(model)
size = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
print(json.dumps({"model": size, "extra": (kilobytes("VmHWM") - before) * 1024 - size}))
"""


def write_zeros(directory: Path, sizes: dict[str, int], shards: int = 4) -> int:
    """An untied Llama of zeros in several sparse files with an index. Gives the bytes of its largest tensor."""
    d, f = sizes["d_model"], sizes["d_mlp"]
    shapes: dict[str, tuple[int, ...]] = {"model.norm.weight": (d,)}
    shapes |= dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (sizes["vocab"], d))
    for layer in range(sizes["layers"]):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (d, d) for name in "qkvo"}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (f, d) for name in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (d, f)
        shapes |= {f"{at}.{name}_layernorm.weight": (d,) for name in ("input", "post_attention")}
    directory.mkdir()
    names, weight_map = list(shapes), {}
    for shard in range(shards):
        header, end = {}, 0
        for name in names[shard::shards]:
            start, end = end, end + 4 * math.prod(shapes[name])
            header[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        with (directory / file).open("wb") as handle:
            handle.write(len(text).to_bytes(8, "little") + text)
            handle.truncate(8 + len(text) + end)
        weight_map |= dict.fromkeys(header, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": sizes["vocab"],
        "hidden_size": d,
        "intermediate_size": f,
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return 4 * max(map(math.prod, shapes.values()))


def measure(tmp_path, sizes, layout) -> dict[str, int]:
    write_zeros(tmp_path / "small", SMALL)
    write_zeros(tmp_path / "full", sizes)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "full"), layout]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("layout", ["stacked", "unrolled"])
def test_two_gigabytes_take_the_model_and_one_tensor(tmp_path, layout):
    found = measure(tmp_path, FULL, layout)
    largest = 4 * FULL["vocab"] * FULL["d_model"]
    assert found["model"] > 2.0e9
    assert found["extra"] <= 1.15 * largest, f"{found['extra'] / largest:.2f} of the largest tensor"
    print(f"{layout}: {found['extra'] / largest:.3f} of the largest tensor ({largest / 2**20:.0f} MiB)")
