"""Patched forwards per second: the residual stream over 12 layers x 16 positions, and the heads over 12 x 12.

GPT-2-small shape, random weights, one prompt of 16 tokens, float32, a metric of the last position. Compared with
TransformerLens's own patching functions, and with hooks on the model of transformers, one run for each cell or a batch
for each layer, with the logits of the last position only. The others are timed on the cells of one layer, because their
time does not depend on the layer. `--cells` measures one more cell instead: sweeps of up to 10,000 cells, their memory
and its budget.
"""

from __future__ import annotations

import argparse
import sys
import time

from gemm import jax_gemm, torch_gemm
from gpt2_shape import FULL, TINY, forward_flops, hf_model, lens_model, our_model
from timing import Rounds, Work, Worker, main

SIZES = {**FULL, "batch": 1, "pos": 16, "answer": 100, "other": 200}
SMALL = {**TINY, "batch": 1, "pos": 16, "answer": 100, "other": 200}
LAYER = 1  # whose cells the peers are timed on


def contrast_of(sizes):
    """(our model, a contrast of two random prompts that differ in every token)."""
    import jax
    import numpy as np

    from jax_interp.circuits import LogitDifference, make_contrast

    model, clean = our_model(sizes, stacked=sizes.get("stacked", True))
    other = jax.random.randint(jax.random.key(2), clean.shape, 0, sizes["vocab"])
    corrupted = np.where(np.asarray(other) == np.asarray(clean), (np.asarray(other) + 1) % sizes["vocab"], other)
    return model, make_contrast(clean, corrupted, LogitDifference(sizes["answer"], sizes["other"]))


def ours(stacked: bool):
    def build(sizes):
        from jax_interp.circuits.sweeps import Pieces, patch

        model, contrast = contrast_of({**sizes, "stacked": stacked})
        for title, grid, cells in (("residual", "resid_pre", sizes["pos"]), ("heads", "head_out", sizes["heads"])):
            step = lambda grid=grid: patch(model, contrast, grid, pieces=Pieces(quiet=True))
            flops = cells * sizes["layers"] * forward_flops(sizes)
            yield Work(title, step, flops=flops, note="FLOPs of whole forwards with all logits")
        yield jax_gemm(sizes["gemm"])

    return build


def double_vmap(sizes):
    """What a user writes without a library of sweeps: an edited model under two `vmap`s, with all logits."""
    import jax
    import jax.numpy as jnp

    from jax_interp.surgery import Each, Replace, at, edit, values_at

    model, contrast = contrast_of(sizes)

    @jax.jit
    def residual(model, contrast):
        address = "blocks.*.resid_pre"
        values = values_at(model, address)(contrast.clean)[address]
        patch = lambda layer, pos: at("blocks.resid_pre", Each(Replace(values)), layer=layer, pos=pos)
        one = lambda layer, pos: contrast.metric(edit(model, patch(layer, pos))(contrast.corrupted))
        each = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
        return each(jnp.arange(sizes["layers"]), jnp.arange(sizes["pos"]))

    flops = sizes["pos"] * sizes["layers"] * forward_flops(sizes)
    yield Work("residual", lambda: residual(model, contrast).block_until_ready(), flops=flops)


def transformer_lens(sizes):
    import pandas as pd
    import torch
    from transformer_lens import patching

    model, clean = lens_model(sizes)
    model.enable_compatibility_mode(no_processing=True, disable_warnings=True)
    torch.set_grad_enabled(False)
    corrupted = torch.randint(0, sizes["vocab"], clean.shape)
    metric = lambda logits: logits[0, -1, sizes["answer"]] - logits[0, -1, sizes["other"]]
    cache = model.run_with_cache(clean)[1]
    for title, function, axis, n in (
        ("residual", patching.get_act_patch_resid_pre, "pos", sizes["pos"]),
        ("heads", patching.get_act_patch_attn_head_out_all_pos, "head", sizes["heads"]),
    ):
        index = pd.DataFrame([(LAYER, i) for i in range(n)], columns=["layer", axis])
        step = lambda f=function, index=index: f(model, corrupted, cache, metric, index_df=index, index_axis_names=None)
        yield Work(title, step, flops=n * forward_flops(sizes), note="one layer")


def torch_hooks(sizes):
    import torch

    model, clean = hf_model(sizes)
    corrupted = torch.randint(0, sizes["vocab"], clean.shape)
    blocks, n_heads, d_head = model.transformer.h, sizes["heads"], sizes["d_model"] // sizes["heads"]
    held = {}
    handles = [
        blocks[LAYER].register_forward_pre_hook(lambda module, args: held.update(residual=args[0].clone())),
        blocks[LAYER].attn.c_proj.register_forward_pre_hook(lambda module, args: held.update(z=args[0].clone())),
    ]
    model(clean, use_cache=False)
    for handle in handles:
        handle.remove()

    def logit_difference(logits):
        return logits[:, -1, sizes["answer"]] - logits[:, -1, sizes["other"]]

    def residual_hook(rows, positions):
        def hook(module, args):
            x = args[0].clone()
            x[rows, positions] = held["residual"][0, positions]
            return (x, *args[1:])

        return hook

    def head_hook(rows, heads):
        def hook(module, args):
            x = args[0].reshape(-1, sizes["pos"], n_heads, d_head).clone()
            donor = held["z"].reshape(sizes["pos"], n_heads, d_head)
            x[rows, :, heads] = donor[:, heads].transpose(0, 1)
            return (x.reshape(*args[0].shape),)

        return hook

    def run(make, module, rows, entries):
        handle = module.register_forward_pre_hook(make(rows, entries))
        batch = corrupted.expand(len(rows), -1)
        found = logit_difference(model(batch, use_cache=False, logits_to_keep=1).logits)
        handle.remove()
        return found

    for title, n, make, module in (
        ("residual", sizes["pos"], residual_hook, blocks[LAYER]),
        ("heads", n_heads, head_hook, blocks[LAYER].attn.c_proj),
    ):
        every, one = torch.arange(n), torch.zeros(1, dtype=torch.long)
        batched = lambda make=make, module=module, every=every: run(make, module, every, every)
        loop = lambda make=make, module=module, one=one, n=n: [run(make, module, one, one + i) for i in range(n)]
        yield Work(f"{title}, batched", batched, flops=n * forward_flops(sizes), note="one layer")
        yield Work(f"{title}, loop", loop, flops=n * forward_flops(sizes), note="one layer")
    yield torch_gemm(sizes["gemm"])


