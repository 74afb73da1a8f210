"""All that matters on one GPU, in under ten minutes: each kind of work, and its rate as a share of the GEMM's.

    JAX_PLATFORMS=cuda python benchmarks/gpu.py
    XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true" JAX_PLATFORMS=cuda python benchmarks/gpu.py

GPT-2-small shape at 16 x 512 tokens, in float32 and bfloat16: the forward pass, reading 12 values and everything,
generation plain and steered. Then one step of dictionaries (d 1024, 32,768 features, batch 4096), the products of a
TopK code with and without kernels, harvest and train, one step of parameter decomposition, and a sweep of patches. Each
worker also multiplies two large matrices in its own dtype; "of the GEMM" compares with that. Generation and reading
move memory, so their shares are low; the ratios to the forward pass say more.

Without a GPU the script runs the small sizes of `--tiny` only, and no kernels: this shows that it works.
"""

from __future__ import annotations

import os
import sys

import decomposition
import dictionary_step
import harvest_and_train
import kernels
import patching_sweep
from gemm import jax_gemm
from gpt2_shape import FULL as MODEL
from gpt2_shape import TINY as TINY_MODEL
from gpt2_shape import forward_flops, our_model
from reading import _merged, by_default
from timing import Rounds, Work, Worker, main

FULL = {
    "model": {**MODEL, "batch": 16, "pos": 512, "gemm": 8192, "rows": 16, "prompt": 64, "n_new": 64},
    "dictionary": {"d": 1024, "features": 32_768, "k": 64, "on": 64, "batch": 4096, "gemm": 8192},
    "kernels": {"d": 2048, "features": 65_536, "rows": 4096, "k": 64, "gemm": 8192},
    "harvest": {**harvest_and_train.FULL, "sequences": 64, "context": 256, "features": 16_384, "gemm": 8192},
    "decomposition": {**decomposition.FULL, "gemm": 8192},
    "patching": {**patching_sweep.SIZES, "pos": 64, "gemm": 8192},
}
TINY = {
    "model": {**TINY_MODEL, "rows": 2, "prompt": 4, "n_new": 4},
    "dictionary": dictionary_step.TINY,
    "kernels": {**kernels.TINY, "gemm": 64},
    "harvest": harvest_and_train.TINY,
    "decomposition": decomposition.TINY,
    "patching": {**patching_sweep.SMALL, "pos": 4},
}


def model(dtype: str):
    """The forward pass, reading, and generation, of a model in one dtype."""

    def build(sizes):
        import jax

        from jax_interp.models import generate
        from jax_interp.surgery import Add, at, edit, read, sites

        sizes = {**sizes["model"], "dtype": dtype}
        call = jax.jit(lambda f, *args: f(*args))
        plain, tokens = our_model(sizes, stacked=True)
        named = by_default(sites(plain)(tokens))
        programs = {
            "forward": plain,
            "12 values": read(plain, "blocks.*.resid_post"),
            "everything": read(plain, *_merged(named)),
        }
        for name, program in programs.items():
            step = lambda program=program: jax.block_until_ready(call(program, tokens))
            yield Work(name, step, flops=forward_flops(sizes))
        vector = jax.random.normal(jax.random.key(2), (sizes["d_model"],), dtype)
        steered = edit(plain, at(f"blocks.{sizes['layers'] // 2}.resid_post", Add(vector)))
        prompts = jax.random.randint(jax.random.key(3), (sizes["rows"], sizes["prompt"]), 0, sizes["vocab"])
        flops = forward_flops({**sizes, "batch": sizes["rows"], "pos": sizes["prompt"] + sizes["n_new"]})
        for name, program in (("generation", plain), ("steered generation", steered)):
            step = lambda program=program: jax.block_until_ready(generate(program, prompts, sizes["n_new"]))
            yield Work(name, step, flops=flops)
        yield jax_gemm(sizes["gemm"], dtype)

    return build


def sparse_products(sizes):
    """The products with a k-sparse code: with kernels only on a GPU."""
    import jax

    return kernels.ours(sizes["kernels"], (False, True) if jax.default_backend() == "gpu" else (False,))


WORKERS = {
    "float32": Worker(model("float32")),
    "bfloat16": Worker(model("bfloat16")),
    "dictionary step": Worker(lambda sizes: dictionary_step.ours(sizes["dictionary"], ("TopK", "BatchTopK", "ReLU"))),
    "sparse products": Worker(sparse_products),
    "harvest and train": Worker(lambda sizes: harvest_and_train.ours(sizes["harvest"])),
    "decomposition": Worker(lambda sizes: decomposition.ours(sizes["decomposition"])),
    "patching": Worker(lambda sizes: patching_sweep.ours(stacked=True)(sizes["patching"])),
}


def conclude(rounds: Rounds) -> list[str]:
    lines = [f"XLA_FLAGS: {os.environ.get('XLA_FLAGS') or 'none'}"]
    for worker in WORKERS:
        works = [name for name in rounds.rows if name.startswith(f"{worker}: ")]
        gemm = f"{worker}: GEMM"
        for name in works:
            if name != gemm and gemm in works and rounds.gflops(name) is not None:
                lines.append(f"{name}: {rounds.gflops(name) / rounds.gflops(gemm):.1%} of the GEMM")
        if works and (peak := rounds.device_mb(works[-1])) is not None:
            lines.append(f"{worker}: {peak:.0f} MB of the device at most, all its works together")
    for dtype in ("float32", "bfloat16"):
        for name, reference in (
            ("12 values", "forward"),
            ("everything", "forward"),
            ("steered generation", "generation"),
        ):
            if (ratio := rounds.ratio(f"{dtype}: {name}", f"{dtype}: {reference}")) is not None:
                lines.append(f"{dtype}: {name} takes {ratio:.2f} of the time of {reference}")
    for name in ("decode", "dot", "outer", "outer.T"):
        plain, kernel = (f"sparse products: {name}, {which}" for which in ("plain", "kernel"))
        if (ratio := rounds.ratio(plain, kernel)) is not None:
            lines.append(f"{name}: plain takes {ratio:.2f} of the time of the kernel")
    return lines


if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the workers share the memory of the GPU
    on_gpu = os.environ.get("JAX_PLATFORMS", "cpu") not in ("", "cpu")
    if "--serve" not in sys.argv:
        sys.argv += ["--rounds", "5"] if "--rounds" not in sys.argv else []
        sys.argv += ["--tiny"] if not on_gpu and "--tiny" not in sys.argv else []
    main(__doc__, __file__, WORKERS, FULL, TINY, conclude)
