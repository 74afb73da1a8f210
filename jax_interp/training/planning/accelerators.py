"""Public peak figures of accelerators, for estimates of the time of a step.

The figures are for dense products. Each entry names the page that they were compared with, and the date. For GPUs these
are pages of others that give the figures of the maker.
Rates of links are for one direction.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import time
from collections.abc import Callable

from jax_interp.core.errors import UserError

GB = 10**9


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One device.

    Attributes:
      name: the name in `--device`.
      title: the full name.
      platform: the platform of JAX: "cuda", "tpu" or "cpu".
      memory: bytes of its memory. None: not known.
      flops: peak floating-point operations per second in matrix products, by dtype of the operands.
      vector_flops: the same outside of matrix products, in float32.
      bandwidth: bytes per second of its memory.
      links: bytes per second that it sends to the devices of its own group (NVLink domain, TPU slice).
      group: the number of devices in this group.
      network: bytes per second that it sends to other groups.
      source: the source of the figures.
    """

    name: str
    title: str
    platform: str
    memory: int | None
    flops: dict[str, float]
    vector_flops: float
    bandwidth: float
    links: float
    group: int
    network: float
    source: str


def _gpu(
    name: str, title: str, memory: int, rates: tuple[float, float, float], bandwidth: float, links: float, source: str
) -> Accelerator:
    """A GPU in a node of eight, with one network card of 400 Gbit/s for each (A100: 200 Gbit/s).

    `rates`: TFLOP/s of products of float32 (in TF32, JAX's default) and of bfloat16, and of other float32 operations.
    """
    tf32, bf16, f32 = rates
    flops: dict[str, float] = {"float32": tf32 * 1e12, "bfloat16": bf16 * 1e12, "float16": bf16 * 1e12}
    network = 25e9 if name.startswith("a100") else 50e9
    return Accelerator(
        name, title, "cuda", memory * GB, flops, f32 * 1e12, bandwidth * 1e12, links * 1e9, 8, network, source
    )


def _tpu(
    name: str, memory: int, bf16: float, bandwidth: float, links: float, group: int, network: float, source: str
) -> Accelerator:
    """A TPU chip. By default JAX multiplies float32 on a TPU in bfloat16. The rate of the vector unit is not published:
    a fiftieth of that of products is assumed."""
    flops = {"float32": bf16 * 1e12, "bfloat16": bf16 * 1e12, "float16": bf16 * 1e12}
    return Accelerator(
        name, f"TPU {name}", "tpu", memory * GB, flops, bf16 * 1e12 / 50, bandwidth * 1e9, links * 1e9, group,
        network * 1e9, source,
    )  # fmt: skip


CLOUD = "https://cloud.google.com/tpu/docs"
READ = "read December 2026"
GARDEN = "https://glennklockwood.com/garden/processors"
H200 = "https://lzwjava.github.io/nvidia-h200-gpu-specs-en"
B200 = f"no page has all of them, {READ}: pages give 179 to 192 GB and up to 8 TB/s"
ACCELERATORS = (
    _gpu("a100-40gb", "NVIDIA A100 SXM 40 GB", 40, (156, 312, 19.5), 1.555, 300, f"{GARDEN}/A100, {READ}"),
    _gpu("a100", "NVIDIA A100 SXM 80 GB", 80, (156, 312, 19.5), 2.039, 300, f"{GARDEN}/A100, {READ}"),
    _gpu("h100", "NVIDIA H100 SXM 80 GB", 80, (494.5, 989.5, 67), 3.35, 450, f"{GARDEN}/h100, {READ}"),
    _gpu(
        "h200",
        "NVIDIA H200 SXM 141 GB",
        141,
        (494.5, 989.5, 67),
        4.8,
        450,
        f"{GARDEN}/h100, {READ}; memory: {H200}",
    ),
    _gpu(
        "b200",
        "NVIDIA B200 180 GB",
        180,
        (1100, 2250, 75),
        7.7,
        900,
        B200,
    ),
    _tpu("v4", 32, 275, 1228, 300, 4096, 6.25, f"{CLOUD}/v4, {READ}; the network's rate is that of v5p"),
    _tpu("v5e", 16, 197, 819, 200, 256, 3.125, f"{CLOUD}/v5e, {READ}"),
    _tpu("v5p", 95, 459, 2765, 600, 8960, 6.25, f"{CLOUD}/v5p, {READ}"),
    _tpu("v6e", 32, 918, 1640, 400, 256, 12.5, f"{CLOUD}/v6e, {READ}"),
)
THIS_CPU = "cpu"
NAMES = (*(one.name for one in ACCELERATORS), THIS_CPU)


def accelerator(name: str) -> Accelerator:
    """The accelerator of this name. "cpu" is this machine, whose rates are measured in about a second.

    Raises:
      UserError: there is no accelerator of this name.
    """
    if name == THIS_CPU:
        return _this_cpu()
    found = next((one for one in ACCELERATORS if one.name == name.lower()), None)
    if found is None:
        near = difflib.get_close_matches(name.lower(), NAMES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"there is no device {name!r}; the devices are {', '.join(NAMES)}{hint}")
    return found


def _this_cpu() -> Accelerator:
    """This machine as one device: the rate of a float32 product of 1024 x 1024, and of a sum over 64 MB."""
    import jax
    import jax.numpy as jnp

    a, long = jnp.ones((1024, 1024), jnp.float32), jnp.ones((2**24,), jnp.float32)
    product, add = jax.jit(lambda a: a @ a), jax.jit(lambda x: x + 1.0)
    rate = 2 * 1024**3 / _fastest(lambda: product(a).block_until_ready())
    seconds = _fastest(lambda: add(long).block_until_ready())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    flops: dict[str, float] = dict.fromkeys(("float32", "bfloat16", "float16"), rate)
    bandwidth = 2 * 4 * 2**24 / seconds
    return Accelerator(
        THIS_CPU, "this machine, as one device", "cpu", memory, flops, 2**24 / seconds, bandwidth, bandwidth / 2, 2**20,
        bandwidth / 2, "measured now: a product of 1024 x 1024, and x + 1 for 64 MB",
    )  # fmt: skip


def _fastest(run: Callable[[], object]) -> float:
    """The seconds of the fastest of ten runs."""
    times = []
    for _ in range(10):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
