"""One training step of each kind of SAE: d 512, 8192 features, batch 2048, float32, on synthetic activations.

Every library runs its complete training step, and the steps differ. Ours: Adam, AuxK if the paper has it, decoder rows
at norm 1, tracking of dead features, all metrics. dictionary_learning: `update`, which does the same and clips.
SAELens: `SAETrainer.step`. sparsify has only TopK; its step is the body of `Trainer.fit` for one batch, with FVU loss
and Adam. FLOPs are those of the dense computation (encoder and decoder forward, three products backward; Gated has two
more). A rate above the GEMM's therefore shows what sparsity saves.

ReLU, JumpReLU and Gated appear twice. In a new SAE half of the latents are on, and all products have full matrices. The
rows "40 on" are like a later point of the training: all biases are lowered until 40 latents in each row are on (or near
their thresholds), and every repeat starts from this state. The steps of the other libraries do not depend on this, so
both rows are compared with the same step of theirs.
"""

from __future__ import annotations

import itertools
import os

from gemm import jax_gemm, torch_gemm
from timing import Rounds, Work, Worker, main

FULL = {"d": 512, "features": 8192, "k": 32, "on": 40, "batch": 2048, "gemm": 4096}
TINY = {"d": 32, "features": 128, "k": 4, "on": 3, "batch": 64, "gemm": 256}
STEPS = 30_000  # the length of the run that schedules are made for


def dense_flops(sizes) -> float:
    return 5 * 2.0 * sizes["batch"] * sizes["d"] * sizes["features"]


def activations(sizes):
    """Eight fixed batches, the same for every library: sparse sums of random directions, with a little noise."""
    import numpy as np

    rng = np.random.default_rng(3)
    directions = rng.standard_normal((1024, sizes["d"])) / sizes["d"] ** 0.5
    batches = []
    for _ in range(8):
        on = rng.random((sizes["batch"], 1024)) < 0.02
        noise = 0.01 * rng.standard_normal((sizes["batch"], sizes["d"]))
        batches.append(((on * rng.random(on.shape)) @ directions + noise).astype(np.float32))
    return batches


