"""Probes at every layer of a GPT-2-small-shape model from a stream of tokens, and the bare forwards on the same tokens.

The bare forward runs the blocks, without the unembedding, and keeps nothing. `moments` adds up the means and the
covariance of the residual stream after every block, from which mass-mean, LDA, ridge and PCA probes follow. `logistic`
takes one step of logistic regression at every block. The time of a step is taken inside the training loop, so it has
the loop's own costs.

On a CPU a few batches are timed. The figure is a ratio of two times for the same tokens, so it does not depend on their
number.
"""

from __future__ import annotations

import time
from typing import Any

from gpt2_shape import FULL as SHAPE
from gpt2_shape import TINY as TINY_SHAPE
from timing import Rounds, Work, Worker, main

FULL = {**SHAPE, "batch": 16, "steps": 4}
TINY = {**TINY_SHAPE, "batch": 8, "steps": 3}


def ours(sizes: dict[str, Any]):
    import jax
    import numpy as np
    from gpt2_shape import our_model

    from jax_interp.core.user_cache import use_compilation_cache
    from jax_interp.probes import StreamedLogistic, TokenStream, stream_logistic, stream_moments
    from jax_interp.surgery import values_at
    from jax_interp.training import Log

    use_compilation_cache()
    model, _ = our_model(sizes, stacked=False)
    last, sites = f"blocks.{sizes['layers'] - 1}.resid_post", "blocks.*.resid_post"
    forward = jax.jit(lambda model, tokens: values_at(model, last)(tokens)[last])

    def batch_at(step: int):
        tokens = np.random.default_rng(step).integers(0, sizes["vocab"], (sizes["batch"], sizes["pos"]), np.int32)
        return tokens, None, tokens % 2

    stream = TokenStream(batch_at, sizes["steps"] + 1, ("even", "odd"))

    def bare() -> float:
        start = time.perf_counter()
        for step in range(sizes["steps"]):
            jax.block_until_ready(forward(model, batch_at(step)[0]))
        return (time.perf_counter() - start) / sizes["steps"]

    def timed(run) -> float:
        """The seconds of a step, without the first one, in which the program is compiled."""
        times: list[float] = []
        run(Log(every=1, on_record=lambda record: times.append(time.perf_counter()), quiet=True))
        return (times[-1] - times[0]) / sizes["steps"]

    note = f"{sizes['batch'] * sizes['pos']} tokens a step, {sizes['layers']} layers"
    kind = StreamedLogistic(C=(0.1, 1.0))
    yield Work("bare", bare, seconds=bare, note=note)
    for name, run in {
        "moments": lambda log: stream_moments(model, sites, stream, log=log),
        "logistic": lambda log: stream_logistic(kind, model, sites, stream, log=log),
    }.items():
        step = lambda run=run: timed(run)
        yield Work(name, step, seconds=step, note=note)


def conclude(rounds: Rounds) -> list[str]:
    lines = []
    for name in ("moments", "logistic"):
        if (ratio := rounds.ratio(f"ours: {name}", "ours: bare")) is not None:
            lines.append(f"{name} of every layer: {ratio:.3f} times as long as the bare forwards (to be at most 1.15)")
    return lines


if __name__ == "__main__":
    main(__doc__, __file__, {"ours": Worker(ours)}, FULL, TINY, conclude)
