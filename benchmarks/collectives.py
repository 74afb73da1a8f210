"""What a training step communicates over each axis of a mesh, from its compiled program.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python benchmarks/collectives.py --mesh replicate=2,fsdp=2

Nothing is timed. The bytes are those of `jax_interp.training.collectives`, beside the bytes of the trained parameters.
"""

from __future__ import annotations

import argparse
from functools import partial

import jax
import numpy as np

from jax_interp.dictionaries import variants
from jax_interp.dictionaries.sharding import rules
from jax_interp.dictionaries.training.train import init_train_state
from jax_interp.dictionaries.training.train import train_step as dictionary_step
from jax_interp.models.config import Config
from jax_interp.models.decoder import init
from jax_interp.models.language_modelling import Optimization, init_state, train_step
from jax_interp.models.sharding import rules_for
from jax_interp.training import placed
from jax_interp.training.collectives import collectives
from jax_interp.training.meshes import mesh_of

CONFIG = Config(n_layers=4, d_model=256, n_heads=4, d_mlp=1024, vocab_size=4096, n_ctx=128)
SITE = "blocks.2.resid_post"


def tokens_at(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, CONFIG.vocab_size, (16, 128), np.int32)


def language_model(mesh):
    optimizer = Optimization(warmup=1).build(10)
    with placed(mesh, rules_for) as there:
        state = there.state(init_state(init(CONFIG, jax.random.key(0)), optimizer))
        return jax.jit(train_step(optimizer)).lower(state, there.batches(tokens_at)(0)).compile(), state.model


def dictionary(make, mesh, **fields):
    config = make(SITE, n_features=2048, steps=10, buffer=8192, **fields)
    with placed(mesh, rules) as there:
        model = init(CONFIG, jax.random.key(0))
        model = there.frozen(model, rules_for(model))
        batch_at = there.batches(lambda number: (tokens_at(number), tokens_at(number) > 0))
        state = there.state(init_train_state(config, model, batch_at))
        lowered = jax.jit(partial(dictionary_step, config)).lower(state, batch_at(0), model)
        return lowered.compile(), state.learner.dictionary


THINGS = {
    "language model": language_model,
    "ReLU dictionary": partial(dictionary, variants.relu),
    "TopK dictionary": partial(dictionary, variants.topk, k=32),
    "BatchTopK dictionary": partial(dictionary, variants.batch_topk, k=32),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mesh", default="data=2", help="sizes by axis, such as data=2,tensor=2")
    mesh = mesh_of(parser.parse_args().mesh)
    print("| step | parameters, MB | operation | axes | times | MB | largest, MB |\n|---|---:|---|---|---:|---:|---:|")
    for name, make in THINGS.items():
        compiled, trained = make(mesh)
        own = sum(leaf.nbytes for leaf in jax.tree.leaves(trained)) / 1e6
        for row in collectives(compiled, mesh):
            cells = (name, f"{own:.2f}", row.kind, " × ".join(row.axes), row.count, f"{row.bytes / 1e6:.2f}")
            print("|", " | ".join(map(str, cells)), f"| {row.largest / 1e6:.2f} |", flush=True)


if __name__ == "__main__":
    main()
