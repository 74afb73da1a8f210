"""Collecting what 4,096 features of a GPT-2-small-shape model fire on: ours, SAEDashboard, and the least that it takes.

One step collects, for every feature, the same content from the same number of tokens: 20 top examples and ten quantile
groups of 5 examples with 5 tokens on each side, histograms of activations and of logits, ten promoted and ten
suppressed tokens, and three related features. The least is the model up to the layer that is read, and the encoder.
SAEDashboard works on batches of 256 features, one after another. One batch is timed, and its time is multiplied by 16.

`--memory` prints our peak memory for 10^5 and 10^6 tokens, and with `--long` for 10^7, in a process for each.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from gpt2_shape import FULL as SHAPE
from gpt2_shape import TINY as TINY_SHAPE
from timing import Rounds, Work, Worker, main

FULL = {**SHAPE, "features": 4096, "sequences": 32, "batch": 16, "rows": 128, "part": 256}
TINY = {**TINY_SHAPE, "features": 64, "sequences": 8, "batch": 4, "rows": 16, "part": 16}


def _layer(sizes: dict[str, Any]) -> int:
    return min(6, sizes["layers"] - 1)


def ours(sizes: dict[str, Any]):
    import dataclasses

    import jax
    import numpy as np

    from jax_interp.dashboards import collect_features, unembedding
    from jax_interp.data.harvest import harvest

    model, sae, options, address, batches = _ours(sizes)
    unembed = unembedding(model)
    least = jax.jit(lambda model, sae, tokens: sae.encode(harvest(model, address, tokens)))
    tokens = np.concatenate([tokens for tokens, _ in batches])

    def bare():
        for part, _ in batches:
            jax.block_until_ready(least(model, sae, part))

    data = collect_features(model, address, sae, batches, options, unembed=unembed)
    note = f"mean density {data.density.mean():.4f}, {tokens.size} tokens"
    reading = dataclasses.replace(options, neighbours=0, co_firing=0)  # without what is computed once, at the end
    yield Work("least", bare, note=note)
    yield Work("reading", lambda: collect_features(model, address, sae, batches, reading), note=note)
    yield Work("pass", lambda: collect_features(model, address, sae, batches, options, unembed=unembed), note=note)


def _ours(sizes: dict[str, Any]):
    """(model, dictionary, options, address, batches)."""
    import dataclasses

    import jax
    import jax.numpy as jnp
    import numpy as np
    from gpt2_shape import our_model

    from jax_interp.dashboards import PageOptions
    from jax_interp.data.harvest import harvest
    from jax_interp.dictionaries import ReLU
    from jax_interp.dictionaries.forms import init_sae

    model, _ = our_model({**sizes, "pos": sizes["rows"]}, stacked=True)
    sae = init_sae(jax.random.key(2), sizes["d_model"], sizes["features"], ReLU(), jnp.zeros(sizes["d_model"]))
    address = f"blocks.{_layer(sizes)}.resid_pre"
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, sizes["vocab"], (sizes["sequences"], sizes["rows"]))
    x = jax.jit(lambda tokens: harvest(model, address, tokens))(tokens[: sizes["batch"]])
    pre = sae.linear(x)
    sae = dataclasses.replace(sae, b_enc=-2.33 * jnp.std(pre, axis=0) - jnp.mean(pre, axis=0))  # on at about 1 %
    options = PageOptions(
        top=20, sample=64, uniform=0, quantiles=10, per_quantile=5, before=5, after=5, promoted=10, logit_bins=50,
        neighbours=3, co_firing=3,
    )  # fmt: skip
    keep = np.ones((sizes["batch"], sizes["rows"]), bool)
    batches = [(tokens[i : i + sizes["batch"]], keep) for i in range(0, len(tokens), sizes["batch"])]
    return model, sae, options, address, batches


def sae_dashboard(sizes: dict[str, Any]):
    import torch
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner
    from sae_lens import HookedSAETransformer, StandardSAE, StandardSAEConfig
    from transformer_lens import HookedTransformerConfig

    torch.set_grad_enabled(False)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    cfg = HookedTransformerConfig(
        n_layers=sizes["layers"], d_model=sizes["d_model"], n_ctx=sizes["n_ctx"], n_heads=sizes["heads"],
        d_head=sizes["d_model"] // sizes["heads"], d_mlp=sizes["d_mlp"], d_vocab=sizes["vocab"], act_fn="gelu_new",
        normalization_type="LNPre", device="cpu",
    )  # fmt: skip
    model = HookedSAETransformer(cfg)
    hook = f"blocks.{_layer(sizes)}.hook_resid_pre"
    sae = StandardSAE(StandardSAEConfig(d_in=sizes["d_model"], d_sae=sizes["features"], device="cpu"))
    sae.cfg.metadata.hook_name = hook
    tokens = torch.randint(0, sizes["vocab"], (sizes["sequences"], sizes["rows"]))
    x = model.run_with_cache(tokens[: sizes["batch"]], names_filter=hook)[1][hook].reshape(-1, sizes["d_model"])
    sae.W_enc.normal_(std=sizes["d_model"] ** -0.5)
    sae.W_dec.copy_(sae.W_enc.T)
    pre = x @ sae.W_enc
    sae.b_enc.copy_(-2.33 * pre.std(0) - pre.mean(0))  # on at about 1 %
    config = SaeVisConfig(
        hook_point=hook,
        features=range(sizes["part"]),
        minibatch_size_features=256,
        minibatch_size_tokens=sizes["batch"],
    )

    def seconds() -> float:
        start = time.perf_counter()
        SaeVisRunner(config).run(encoder=sae, model=model, tokens=tokens)
        return (time.perf_counter() - start) * sizes["features"] / sizes["part"]

    yield Work(
        "pass",
        seconds,
        seconds=seconds,
        note=f"density {float((pre + sae.b_enc > 0).float().mean()):.4f}, {tokens.numel()} tokens",
    )


WORKERS = {
    "ours": Worker(ours),
    "SAEDashboard": Worker(
        sae_dashboard, home="v_dashboard", packages=("torch", "sae-dashboard", "sae-lens", "transformer-lens")
    ),
}


def conclude(rounds: Rounds) -> list[str]:
    lines = []
    if (ratio := rounds.ratio("SAEDashboard: pass", "ours: pass")) is not None:
        lines.append(f"SAEDashboard takes {ratio:.1f} times as long as ours (to be at least 3)")
    for work in ("reading", "pass"):
        if (ratio := rounds.ratio(f"ours: {work}", "ours: least")) is not None:
            lines.append(f"ours, {work}: {ratio:.2f} times as long as the model and the encoder alone")
    return lines


def memory(tokens: int) -> None:
    """Read this many tokens in a process of its own, and print its peak memory."""
    import resource

    from jax_interp.dashboards import collect_features

    sizes = {**FULL, "layers": 2, "d_model": 64, "heads": 4, "d_mlp": 256, "features": 512, "batch": 64}
    model, sae, options, address, _ = _ours({**sizes, "sequences": 64})

    class Text:
        def __iter__(self):
            import numpy as np

            for i in range(-(-tokens // (64 * sizes["rows"]))):
                rng = np.random.default_rng(i)
                yield rng.integers(0, sizes["vocab"], (64, sizes["rows"])), np.ones((64, sizes["rows"]), bool)

    import jax

    data = collect_features(model, address, sae, Text(), options)
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    live = sum(array.nbytes for array in jax.live_arrays()) / 2**20
    print(
        f"{data.tokens_seen:>10,} tokens: peak memory of the process {host:,.0f} MB, arrays on the device {live:.0f} MB"
    )


if __name__ == "__main__":
    if "--one-memory" in sys.argv:
        memory(int(sys.argv[-1]))
    elif "--memory" in sys.argv:
        for count in (10**5, 10**6, *([10**7] if "--long" in sys.argv else [])):
            subprocess.run([sys.executable, __file__, "--one-memory", str(count)], check=True)
    else:
        main(__doc__, __file__, WORKERS, FULL, TINY, conclude)
