"""One random layer holds the AND of every pair of features, with errors of order p and p².

Vaintrob, Mendel & Hänni 2024 (arXiv 2408.05451): if each neuron reads each feature with probability p, the layer
computes all conjunctions at once. If only the pair is on, the result is exact. If one feature of the pair and one other
feature are on, the error is about p; if two other features are on, about p². p should fall with the number of neurons,
but some neuron must still read each pair.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from experiments.experiment import Results, Row
from jax_interp.toys.universal_and import and_errors, universal_and
from jax_interp.views.style import BLUE, MUTED, ORANGE, canvas, styled


@dataclasses.dataclass(frozen=True)
class Config:
    sizes: tuple[tuple[int, int, float], ...] = (
        (100, 1000, 0.1), (100, 1000, 0.2), (100, 4000, 0.1), (400, 16000, 0.05), (400, 16000, 0.1),
    )  # fmt: skip
    """(features, neurons, p)."""
    trials: int = 1000
    seeds: int = 3


QUICK = Config(sizes=((100, 1000, 0.1), (100, 1000, 0.2)), trials=500, seeds=1)
PUBLISHED = {
    (100, 1000, 0.1): (0.139, 0.032), (100, 1000, 0.2): (0.212, 0.053), (100, 4000, 0.1): (0.1085, 0.0187),
    (400, 16000, 0.05): (0.0618, 0.0074), (400, 16000, 0.1): (0.1035, 0.0128),
}  # fmt: skip


def run(config: Config) -> Results:
    measure = jax.jit(and_errors, static_argnums=2)
    rows: list[Row] = []
    data: dict[str, Any] = {}
    for n, d, p in config.sizes:
        found = []
        for seed in range(config.seeds):
            model = universal_and(jax.random.key(seed), n, d, p)
            found.append({k: float(v) for k, v in measure(jax.random.key(100 + seed), model, config.trials).items()})
        mean = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
        data[f"{n}, {d}, {p}"] = mean | {"features": n, "neurons": d, "p": p}
        one, none = PUBLISHED.get((n, d, p), (np.nan, np.nan))
        close = abs(mean["one"] / one - 1) < 0.1 and abs(mean["none"] / none - 1) < 0.25
        rows.append(Row(f"{n} features, {d} neurons, p = {p}: RMS, one of the pair on / none",
                        f"{mean['one']:.3f} / {mean['none']:.4f}", f"{one} / {none}", bool(close)))  # fmt: skip
    both = max(one["both"] for one in data.values())
    rows.append(Row("largest error with the pair alone on", f"{both:g}", "0", both == 0))
    return Results(tuple(rows), data)


@styled
def figure(data: dict[str, Any]) -> Any:
    drawn, (axes,) = canvas(5.6, 3.8)
    p = np.array([0.04, 0.25])
    axes.plot(p, p, color=BLUE, lw=1, ls="--")
    axes.plot(p, p**2, color=ORANGE, lw=1, ls="--")
    marks = {1000: "o", 4000: "s", 16000: "^"}
    for one in data.values():
        mark = marks.get(one["neurons"], "D")
        axes.plot(one["p"], one["one"], mark, color=BLUE, ms=6)
        axes.plot(one["p"], one["none"], mark, color=ORANGE, ms=6)
    for neurons, mark in marks.items():
        axes.plot([], [], mark, color=MUTED, label=f"{neurons:,} neurons")
    axes.annotate(
        "one of the pair on: p", (0.25, 0.25), xytext=(0, 7), textcoords="offset points", ha="right", color=BLUE
    )
    axes.annotate("none on: p²", (0.15, 0.0225), xytext=(4, -14), textcoords="offset points", color=ORANGE)
    axes.set(title="Error of reading f_i AND f_j where two features are on", xscale="log", yscale="log",
             xlabel="p, the share of features that a neuron sees", ylabel="root mean squared error")  # fmt: skip
    axes.set_xticks([0.05, 0.1, 0.2], ["0.05", "0.1", "0.2"])
    axes.minorticks_off()
    axes.legend(loc="upper left")
    return drawn
