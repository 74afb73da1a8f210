"""Fingerprints: one 32-bit number for each leaf. It depends only on the bits, not on the mesh or the sharding.

Each 32-bit word is mixed with its index by an invertible hash, and the results are summed modulo 2^32. The order of the
sum does not matter, so every layout over devices gives the same number. The hash is a bijection of the word, so a
change within a single word (a flipped bit, one ulp) always changes the number. Any other change is missed with
probability 2^-32. Fingerprints detect accidents, not attacks.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from jax_interp.core.leaves import PyTree, flatten, is_key
from jax_interp.core.processes import to_host


def _words(x: Array) -> Array:
    """The bits of `x` as uint32, one or more words per element. Bool and types below 8 bits are widened first."""
    if is_key(x):
        x = jax.random.key_data(x)
    dtype = x.dtype
    if dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], axis=-1)
        dtype = x.dtype
    bits = jnp.finfo(dtype).bits if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).bits
    if bits < 8:
        x = x.astype(jnp.float32 if jnp.issubdtype(dtype, jnp.floating) else jnp.int32)
        bits = 32
    word = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint32}[bits]
    return jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)


def mix_bits(h: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A bijective hash of 32-bit words (the finaliser of Ettinger's `triple32` family)."""
    h = (h ^ (h >> jnp.uint32(16))) * jnp.uint32(0x7FEB352D)
    h = (h ^ (h >> jnp.uint32(15))) * jnp.uint32(0x846CA68B)
    return h ^ (h >> jnp.uint32(16))


def fingerprint(x: Array) -> UInt32[Array, ""]:
    """The fingerprint of one array. Cost: one pass over its bytes, no copy (XLA fuses it into the sum)."""
    w = _words(x)
    index = jnp.zeros_like(w)
    for axis, size in enumerate(w.shape):
        along = jnp.arange(size, dtype=jnp.uint32).reshape([-1 if a == axis else 1 for a in range(w.ndim)])
        index = index * jnp.uint32(size % 2**32) + jnp.broadcast_to(along, w.shape)
    return jnp.sum(mix_bits(w ^ mix_bits(index + jnp.uint32(1))), dtype=jnp.uint32)


_all = jax.jit(lambda flat: {name: fingerprint(x) for name, x in flat.items()})


def fingerprints(tree: PyTree) -> dict[str, str]:
    """`{address: eight hex digits}` for every array leaf of `tree`. It compiles once per structure of `tree`."""
    flat = {name: x for name, x in flatten(tree).items() if isinstance(x, jax.Array)}
    return {name: f"{int(value):08x}" for name, value in to_host(_all(flat)).items()}
