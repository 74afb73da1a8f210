"""One random layer holds the AND of every pair of n features, and its largest error shrinks as 1 / log² n.

Hänni, Mendel, Vaintrob & Chan 2024 (arXiv 2408.05451): in a layer of d neurons that reads each of n features with
probability p = log²(n) / √d, every AND of two features is ε-linearly readable, with ε = O(1 / log² n). Here d is
log⁸(n), the size at which p itself is 1 / log² n. ε is the largest error over all pairs and over all inputs with at
most two features on: it is computed, not sampled. The bound has no constant, so ε log² n is what must not grow.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from experiments.experiment import Results, Row
from jax_interp.views.style import BLUE, ORANGE, canvas, styled


@dataclasses.dataclass(frozen=True)
class Config:
    features: tuple[int, ...] = (16, 24, 32, 48, 64)
    seeds: int = 3


QUICK = Config(features=(12, 16), seeds=1)


def run(config: Config) -> Results:
    rows: list[Row] = []
    data: dict[str, Any] = {}
    for n in config.features:
        neurons = round(np.log(n) ** 8)
        found = np.array([largest_errors(n, neurons, np.random.default_rng(seed)) for seed in range(config.seeds)])
        scaled = found * np.log(n) ** 2
        data[str(n)] = {"features": n, "neurons": neurons, "one": found[:, 0], "none": found[:, 1]}
        (one, none), (one_scaled, none_scaled) = found.mean(axis=0), scaled.mean(axis=0)
        rows.append(Row(
            f"{n} features, {neurons:,} neurons: largest error, one of the pair on / none (times log² n)",
            f"{one:.3f} / {none:.3f} ({one_scaled:.2f} / {none_scaled:.2f})",
            "O(1) times log² n",
        ))  # fmt: skip
    first, last = (data[str(n)] for n in (config.features[0], config.features[-1]))
    of = lambda one: float(np.mean(np.maximum(one["one"], one["none"])) * np.log(one["features"]) ** 2)
    rows.append(Row("largest error times log² n, fewest and most features", f"{of(first):.2f}, {of(last):.2f}",
                    "does not grow", of(last) <= of(first) * 1.05))  # fmt: skip
    return Results(tuple(rows), data)


def largest_errors(n: int, neurons: int, rng: np.random.Generator) -> tuple[float, float]:
    """The largest error of reading f_i AND f_j with two features on. The mean of the neurons S_i ∩ S_j reads it.

    Returns:
      (with one of the pair on: max |S_i ∩ S_j ∩ S_k| / |S_i ∩ S_j|; with two others on: the same for four sets). With
      the pair alone on, with one feature on and with none, the error is 0.
    """
    sets = rng.random((n, neurons)) < np.log(n) ** 2 / np.sqrt(neurons)
    one, none = 0.0, 0.0
    for i in range(n):
        for j in range(i):
            read = sets[:, sets[i] & sets[j]].astype(np.float32)
            if not read.shape[1]:
                return np.inf, np.inf  # this AND cannot be read
            others = np.delete(read, (i, j), axis=0)
            together = others @ others.T / read.shape[1]
            one = max(one, float(together.diagonal().max()))
            none = max(none, float(together[~np.eye(n - 2, dtype=bool)].max()))
    return one, none


@styled
def figure(data: dict[str, Any]) -> Any:
    drawn, (axes,) = canvas(5.6, 3.8)
    n = np.array([one["features"] for one in data.values()])
    for name, color, label in (("one", BLUE, "one of the pair on"), ("none", ORANGE, "none of the pair on")):
        axes.plot(n, [np.mean(one[name]) for one in data.values()], "o-", color=color, label=label)
    axes.plot(n, 1 / np.log(n) ** 2, "--", color="0.5", label="1 / log² n")
    axes.set(title="Largest error of any AND, two features on", xlabel="features n (log⁸ n neurons)", ylabel="error")
    axes.set_ylim(0)
    axes.legend()
    return drawn