def with_few_on(learner, rows, sizes):
    """A copy of a learner, with all biases lowered until `on` latents in each row are on or near their thresholds."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    one = jax.tree.map(jnp.copy, learner.dictionary)
    jump = one.activation if hasattr(one.activation, "threshold") else None
    over = one.linear(rows) + one.b_enc - (jump.threshold - jump.bandwidth / 2 if jump else 0.0)
    least = jnp.quantile(over.ravel(), 1 - sizes["on"] / sizes["features"])
    few = dataclasses.replace(one, b_enc=one.b_enc - least)
    return dataclasses.replace(jax.tree.map(jnp.copy, learner), dictionary=few)


def ours(sizes, kinds=("ReLU", "TopK", "BatchTopK", "JumpReLU", "Gated")):
    from functools import partial

    import jax
    import jax.numpy as jnp

    from jax_interp.dictionaries import variants
    from jax_interp.dictionaries.training.train import init_learner, learn

    rows = [jnp.asarray(batch) for batch in activations(sizes)]
    mean = jnp.mean(rows[0], axis=0)
    scale = jnp.sqrt(sizes["d"] / jnp.mean(jnp.sum(rows[0] ** 2, axis=1)))  # as in the trainer
    rows, mean = [row * scale for row in rows], mean * scale
    batches = itertools.cycle(rows)
    variance = jnp.mean(jnp.sum((rows[0] - mean) ** 2, axis=1))[None]
    fields = {"n_features": sizes["features"], "steps": STEPS, "dead_after": 10_000_000}
    configs = {
        "ReLU": variants.relu("x", resampling=None, **fields),
        "TopK": variants.topk("x", k=sizes["k"], **fields),
        "BatchTopK": variants.batch_topk("x", k=sizes["k"], **fields),
        "JumpReLU": variants.jumprelu("x", target=20.0, **fields),
        "Gated": variants.gated("x", **fields),
    }

    for name in kinds:
        config = configs[name]
        flops = dense_flops(sizes) * (7 / 5 if name == "Gated" else 1)
        advance = jax.jit(partial(learn, config), donate_argnums=0)
        held = {"learner": init_learner(config, jax.random.key(0), (sizes["d"],), jnp.copy(mean))}
        again, few = (
            jax.jit(partial(learn, config)),
            None if "TopK" in name else with_few_on(held["learner"], rows[0], sizes),
        )

        def step(advance=advance, held=held):
            held["learner"], metrics = advance(held["learner"], next(batches), variance)
            jax.block_until_ready((held["learner"], metrics))

        yield Work(name, step, flops=flops)
        if few is not None:
            repeat = lambda again=again, few=few: jax.block_until_ready(again(few, rows[0], variance))
            yield Work(f"{name}, {sizes['on']} on", repeat, flops=flops)
    yield jax_gemm(sizes["gemm"])


def _torch_batches(sizes):
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    return itertools.cycle([torch.from_numpy(batch) for batch in activations(sizes)])


def dictionary_learning(sizes):
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.gdm import GatedSAETrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    batches, shape = _torch_batches(sizes), {"activation_dim": sizes["d"], "dict_size": sizes["features"]}
    common = shape | {"steps": STEPS, "layer": 0, "lm_name": "none", "device": "cpu", "seed": 0}
    trainers = {
        "ReLU": lambda: StandardTrainer(**common),
        "TopK": lambda: TopKTrainer(k=sizes["k"], **common),
        "BatchTopK": lambda: BatchTopKTrainer(k=sizes["k"], **common),
        "JumpReLU": lambda: JumpReluTrainer(**common),
        "Gated": lambda: GatedSAETrainer(**common),
    }
    for name, make in trainers.items():
        trainer, count = make(), itertools.count(1)
        step = lambda trainer=trainer, count=count: trainer.update(next(count), next(batches))
        yield Work(name, step, flops=dense_flops(sizes) * (7 / 5 if name == "Gated" else 1))


def sparsify(sizes):
    import torch
    from sparsify import SparseCoder, SparseCoderConfig

    batches = _torch_batches(sizes)
    sae = SparseCoder(sizes["d"], SparseCoderConfig(num_latents=sizes["features"], k=sizes["k"]))
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-4)
    since_fired = torch.zeros(sizes["features"], dtype=torch.long)

    def step():
        sae.set_decoder_norm_to_unit_norm()
        out = sae(next(batches), dead_mask=since_fired > 10_000_000)
        fired = torch.zeros(sizes["features"], dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        float(out.fvu)  # its trainer logs it every step
        out.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        since_fired.add_(sizes["batch"])
        since_fired[fired] = 0

    yield Work("TopK", step, flops=dense_flops(sizes))
    yield torch_gemm(sizes["gemm"])


def saelens(sizes):
    import sae_lens
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    batches, batch = _torch_batches(sizes), sizes["batch"]
    shape = {"d_in": sizes["d"], "d_sae": sizes["features"], "device": "cpu", "dtype": "float32"}
    kinds = {"ReLU": "Standard", "TopK": "TopK", "BatchTopK": "BatchTopK", "JumpReLU": "JumpReLU", "Gated": "Gated"}
    for name, kind in kinds.items():
        config = getattr(sae_lens, f"{kind}TrainingSAEConfig")(**shape, **({"k": sizes["k"]} if "TopK" in kind else {}))
        schedule = SAETrainerConfig(total_training_samples=batch * STEPS, train_batch_size_samples=batch, lr_end=3e-5)
        trainer = SAETrainer(schedule, getattr(sae_lens, f"{kind}TrainingSAE")(config), data_provider=iter([]))
        step = lambda trainer=trainer: trainer.step(next(batches))
        yield Work(name, step, flops=dense_flops(sizes) * (7 / 5 if name == "Gated" else 1))


WORKERS = {
    "ours": Worker(ours, packages=("jax", "jaxlib", "flax", "optax")),
    "sparsify": Worker(sparsify, home="v", packages=("torch", "eai-sparsify")),
    "dictionary_learning": Worker(dictionary_learning, home="v_dl", packages=("torch", "dictionary-learning")),
    "SAELens": Worker(saelens, home="v_sae", packages=("torch", "sae-lens")),
}


def conclude(rounds: Rounds) -> list[str]:
    lines = []
    for own in [name for name in rounds.rows if name.startswith("ours: ") and "GEMM" not in name]:
        kind = own.removeprefix("ours: ").split(",")[0]
        share = rounds.gflops(own) / rounds.gflops("ours: GEMM")
        said = [f"{share:.0%} of XLA's GEMM rate by dense FLOPs"]
        for peer, reference in (("dictionary_learning", kind), ("SAELens", kind), ("sparsify", "TopK")):
            if (ratio := rounds.ratio(f"{peer}: {reference}", own)) is not None:
                said.append(f"{peer}{'' if reference == kind else ' ' + reference} takes {ratio:.2f} times as long")
        lines.append(f"{own.removeprefix('ours: ')}: {'; '.join(said)}")
    return lines


if __name__ == "__main__":
    main(__doc__, __file__, WORKERS, FULL, TINY, conclude)
