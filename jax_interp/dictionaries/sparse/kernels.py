"""Two Pallas kernels for NVIDIA GPUs (the Triton backend). products.py uses them if `kernels=True`:

    segment_sum_kernel   Σ values[e] · rows[source[e]] over the entries e of each target   z @ W, and z.T @ g by feature
    dot_kernel           a[of_a[e]] · b[of_b[e]] for each entry e                          (g @ W.T) at the entries

The kernels build no dense code, and keep gathered rows in registers only. They read one row of d numbers per entry: for
8192 rows with 64 latents and d = 4096, these are 2 · 10⁹ numbers. With 131072 features, the dense product does
2 · 8192 · 131072 · 4096 = 9 · 10¹² operations. The kernels have been run in Pallas' interpreter and lowered for CUDA.
They have not been timed on a GPU yet (`benchmarks/kernels.py` does that).

Sums are in float32 (float64 for float64) and deterministic: each output is computed by one program, which adds in a
fixed order, without atomics.

Limits: for each block of columns, one program adds all entries of a target, ENTRIES at a time. If a feature is on in
all rows, its program needs rows / ENTRIES turns, and the other programs finish earlier. Entries, rows and columns are
counted in int32; Pallas addresses arrays beyond 4 GiB with 64 bits. From jax 0.11 on, Pallas declares its Triton
backend deprecated and warns when these kernels are compiled.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.ref import Ref
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

# A program works on ENTRIES by COLUMNS numbers at a time: 32 float32 sums for each of its 128 threads. Triton needs
# powers of two.
ENTRIES = 8
COLUMNS = 512
COMPILER = triton.CompilerParams(num_warps=4)


def segment_sum_kernel(
    values: Float[Array, " entry"],
    source: Int[Array, " entry"],
    edges: Int[Array, " target_and_one"],
    rows: Float[Array, "n d"],
) -> Float[Array, "target d"]:
    """Row t of the result is Σ values[e] rows[source[e]] over edges[t] <= e < edges[t + 1]. It is 0 if there are no
    such entries. Entries outside all edges are ignored."""
    targets, d = edges.size - 1, rows.shape[1]
    columns = min(COLUMNS, pl.next_power_of_2(d))
    # Targets vary fastest. Programs that run at the same time then read the same columns of `rows` from the cache.
    return pl.pallas_call(
        partial(_sum_entries, columns=columns),
        out_shape=jax.ShapeDtypeStruct((targets, d), rows.dtype),
        grid=(targets, pl.cdiv(d, columns)),
        compiler_params=COMPILER,
        name="segment_sum_kernel",
    )(values, source, edges, rows)


def _sum_entries(values: Ref, source: Ref, edges: Ref, rows: Ref, out: Ref, *, columns: int) -> None:
    d, precise = rows.shape[1], _precise(rows.dtype)
    target = pl.program_id(0)
    column = pl.program_id(1) * columns + jnp.arange(columns, dtype=jnp.int32)
    inside = column < d
    first, end = edges[target], edges[target + 1]

    def add(turn, total):
        entry = first + turn * ENTRIES + jnp.arange(ENTRIES, dtype=jnp.int32)
        real = entry < end
        value = triton.load(values.at[entry], mask=real, other=0.0).astype(precise)
        row = triton.load(source.at[entry], mask=real, other=0)
        block = _block(rows, row, column, real[:, None] & inside[None, :]).astype(precise)
        return total + value[:, None] * block

    turns = (end - first + ENTRIES - 1) // ENTRIES
    total = jax.lax.fori_loop(0, turns, add, jnp.zeros((ENTRIES, columns), precise))
    triton.store(out.at[target, column], jnp.sum(total, axis=0).astype(out.dtype), mask=inside)


def dot_kernel(
    a: Float[Array, "n d"], of_a: Int[Array, " entry"], b: Float[Array, "m d"], of_b: Int[Array, " entry"]
) -> Float[Array, " entry"]:
    """Return a[of_a[e]] · b[of_b[e]] for each entry e."""
    return pl.pallas_call(
        partial(_dot_entries, columns=min(COLUMNS, pl.next_power_of_2(a.shape[1]))),
        out_shape=jax.ShapeDtypeStruct(of_a.shape, a.dtype),
        grid=(pl.cdiv(of_a.size, ENTRIES),),
        compiler_params=COMPILER,
        name="dot_kernel",
    )(a, of_a, b, of_b)


def _dot_entries(a: Ref, of_a: Ref, b: Ref, of_b: Ref, out: Ref, *, columns: int) -> None:
    d, precise = a.shape[1], _precise(a.dtype)
    entry = pl.program_id(0) * ENTRIES + jnp.arange(ENTRIES, dtype=jnp.int32)
    real = entry < of_a.shape[0]
    row_a, row_b = (triton.load(of.at[entry], mask=real, other=0) for of in (of_a, of_b))

    def add(turn, total):
        column = turn.astype(jnp.int32) * columns + jnp.arange(columns, dtype=jnp.int32)
        both = real[:, None] & (column < d)[None, :]
        return total + _block(a, row_a, column, both).astype(precise) * _block(b, row_b, column, both).astype(precise)

    total = jax.lax.fori_loop(0, pl.cdiv(d, columns), add, jnp.zeros((ENTRIES, columns), precise))
    triton.store(out.at[entry], jnp.sum(total, axis=1).astype(out.dtype), mask=real)


def _block(rows: Ref, row: Array, column: Array, mask: Array) -> Array:
    """Load the columns `column` of the rows `row`, with 0 outside the mask."""
    shape = mask.shape
    at = jnp.broadcast_to(row[:, None], shape), jnp.broadcast_to(column[None, :], shape)
    return triton.load(rows.at[at], mask=mask, other=0.0)


def _precise(dtype: DTypeLike) -> DTypeLike:
    """The dtype in which sums are computed."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32
