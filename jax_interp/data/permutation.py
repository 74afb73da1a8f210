"""Pseudo-random permutations of any size, one place at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy import ndarray as Array

ROUNDS = 8  # of the Feistel network; four leave correlations that can be measured between permutations of 1000


def mix64(x: Any) -> Any:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014): uint64 -> uint64, a bijection whose bits look random."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is what is meant
        x = np.asarray(x, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def seed_bits(seed: int) -> np.uint64:
    """A seed of any size and sign as 64 bits."""
    return np.uint64(seed & 0xFFFF_FFFF_FFFF_FFFF)


def shuffled(index: Int[Array, " k"], n: int, *, seed: int, epoch: Any = 0) -> Int[Array, " k"]:
    """Where a pseudo-random permutation of `range(n)` sends `index`: one permutation for each (seed, epoch).

    A Feistel network over the next even power of two, with cycle walking, so that nothing of size `n` is built and a
    place costs the same whatever `n`. Own integer arithmetic: the order outlives changes of numpy's generators.
    `epoch` broadcasts against `index`.
    """
    half = max(1, math.ceil(math.log2(max(n, 2)) / 2))
    low, bits = np.uint64((1 << half) - 1), np.uint64(half)
    key = mix64(mix64(seed_bits(seed)) ^ np.asarray(epoch, np.uint64))
    key = np.broadcast_to(key, np.shape(index)).copy()
    value = np.asarray(index, np.uint64).copy()
    pending = np.ones(value.shape, bool)
    while pending.any():  # the domain is under 4 n (n if n is its size), so a few rounds
        left, right = value[pending] >> bits, value[pending] & low
        for r in range(ROUNDS):
            left, right = right, left ^ (mix64(right ^ mix64(key[pending] + np.uint64(r))) & low)
        value[pending] = (left << bits) | right
        pending &= value >= n
    return value.astype(np.int64)
