"""Steered generation with one latent: added, clamped, and clamped by a splice, as ratios to the unsteered model.

    python benchmarks/feature_steering.py [--d 256] [--layers 4] [--features 16384] [--rows 8] [--new 32]

The four programs take turns, repeat by repeat, after one warm-up. The model and the dictionaries are random.
"""

from __future__ import annotations

import argparse
import statistics
import time

import jax
import numpy as np

from jax_interp.dictionaries import ReLU, TopK, init_sae
from jax_interp.models import Config, init
from jax_interp.models.generation.generate import generate
from jax_interp.steering.features import steer_features
from jax_interp.surgery import Clamp, Splice, at, edit

REPEATS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("d", 256), ("layers", 4), ("features", 16384), ("rows", 8), ("new", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    address = f"blocks.{args.layers // 2}.resid_post"
    config = Config(n_layers=args.layers, d_model=args.d, n_heads=8, d_mlp=4 * args.d, vocab_size=8000, n_ctx=256)
    model = init(config, jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, 8000, (args.rows, 16)).astype(np.int32)
    for name, activation in (("ReLU", ReLU()), ("TopK", TopK(32))):
        sae = init_sae(jax.random.key(1), args.d, args.features, activation)
        steering = steer_features(sae, address, 7, 2.0)
        spliced = edit(model, at(address, Splice(sae, error=True)))
        runs = {
            "unsteered": model,
            "add": edit(model, *steering.edits(2.0)),
            "clamp": edit(model, *steering.using("clamp").edits(2.0)),
            "splice and clamp": edit(spliced, at(f"{address}.latents", Clamp(4.0, 4.0), feature=7)),
        }
        seconds: dict[str, list[float]] = {kind: [] for kind in runs}
        for _ in range(1 + REPEATS):
            for kind, steered in runs.items():
                start = time.perf_counter()
                jax.block_until_ready(generate(steered, tokens, args.new))
                seconds[kind].append(time.perf_counter() - start)
        median = {kind: statistics.median(each[1:]) for kind, each in seconds.items()}
        print(name, *(f"{kind} {value / median['unsteered']:.2f}x" for kind, value in median.items()), sep="  ")


if __name__ == "__main__":
    main()
