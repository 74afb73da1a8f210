"""The peak memory of an attribution graph for growing prompts, and what the memory model of docs/attribution-graphs.md
says. Each length has a process of its own. The figures are differences to the process before the graph.

    python benchmarks/attribution_graph_memory.py --lengths 512 1024 2048 4096
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LAYERS, WIDTH, HEADS, FEATURES, NODES, BATCH = 8, 256, 4, 2048, 64, 16


def measure(length: int) -> dict:
    import jax
    import jax.numpy as jnp
    from timing import _status_mb, _trim

    from jax_interp.circuits.attribution_graphs import Limits, attribution_graph
    from jax_interp.dictionaries.activations import ReLU
    from jax_interp.dictionaries.forms.cross_layer import CrossLayer, Source
    from jax_interp.dictionaries.replacement import replacement
    from jax_interp.models import Config, init

    config = Config(LAYERS, WIDTH, HEADS, 2 * WIDTH, vocab_size=1000, n_ctx=length)
    model = init(config, jax.random.key(0))
    sources = []
    for key in jax.random.split(jax.random.key(1), LAYERS):
        W_enc, W_dec = jax.random.normal(key, (2, WIDTH, FEATURES)) / WIDTH**0.5
        sources.append(Source(W_enc, jnp.full(FEATURES, -2.5), 0.1 * W_dec.T[:, None], ReLU()))
    local = replacement(
        model,
        [f"blocks.{i}.ln2.normalized" for i in range(LAYERS)],
        [f"blocks.{i}.mlp_out" for i in range(LAYERS)],
        CrossLayer(tuple(sources), jnp.zeros((LAYERS, WIDTH))),
    )
    tokens = jax.random.randint(jax.random.key(2), (length,), 0, 1000)
    limits = Limits(max_features=NODES, batch=BATCH, programs=1)
    _trim()
    before, began = _status_mb("VmRSS") or 0.0, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        graph = attribution_graph(local, tokens, limits, spill=Path(folder) / "rows.npy")
    found = {"length": length, "active": len(graph.active), "seconds": time.perf_counter() - began}
    return found | {"peak_mb": (_status_mb("VmHWM") or 0.0) - before}


def parts(length: int, active: int) -> dict[str, float]:
    """The arrays that grow, in MB of float32."""
    mb = 4 / 2**20
    return {
        "one layer's pattern": 2 * HEADS * length**2 * mb,
        "cotangents of one layer": 15 * BATCH * length * WIDTH * mb,
        "values of all layers": 4 * LAYERS * length * WIDTH * mb,
        "rows of a batch": 3 * BATCH * active * mb,
    }


def unbounded(length: int, active: int) -> float:
    """MB of float32 without rematerialisation and streaming: patterns and cotangents of all layers, all decoders."""
    return 4 / 2**20 * (LAYERS * (HEADS * length**2 + BATCH * length * WIDTH) + active * WIDTH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one)))
        return
    print("| tokens | active features | seconds | peak MB | model MB | without bounds MB |\n|---|---|---|---|---|---|")
    for length in args.lengths:
        command = [sys.executable, __file__, "--one", str(length)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        model = sum(parts(length, found["active"]).values())
        print(
            f"| {length:,} | {found['active']:,} | {found['seconds']:.0f} | {found['peak_mb']:.0f} | {model:.0f} "
            f"| {unbounded(length, found['active']):.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
