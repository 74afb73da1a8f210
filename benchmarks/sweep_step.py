"""Eight dictionaries at once: one step of eight ReLU or TopK SAEs in one program, compared with other libraries.

The shapes are those of `dictionary_step.py`. "each in turn" is `jax.lax.map` over the members, which a sweep uses on a
CPU. "vmap" is used on an accelerator. "40 on" is explained in `dictionary_step.py`: few latents are on, as later in
training. Other libraries train one dictionary, so eight runs take eight times their single step.
"""

from __future__ import annotations

import itertools

import dictionary_step
from dictionary_step import FULL, STEPS, TINY, activations, dense_flops, with_few_on
from gemm import jax_gemm
from timing import Rounds, Work, Worker, main

MEMBERS = 8


def ours(sizes):
    import dataclasses

    import jax
    import jax.numpy as jnp

    from jax_interp.dictionaries import variants
    from jax_interp.dictionaries.training.train import init_learner, learn

    rows = [jnp.asarray(batch) for batch in activations(sizes)]
    scale = jnp.sqrt(sizes["d"] / jnp.mean(jnp.sum(rows[0] ** 2, axis=1)))
    batches = itertools.cycle([row * scale for row in rows])
    mean = jnp.mean(rows[0] * scale, axis=0)
    variance = jnp.mean(jnp.sum((rows[0] * scale - mean) ** 2, axis=1))[None]
    fields = {"n_features": sizes["features"], "steps": STEPS, "dead_after": 10_000_000}
    configs = {
        "ReLU": variants.relu("x", resampling=None, **fields),
        "TopK": variants.topk("x", k=sizes["k"], **fields),
    }
    for name, config in configs.items():
        start = jax.vmap(lambda key, config=config: init_learner(config, key, (sizes["d"],), mean))
        for how in ("each in turn", "vmap"):
            if how == "vmap" and name == "TopK":
                continue  # vmap computes all branches of AuxK, which is too slow on a CPU

            # as in `sweep_step`: vmap computes all branches anyway
            config = dataclasses.replace(config, sparse_gradient_sizes=()) if how == "vmap" else config

            def step_all(learners, x, config=config, how=how):
                one = lambda learner: learn(config, learner, x, variance)
                return jax.vmap(one)(learners) if how == "vmap" else jax.lax.map(one, learners)

            advance = jax.jit(step_all, donate_argnums=0)
            held = {"learners": start(jax.random.split(jax.random.key(0), MEMBERS))}

            def step(advance=advance, held=held):
                held["learners"], metrics = advance(held["learners"], next(batches))
                jax.block_until_ready((held["learners"], metrics))

            yield Work(f"8 {name}, {how}", step, flops=MEMBERS * dense_flops(sizes))
            if name == "ReLU" and how == "each in turn":
                keys = jax.random.split(jax.random.key(0), MEMBERS)
                fresh = (init_learner(config, key, (sizes["d"],), mean) for key in keys)
                few = [with_few_on(one_of, rows[0] * scale, sizes) for one_of in fresh]
                few = jax.tree.map(lambda *leaves: jnp.stack(leaves), *few)
                again = jax.jit(step_all)
                repeat = lambda again=again, few=few: jax.block_until_ready(again(few, rows[0] * scale))
                yield Work(f"8 {name}, {sizes['on']} on, {how}", repeat, flops=MEMBERS * dense_flops(sizes))
    yield jax_gemm(sizes["gemm"])


def _only(peer, kinds):
    return lambda sizes: [work for work in peer(sizes) if work.name in kinds]


WORKERS = {
    "ours": Worker(ours, packages=("jax", "jaxlib", "flax", "optax")),
    "sparsify": Worker(_only(dictionary_step.sparsify, ("TopK",)), home="v", packages=("torch", "eai-sparsify")),
    "dictionary_learning": Worker(
        _only(dictionary_step.dictionary_learning, ("ReLU",)), home="v_dl", packages=("torch", "dictionary-learning")
    ),
}


def conclude(rounds: Rounds) -> list[str]:
    lines = []
    for own in [name for name in rounds.rows if name.startswith("ours: 8 ")]:
        name = own.removeprefix("ours: 8 ").split(",")[0]
        peer = "dictionary_learning" if name == "ReLU" else "sparsify"
        if (ratio := rounds.ratio(own, f"{peer}: {name}")) is not None:
            said = own.removeprefix("ours: 8 ")
            lines.append(f"eight {said}: {ratio / MEMBERS:.2f} of the time of eight runs of {peer}")
    return lines


if __name__ == "__main__":
    main(__doc__, __file__, WORKERS, FULL, TINY, conclude)
