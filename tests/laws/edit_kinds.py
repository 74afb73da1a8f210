"""Every kind of edit beside its formula in NumPy, and every kind of region."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import (
    Add,
    Clamp,
    Freeze,
    Mean,
    Noise,
    ProjectOut,
    Replace,
    Resample,
    Rotate,
    Scale,
    Site,
    Splice,
    Zero,
    at,
    edit,
)

Texts = list[np.ndarray]
LATENTS, HALVED = [0, 1, 3], "some latents halved"
Formula = Callable[[Texts], Texts]


@dataclasses.dataclass(frozen=True)
class Value:
    """A named value of a padded batch. `columns[i]` are the columns of the real tokens of text `i`."""

    address: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    columns: tuple[np.ndarray, ...]

    def of_texts(self, array: np.ndarray) -> Texts:
        """The entries of an array of the padded batch, broadcast to the value, for each text."""
        rows = []
        for row, columns in zip(np.broadcast_to(array, self.shape), self.columns, strict=True):
            for axis, name in enumerate(self.axes[1:]):
                row = np.take(row, columns, axis) if name in ("pos", "key") else row
            rows.append(row.astype(np.float64))
        return rows

    def another(self, rng: np.random.Generator) -> np.ndarray:
        """A value that another run could have had here."""
        array = rng.normal(size=self.shape)
        if self.address.endswith("pattern"):
            return np.exp(array) / np.exp(array).sum(-1, keepdims=True)
        return 0.5 + np.abs(array) if self.address.endswith("scale") else array


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """The smallest dictionary."""

    W: jax.Array
    b: jax.Array

    def encode(self, x):
        return jax.nn.relu(x.astype(jnp.float32) @ self.W + jnp.expand_dims(self.b, range(x.ndim - 1)))

    def decode(self, z):
        return z.astype(jnp.float32) @ self.W.T


class NoiseAlone:
    """A model that adds nothing to the noise, for whole texts without padding."""

    def __init__(self, axes: tuple[str, ...]):
        self.axes = " ".join(axes)

    def __call__(self, x, taps=()):
        return (site := Site.open(taps)).close(site("x", x, self.axes))


def by_text(fn: Callable[..., np.ndarray], value: Value, *arrays: np.ndarray) -> Formula:
    """`fn(text, *entries of the arrays)` for each text."""
    entries = [value.of_texts(array) for array in arrays]
    return lambda texts: [fn(text, *(rows[i] for rows in entries)) for i, text in enumerate(texts)]


def edits(rng: np.random.Generator, value: Value) -> dict[str, tuple[Any, Formula]]:
    """Every edit that a value can have, with random numbers, and the formula of each."""
    donor, low = value.another(rng), rng.uniform(-0.5, 0.3)
    vector = donor[(0,) * (donor.ndim - 1)]
    rows = rng.permutation(value.shape[0])
    key = jax.random.key(int(rng.integers(1000)))
    f32 = lambda array: jnp.asarray(array, jnp.float32)
    kinds = {
        "Zero": (Zero(), by_text(lambda x: 0 * x, value)),
        "Mean()": (Mean(), lambda texts: mean_over_texts(texts, value.axes)),
        "Mean(vector)": (Mean(f32(vector)), by_text(lambda x, v: v, value, vector)),
        "Resample": (Resample(rows), lambda texts: resampled(texts, rows, value.axes)),
        "Replace(donor)": (Replace(f32(donor)), by_text(lambda x, d: d, value, donor)),
        "Freeze(donor)": (Freeze(f32(donor)), by_text(lambda x, d: d, value, donor)),
        "Add(donor)": (Add(f32(donor), 0.7), by_text(lambda x, d: x + 0.7 * d, value, donor)),
        "Add(vector)": (Add(f32(vector), 0.7), by_text(lambda x, v: x + 0.7 * v, value, vector)),
        "Scale": (Scale(1.3), by_text(lambda x: 1.3 * x, value)),
        "Clamp": (Clamp(low, low + 0.9), by_text(lambda x: np.clip(x, low, low + 0.9), value)),
        "a function": (jnp.tanh, by_text(np.tanh, value)),
    }
    if value.address.endswith("scale"):  # these could make it zero
        del kinds["Zero"], kinds["Clamp"]
    else:
        noise = NoiseAlone(value.axes)
        noise = np.asarray(edit(noise, at("x", Noise(key, 0.5)))(jnp.zeros(_unpadded(value))))
        kinds["Noise"] = (Noise(key, 0.5), lambda texts: [x + _of_size(noise[i], x) for i, x in enumerate(texts)])
    if value.axes[-1] not in ("key", "one"):
        kinds |= _of_vectors(rng, value, donor)
    return kinds


def _of_vectors(rng: np.random.Generator, value: Value, donor: np.ndarray) -> dict[str, tuple[Any, Formula]]:
    """The edits along the last axis."""
    d = value.shape[-1]
    directions = rng.normal(size=(2, d))
    basis = np.linalg.qr(rng.normal(size=(d, 3)))[0]
    W, b = rng.normal(size=(d, 2 * d)) / d**0.5, rng.normal(size=2 * d) * 0.1
    f32 = lambda array: jnp.asarray(array, jnp.float32)
    out = lambda x, rows: x - x @ np.linalg.pinv(rows) @ rows
    latents = lambda x: np.maximum(x @ W + b, 0)
    dictionary = Autoencoder(f32(W), f32(b))
    scaled = np.where(np.isin(np.arange(2 * d), LATENTS), 0.5, 1.0)
    return {
        "ProjectOut(direction)": (ProjectOut(f32(directions[0])), by_text(lambda x: out(x, directions[:1]), value)),
        "ProjectOut(directions)": (ProjectOut(f32(directions)), by_text(lambda x: out(x, directions), value)),
        "Rotate": (
            Rotate(f32(basis), f32(donor)),
            by_text(lambda x, other: x + (other - x) @ basis @ basis.T, value, donor),
        ),
        "Splice": (Splice(dictionary), by_text(lambda x: latents(x) @ W.T, value)),
        "Splice(error=True)": (Splice(dictionary, error=True), by_text(lambda x: x, value)),
        f"Splice, {HALVED}": (Splice(dictionary), by_text(lambda x: latents(x) * scaled @ W.T, value)),
        f"Splice(error=True), {HALVED}": (
            Splice(dictionary, error=True),
            by_text(lambda x: x + latents(x) * (scaled - 1) @ W.T, value),
        ),
    }


def mean_over_texts(texts: Texts, axes: tuple[str, ...]) -> Texts:
    """At each position, the mean over the texts that reach it."""
    return _at_each_position(texts, axes, lambda i, same: np.mean(list(same.values()), axis=0))


def resampled(texts: Texts, donor: np.ndarray, axes: tuple[str, ...]) -> Texts:
    """At each position, the value of the donor; the text's own value past the donor's end."""
    return _at_each_position(texts, axes, lambda i, same: same.get(donor[i], same[i]))


def _at_each_position(texts: Texts, axes: tuple[str, ...], fn: Callable[[int, dict[int, np.ndarray]], Any]) -> Texts:
    """`fn(text, the value of each text at this position)` at every position of every text. Later keys are left out."""
    pos, keys = axes.index("pos") - 1, axes[-1] == "key"
    first = [np.moveaxis(text, pos, 0) for text in texts]
    out = [row.copy() for row in first]
    for i, row in enumerate(first):
        for p in range(len(row)):
            seen = p + 1 if keys else None
            same = {j: other[p][..., :seen] for j, other in enumerate(first) if p < len(other)}
            out[i][p][..., :seen] = fn(i, same)
    return [np.moveaxis(row, 0, pos) for row in out]


def _unpadded(value: Value) -> tuple[int, ...]:
    longest = max(map(len, value.columns))
    return tuple(longest if name in ("pos", "key") else n for n, name in zip(value.shape, value.axes, strict=True))


def _of_size(array: np.ndarray, like: np.ndarray) -> np.ndarray:
    return array[tuple(slice(n) for n in like.shape)].astype(np.float64)


def regions(rng: np.random.Generator, value: Value, lengths: list[int]) -> Iterator[tuple[dict[str, Any], Texts]]:
    """Regions of a value, and for each text the entries that are inside. Negative positions count from `lengths`."""
    shortest = min(lengths)
    pos = [int(rng.integers(shortest)), -1 - int(rng.integers(shortest)), [0, -1], slice(1, 3), slice(-2, None)]
    everything = [np.ones((1,) * (len(value.axes) - 1), bool)] * len(value.columns)
    yield {}, everything
    chosen = pos[rng.integers(len(pos))]
    inside = [
        _along("pos", _selected(chosen, len(columns), n), value)
        for columns, n in zip(value.columns, lengths, strict=True)
    ]
    yield {"pos": chosen}, inside
    where = rng.random((value.shape[0], value.shape[value.axes.index("pos")])) < 0.5
    yield (
        {"where": jnp.asarray(where)},
        [_along("pos", row[columns], value) for row, columns in zip(where, value.columns, strict=True)],
    )
    for name in ("head", "kv_head"):
        if name in value.axes:
            n = value.shape[value.axes.index(name)]
            h = int(rng.integers(n))
            one = _along(name, np.arange(n) == h, value)
            yield {"head": h}, [one] * len(value.columns)
            yield {"head": h, "pos": chosen}, [one & row for row in inside]
    if value.axes[-1] != "key":
        n = value.shape[-1]
        features = rng.random(n) < 0.5
        yield {"feature": features}, [_along(value.axes[-1], features, value)] * len(value.columns)


def _selected(chosen: Any, n: int, length: int) -> np.ndarray:
    """Which of `n` positions are chosen. A negative position p means `length + p`."""
    if isinstance(chosen, slice):
        start, stop = (end if end is None or end >= 0 else length + end for end in (chosen.start, chosen.stop))
        return (np.arange(n) >= start) & (np.arange(n) < (n if stop is None else stop))
    return np.isin(np.arange(n), [p if p >= 0 else length + p for p in np.atleast_1d(chosen)])


def _along(name: str, flags: np.ndarray, value: Value) -> np.ndarray:
    shape = [1] * (len(value.axes) - 1)
    shape[value.axes.index(name) - 1] = len(flags)
    return flags.reshape(shape)
