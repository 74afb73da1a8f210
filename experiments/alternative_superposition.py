"""If only the error at the active feature counts, a linear model distinguishes dozens of features in the plane.

Roe & Goldstein 2025, "Alternative models of superposition". The loss is (y_t - x_t)² + c max_{j≠t} y_j at one target
feature t. In two dimensions, an autoencoder without nonlinearity then gets most of 100 features right: the output of
the active feature is the largest. But it reconstructs no feature: the error over all outputs is fifty times the error
of the output 0. With other features on at full size, the solution collapses.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np

from experiments.experiment import Results, Row
from jax_interp.toys.alternative_superposition import AlternativeConfig, evaluate, train_alternative
from jax_interp.toys.toy_training import ToyTraining
from jax_interp.views.style import BLUE, MUTED, ORANGE, canvas, styled


@dataclasses.dataclass(frozen=True)
class Config:
    seeds: int = 2
    task: AlternativeConfig = dataclasses.field(default_factory=AlternativeConfig)
    long: ToyTraining = dataclasses.field(
        default_factory=lambda: ToyTraining(20_000, 128, 2.5e-3, "cosine", weight_decay=0.0)
    )
    """The training settings of the run without bias."""


QUICK = Config(
    1, AlternativeConfig(training=ToyTraining(800, 128, 5e-3, "constant", weight_decay=0.0)),
    ToyTraining(1000, 128, 5e-3, "cosine", weight_decay=0.0),
)  # fmt: skip


def run(config: Config) -> Results:
    task, replace = config.task, dataclasses.replace
    kinds = {
        "c = 1e-4": (task, ".64, .68", lambda found: (found["accuracy"] > 0.6).all()),
        "c = 0": (replace(task, penalty=0.0), ".73", lambda found: (found["accuracy"] > 0.6).all()),
        "c = 1e-2": (replace(task, penalty=1e-2), ".54", lambda found: (found["accuracy"] > 0.4).all()),
        "c = 0, no bias, 20k steps": (replace(task, penalty=0.0, bias=False, training=config.long), ".95",
                               lambda found: (found["accuracy"] > 0.7).all()),
        "others on at 1, p = .05": (replace(task, others=0.05, amplitude=1.0), ".16",
                                    lambda found: (found["accuracy"] < 0.4).all()),
    }  # fmt: skip
    keys = jax.random.split(jax.random.key(0), config.seeds)
    rows: list[Row] = []
    data: dict[str, Any] = {}
    for name, (kind, published, holds) in kinds.items():
        models = jax.jit(jax.vmap(partial(train_alternative, config=kind)))(keys)
        found = {k: np.asarray(v) for k, v in jax.vmap(evaluate)(models).items()}
        data[name] = found
        accuracy = ", ".join(f"{a:.2f}" for a in found["accuracy"])
        rows.append(Row(f"{name}: features whose own output is largest", accuracy, published, bool(holds(found))))
        if name == "c = 1e-4":
            data["W"] = np.asarray(models.linear1.weight[0])
    found = data["c = 1e-4"]
    ratio = found["mse"] / found["mse_of_zero"]
    rows += [
        Row("c = 1e-4: error at the target", ", ".join(f"{e:.3f}" for e in found["target_error"]), "under .02",
            bool((found["target_error"] < 0.02).all())),
        Row("c = 1e-4: error over all outputs, one feature on", ", ".join(f"{e:.2f}" for e in found["mse"]), ".52, .50",
            bool((np.abs(found["mse"] - 0.51) < 0.03).all())),
        Row("the same, times that of answering 0", ", ".join(f"{r:.0f}" for r in ratio), "over 20",
            bool((ratio > 20).all())),
    ]  # fmt: skip
    return Results(tuple(rows), data)


@styled
def figure(data: dict[str, Any]) -> Any:
    drawn, (plane, bars) = canvas(9.5, 3.7, 2, width_ratios=[1, 1.75])
    W = np.asarray(data["W"])
    plane.plot(W[:, 0], W[:, 1], ".", color=BLUE, ms=5)
    plane.set(title="100 features in the plane, c = 1e-4", aspect="equal", xlim=(-1.3, 1.3), ylim=(-1.3, 1.3))
    names = [name for name in data if name != "W"]
    accuracy = [float(np.mean(data[name]["accuracy"])) for name in names]
    ratio = [float(np.mean(data[name]["mse"])) / 0.01 for name in names]
    place = np.arange(len(names))
    bars.barh(place, accuracy, color=[BLUE] * 4 + [ORANGE], height=0.6)
    for i, (a, r) in enumerate(zip(accuracy, ratio)):
        bars.annotate(f"{a:.2f}; error over all outputs {r:.0f} × that of zero", (a, i), xytext=(5, 0),
                      textcoords="offset points", va="center", color=MUTED, fontsize=8.5)  # fmt: skip
    bars.set_yticks(place, names)
    bars.invert_yaxis()
    bars.set(title="Features whose own output is the largest", xlim=(0, 2.2), xticks=[0, 0.25, 0.5, 0.75, 1])
    bars.grid(axis="y", visible=False)
    return drawn
