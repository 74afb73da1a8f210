"""Probes at every layer of a GPT-2-small-shape model from a stream of tokens, and the bare forwards on the same tokens.

The bare forward runs the blocks, without the unembedding, and keeps nothing. `moments` adds up the means and the
covariance of the residual stream after every block, from which mass-mean, LDA, ridge and PCA probes follow. `logistic`
takes one step of logistic regression, for two strengths, at every block.

One batch of 1,024 tokens is timed. The figure is a ratio of two times for the same tokens, so it is that of 10^6 tokens
too; the training loop adds only the numbers that it writes to its log.
"""

from __future__ import annotations

from typing import Any

from gpt2_shape import FULL as SHAPE
from gpt2_shape import TINY as TINY_SHAPE
from timing import Rounds, Work, Worker, main

FULL = {**SHAPE, "batch": 8}
TINY = {**TINY_SHAPE, "batch": 8}


def ours(sizes: dict[str, Any]):
    from functools import partial

    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from gpt2_shape import our_model

    from jax_interp.core.user_cache import use_compilation_cache
    from jax_interp.probes.stream_logistic import LogisticSettings, begin_logistic, logistic_step
    from jax_interp.probes.streamed_moments import RunningMoments, moments_step
    from jax_interp.surgery import values_at

    use_compilation_cache()
    model, _ = our_model(sizes, stacked=False)
    sites = tuple(f"blocks.{layer}.resid_post" for layer in range(sizes["layers"]))
    tokens = np.random.default_rng(0).integers(0, sizes["vocab"], (sizes["batch"], sizes["pos"]), np.int32)
    batch, C, keys = (tokens, None, tokens % 2), jnp.asarray([0.1, 1.0]), jax.random.split(jax.random.key(0), 1)
    forward = jax.jit(lambda model, tokens: values_at(model, sites[-1])(tokens)[sites[-1]])
    settings = LogisticSettings(sites, False, optax.adam(0.01), 1000)
    steps = {
        "moments": jax.jit(partial(moments_step, sites, 2), donate_argnums=0),
        "logistic": jax.jit(partial(logistic_step, settings), donate_argnums=0),
    }
    more = {"moments": (model,), "logistic": (model, C, keys)}
    states = {
        "moments": {site: RunningMoments.empty(sizes["d_model"], 1) for site in sites},
        "logistic": begin_logistic(settings, len(C), 1, [batch], model),
    }

    def probes(name: str) -> None:
        states[name], metrics = steps[name](states[name], batch, *more[name])
        jax.block_until_ready(metrics)
        jax.block_until_ready(states[name])

    note = f"{tokens.size} tokens, {sizes['layers']} layers"
    yield Work("bare", lambda: jax.block_until_ready(forward(model, tokens)), note=note)
    for name in steps:
        yield Work(name, partial(probes, name), note=note)


def conclude(rounds: Rounds) -> list[str]:
    lines = []
    for name in ("moments", "logistic"):
        if (ratio := rounds.ratio(f"ours: {name}", "ours: bare")) is not None:
            lines.append(f"{name} of every layer: {ratio:.3f} times as long as the bare forwards (to be at most 1.15)")
    return lines


if __name__ == "__main__":
    main(__doc__, __file__, {"ours": Worker(ours)}, FULL, TINY, conclude)
