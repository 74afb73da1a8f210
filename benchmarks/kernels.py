"""Products with a k-sparse code, plain and by kernels: d 4096, 131072 features, 8192 rows, k 64, bfloat16, on a GPU.

`plain` is the default of `dictionaries/sparse` on a GPU. It gathers blocks for the decoder and for the gradient of the
code. For the gradients of the weights (`outer` for the decoder, `outer.T` for the encoder) it uses a dense code and a
matrix product. One latent is on in all rows, as in trained dictionaries. The other latents of each row are drawn
evenly. FLOPs are always those of the dense product, so a rate above the GEMM's shows what sparsity saves. `outer`
includes the time to sort the entries.
"""

from __future__ import annotations

import os
import subprocess
import sys

from gemm import jax_gemm
from timing import Rounds, Work, Worker, main

FULL = {"d": 4096, "features": 131_072, "rows": 8192, "k": 64, "gemm": 8192}
TINY = {"d": 256, "features": 1024, "rows": 64, "k": 8, "gemm": 1024}
DTYPE = "bfloat16"


def ours(sizes, ways=(False, True)):
    from functools import partial

    import jax
    import jax.numpy as jnp

    from jax_interp.dictionaries.sparse import products as sparse

    rows, m, k, d = (sizes[name] for name in ("rows", "features", "k", "d"))
    normal = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape, DTYPE)
    values, g, W = normal(0, rows, k), normal(1, rows, d), normal(2, m, d)
    inside = jax.random.randint(jax.random.key(3), (rows, k), 0, m // k)  # one feature of each of k ranges
    indices = jnp.arange(k) * (m // k) + inside.at[:, 0].set(0)
    for kernels in ways:
        outer = partial(sparse.sparse_outer, n_features=m, kernels=kernels)
        products = {
            "decode": (partial(sparse.sparse_matmul, kernels=kernels), (values, indices, W)),
            "dot": (partial(sparse.sparse_dot, kernels=kernels), (g, indices, W)),
            "outer": (outer, (values, indices, g)),
            "outer.T": (partial(outer, transpose=True), (values, indices, g)),
        }
        for name, (product, args) in products.items():
            product = jax.jit(product)
            step = lambda product=product, args=args: product(*args).block_until_ready()
            yield Work(f"{name}, {'kernel' if kernels else 'plain'}", step, flops=2.0 * rows * m * d)
    yield jax_gemm(sizes["gemm"], DTYPE)


WORKERS = {"ours": Worker(ours, packages=("jax", "jaxlib"))}


def conclude(rounds: Rounds) -> list[str]:
    lines = []
    for name in ("decode", "dot", "outer", "outer.T"):
        plain, kernel = (f"ours: {name}, {which}" for which in ("plain", "kernel"))
        shares = [rounds.gflops(which) / rounds.gflops("ours: GEMM") for which in (plain, kernel)]
        lines.append(
            f"{name}: plain takes {rounds.ratio(plain, kernel):.2f} times as long as the kernel; by dense FLOPs plain "
            f"is at {shares[0]:.0%} of the GEMM rate, the kernel at {shares[1]:.0%}"
        )
    return lines


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cuda")
    # This check runs in a separate process, because a process that has used a GPU holds most of its memory.
    if subprocess.run([sys.executable, "-c", "import jax; jax.devices('cuda')"], capture_output=True).returncode:
        raise SystemExit("benchmarks/kernels.py needs an NVIDIA GPU, jax[cuda], and JAX_PLATFORMS unset or cuda")
    main(__doc__, __file__, WORKERS, FULL, TINY, conclude)