WORKERS = {
    "ours": Worker(ours(stacked=True)),
    "ours unrolled": Worker(ours(stacked=False)),
    "double vmap": Worker(double_vmap),
    "TransformerLens": Worker(transformer_lens, home="v", packages=("torch", "transformers", "transformer-lens")),
    "torch": Worker(torch_hooks, home="v", packages=("torch", "transformers")),
}


def conclude(rounds: Rounds) -> list[str]:
    whole = {"ours", "ours unrolled", "double vmap"}
    sizes = SMALL if "--tiny" in sys.argv else SIZES
    cells = lambda name: (
        (sizes["pos"] if "residual" in name else sizes["heads"])
        * (sizes["layers"] if name.split(":")[0] in whole else 1)
    )
    lines = []
    for name in rounds.rows:
        if "GEMM" not in name:
            lines.append(f"{name}: {cells(name) / rounds.seconds(name):.1f} patched forwards/s")
    for layout in ("ours", "ours unrolled"):
        for what in ("residual", "heads"):
            mine = f"{layout}: {what}"
            goals = {
                f"TransformerLens: {what}": " (to be at least 25)",
                f"torch: {what}, batched": " (to be at least 6)",
                f"double vmap: {what}": "",
            }
            for peer, goal in goals.items():
                ratio = rounds.ratio(peer, mine)
                if ratio is not None:
                    lines.append(f"{mine} is {ratio * cells(mine) / cells(peer):.1f} x {peer}{goal}")
            rate = rounds.ratio(f"{layout}: GEMM", mine)
            if rate is not None:
                gemm = 2.0 * sizes["gemm"] ** 3
                done = flops_done(sizes, what)
                lines.append(f"{mine}: {rate * done / gemm:.0%} of the GEMM rate, of the FLOPs that are needed")
    return lines


def flops_done(sizes, what: str) -> float:
    """The FLOPs of the products that our sweep computes: the layers from the patched one on, one row of logits."""
    one = {**sizes, "vocab": 0}
    cells = sizes["pos"] if what == "residual" else sizes["heads"]
    layers = (sizes["layers"] + 1) / 2
    per_token = forward_flops(one) / sizes["pos"] / sizes["layers"]
    n = sizes["pos"]
    tokens = n
    if what == "residual":  # four bands of positions: the tokens before a band are not run again
        cut = [i * n // 4 for i in range(4)]
        tokens = sum((n // 4) * (n - first) for first in cut) / n
    logits = 2.0 * sizes["d_model"] * sizes["vocab"]
    return cells * sizes["layers"] * (layers * per_token * tokens + logits)


def measure_cells() -> None:
    """One more cell: the time for each cell, and the memory of a piece beside its budget."""
    import jax
    import jax.numpy as jnp

    from jax_interp.circuits.sweeps import Pieces, sweep
    from jax_interp.circuits.sweeps.sweep import _programs
    from jax_interp.surgery import Add, at, edit

    model, contrast = contrast_of({**SMALL, "layers": 4, "stacked": True})
    vectors = jax.random.normal(jax.random.key(3), (10_000, SMALL["d_model"]))

    def steered(model, contrast, vector):
        return contrast.metric(edit(model, at("blocks.2.resid_post", Add(vector)))(contrast.clean, last_only=True))

    f = jax.tree_util.Partial(steered, model, contrast)
    print("| cells | budget MB | memory of a piece MB | us for each cell |\n|---|---|---|---|")
    for budget in (8, 64):
        for n in (100, 1_000, 3_000, 10_000):
            pieces = Pieces(budget=budget * 2**20, quiet=True)
            run = lambda n=n, pieces=pieces: sweep(f, {"vector": jnp.asarray(vectors[:n])}, pieces=pieces)
            run()
            taken = []
            for _ in range(5):
                start = time.perf_counter()
                run()
                taken.append(time.perf_counter() - start)
            used = list(_programs.values())[-1][1]
            print(f"| {n} | {budget} | {used / 2**20:.1f} | {sorted(taken)[2] / n * 1e6:.1f} |", flush=True)


if __name__ == "__main__":
    if "--cells" in sys.argv:
        argparse.ArgumentParser(description=__doc__).add_argument("--cells", action="store_true")
        measure_cells()
    else:
        main(__doc__, __file__, WORKERS, SIZES, SMALL, conclude)
