"""One large matrix product, timed in the same rounds as all other work. It shows the peak rate of each library."""

from __future__ import annotations

from timing import Work


def jax_gemm(n: int, dtype: str = "float32") -> Work:
    import jax

    a = jax.random.normal(jax.random.key(0), (n, n), dtype)
    product = jax.jit(lambda a, b: a @ b)
    return Work("GEMM", lambda: product(a, a).block_until_ready(), flops=2.0 * n**3)


def torch_gemm(n: int) -> Work:
    import torch

    a = torch.randn(n, n)
    return Work("GEMM", lambda: a @ a, flops=2.0 * n**3)
