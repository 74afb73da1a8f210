"""557 four-neuron circuits fit into a thousand neurons, but they work only for a few layers and if few are on.

Linsefors, "Circuits in superposition 2" (2025) and "Rotations in superposition" (December 2025). Each circuit has 6
slots, any two circuits share at most one slot, and the matrices are made by hand. On average x is better than a guess
for four layers with one circuit on, and for three layers with two or three circuits on. With 1, 2 or 3 circuits on,
every circuit survives 2, 1 or 0 rotations. In the figure the leading terms of the theory are dashed. The errors differ
from them if too many neurons fire.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from experiments.experiment import Results, Row
from jax_interp.toys.rotations import expected_errors, max_circuits, rotation_errors, rotations
from jax_interp.views.style import BLUE, GREEN, MUTED, ORANGE, canvas, styled


@dataclasses.dataclass(frozen=True)
class Config:
    T: int = 557
    D: int = 1000
    S: int = 6
    layers: int = 5
    rows: int = 512
    chunks: int = 8
    seed: int = 0


QUICK = Config(rows=128, chunks=2)
PUBLISHED = {
    1: (0, 0.0084, 0.130, 0.589, 1.63),
    2: (0.034, 0.157, 0.575, 1.55, 3.77),
    3: (0.077, 0.330, 0.883, 2.10, 5.29),
}
SURVIVES = {1: 2, 2: 1, 3: 0}


def run(config: Config) -> Results:
    model = jax.jit(rotations, static_argnums=(1, 2, 3, 4))(
        jax.random.key(config.seed), config.T, config.D, config.S, config.layers
    )
    measure = jax.jit(rotation_errors, static_argnums=(2, 3, 4))
    fit = max_circuits(config.D // 4, config.S)
    rows = [Row(f"circuits of {config.S} slots that fit into {config.D // 4}", f"{fit}", "557", fit == 557)]
    data: dict[str, Any] = {}
    for z, published in PUBLISHED.items():
        found = measure(model, jax.random.key(1), z, config.rows, config.chunks)
        found = {name: np.asarray(value) for name, value in found.items()}
        theory = [expected_errors(config.T, config.D, config.S, z, layer + 1) for layer in range(config.layers)]
        data[str(z)] = found | {"theory": [one["active"] for one in theory]}
        error, early = found["active"], slice(0, 3)
        close = np.abs(error[early] - published[early]) < 0.15 * np.asarray(published[early]) + 1e-4
        rows.append(Row(f"{z} on: mean |error|² of x, layers 1 to 5", ", ".join(f"{e:.3g}" for e in error),
                        ", ".join(f"{e:.3g}" for e in published), bool(close.all())))  # fmt: skip
        beats, said = int(np.sum(np.cumprod(error < 1))), 4 if z == 1 else 3
        rows.append(Row(f"{z} on: layers in which the mean beats a guess", f"{beats}", f"{said}", beats == said))
        survived = int(np.sum(np.cumprod(found["worst"] < 1)))
        rows.append(Row(f"{z} on: rotations that every circuit survives", f"{survived}", f"{SURVIVES[z]}",
                        survived == SURVIVES[z]))  # fmt: skip
        if z == 1:
            inactive = float(found["inactive"][0])
            rows.append(Row("1 on: mean |x|² of those that are off, layer 1", f"{inactive:.4f}", ".0037 (theory)",
                            abs(inactive - theory[0]["inactive"]) < 0.0006))  # fmt: skip
    return Results(tuple(rows), data)


@styled
def figure(data: dict[str, Any]) -> Any:
    drawn, (error, firing) = canvas(9.5, 3.6, 2, width_ratios=[1.4, 1])
    for z, color in (("1", BLUE), ("2", GREEN), ("3", ORANGE)):
        found = data[z]
        layers = np.arange(1, len(found["active"]) + 1)
        on = np.asarray(found["active"]) > 1e-6
        error.plot(layers[on], np.asarray(found["active"])[on], color=color, lw=1.7, marker="o", ms=4, label=f"{z} on")
        theory = np.asarray(found["theory"])
        error.plot(layers[theory > 0], theory[theory > 0], color=color, lw=1, ls="--")
        firing.plot(layers, found["firing"], color=color, lw=1.7, marker="o", ms=4)
    error.axhline(1, color=MUTED, lw=0.9)
    error.annotate("guessing the mean", (1, 1), xytext=(0, 3), textcoords="offset points", color=MUTED, fontsize=8.5)
    error.set(title="Error of x in circuits that are on (dashed: theory)", yscale="log", xlabel="layer",
              ylabel="mean squared error", xticks=layers)  # fmt: skip
    error.legend(loc="lower right")
    firing.set(title="Neurons that fire", xlabel="layer", ylabel="share of 1000", ylim=(0, None), xticks=layers)
    return drawn
