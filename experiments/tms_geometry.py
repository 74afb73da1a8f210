"""Sparse features are stored in superposition, as the corners of polytopes such as pentagons and antipodal pairs.

Elhage et al. 2022, "Toy Models of Superposition". Five features in the plane form a regular pentagon. With 100 features
in 20 dimensions, the dimensions per feature D* start at 1 (dense features: 20 directions only), have a plateau at 1/2
(antipodal pairs), and fall further for sparser features. Dimensionalities always sum to 20. Whether a training run
loses features depends on how W starts, not on the schedule: with torch's default most runs lose some.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from experiments.experiment import Results, Row
from jax_interp.toys.geometry import dimensionality, dimensions_per_feature, feature_norm, gaps, is_pentagon
from jax_interp.toys.tms import TMSConfig, tms_target
from jax_interp.toys.toy_training import ToyTraining
from jax_interp.views.style import BLUE, INK, MUTED, ORANGE, canvas, styled


@dataclasses.dataclass(frozen=True)
class Config:
    seeds: int = 12
    pentagon: ToyTraining = dataclasses.field(default_factory=lambda: ToyTraining(4000, 512))
    probabilities: tuple[float, ...] = (1.0, 0.6, 0.3, 0.3, 0.3, 0.2, 0.1, 0.05, 0.03, 0.01)
    geometry: ToyTraining = dataclasses.field(default_factory=lambda: ToyTraining(5000, 512))


QUICK = Config(4, ToyTraining(1500, 256), (1.0, 0.3), ToyTraining(1500, 128))


def run(config: Config) -> Results:
    xavier = tms_target(TMSConfig(instances=config.seeds, training=config.pentagon))
    torch = tms_target(
        TMSConfig(instances=config.seeds, weight_init="torch", random_bias=True, training=config.pentagon)
    )
    W = xavier.linear1.weight
    good, lost = np.asarray(jax.vmap(is_pentagon)(W)), np.asarray(jax.vmap(is_pentagon)(torch.linear1.weight))
    norms, spread = np.asarray(feature_norm(W))[good], np.abs(np.asarray(jax.vmap(gaps)(W))[good] - 72).max()
    bias = np.asarray(xavier.linear2.bias)[good]
    p = config.probabilities
    many = TMSConfig(100, 20, instances=len(p), probability=p, training=config.geometry)
    wide = tms_target(many).linear1.weight
    D, star = np.asarray(jax.vmap(dimensionality)(wide)), np.asarray(jax.vmap(dimensions_per_feature)(wide))
    kept = np.asarray(feature_norm(wide)) > 0.5
    dense, paired = p.index(1.0), np.asarray(p) == 0.3
    counts, pairs = kept[paired].sum(axis=1), np.abs(D[paired][kept[paired]] - 0.5) < 0.05
    rows = (
        Row("5 features in the plane: pentagons, W from N (xavier)", f"{good.sum()} / {len(good)}", "23 / 24",
            bool(good.mean() >= 0.75)),
        Row("the same, W and b from torch's default", f"{lost.sum()} / {len(lost)}", "7 / 24",
            bool(lost.mean() <= 0.75)),
        Row("norms", f"{norms.min():.3f} to {norms.max():.3f}", "1.130 to 1.136",
            bool(abs(norms.mean() - 1.133) < 0.02)),
        Row("biases", f"{bias.min():.3f} to {bias.max():.3f}", "-.250 to -.244", bool(abs(bias.mean() + 0.247) < 0.02)),
        Row("largest departure of a gap from 72°", f"{spread:.2f}°", "0.1°", bool(spread < 1)),
        Row("100 in 20, p = 1: D*", f"{star[dense]:.3f}", "1.001", bool(abs(star[dense] - 1) < 0.02)),
        Row("100 in 20, p = .3: D*, each run", ", ".join(f"{one:.3f}" for one in star[paired]), ".490",
            bool(abs(star[paired].mean() - 0.49) < 0.03)),
        Row("100 in 20, p = .3: features kept, each run (median)", ", ".join(f"{one}" for one in counts), "40",
            bool(np.median(counts) == 40)),
        Row("100 in 20, p = .3: kept features with D in [.45, .55]", f"{pairs.mean():.0%}", "100 % (one run)"),
        Row("sum of dimensionalities", f"{D.sum(axis=1).min():.2f} to {D.sum(axis=1).max():.2f}", "19.9 to 20.0",
            bool(np.abs(D.sum(axis=1) - 20).max() < 0.3)),
    )  # fmt: skip
    data = {"W": W[int(np.argmax(good))], "probabilities": list(p), "D": D, "star": star, "kept": kept}
    return Results(rows, data)


@styled
def figure(data: dict[str, Any]) -> Any:
    drawn, (plane, curve) = canvas(9.5, 4.0, 2, width_ratios=[1, 1.7])
    for x, y in np.asarray(data["W"]):
        plane.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": BLUE, "lw": 1.6})
    plane.set(title="Five features in two dimensions", xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), aspect="equal")
    p, D, kept = np.asarray(data["probabilities"]), np.asarray(data["D"]), np.asarray(data["kept"])
    rng = np.random.default_rng(0)
    for one, values, on in zip(p, D, kept):
        x = 1 / one * np.exp(0.06 * rng.standard_normal(on.sum()))
        curve.plot(x, values[on], ".", color=BLUE, ms=4, alpha=0.35, mew=0)
    curve.plot(1 / p, data["star"], color=ORANGE, lw=1.6, marker="o", ms=4, label="D* = m / ‖W‖²")
    curve.plot([], [], ".", color=BLUE, label="D of each feature that is kept")
    for value, name in ((1, "alone"), (2 / 3, "triangle"), (1 / 2, "antipodal pair"), (2 / 5, "pentagon")):
        curve.axhline(value, color=MUTED, lw=0.8, ls="--")
        curve.annotate(name, (1 / p.min() * 1.2, value), xytext=(0, 2), textcoords="offset points", ha="right",
                       color=INK, fontsize=8)  # fmt: skip
    curve.set(title="100 features in 20 dimensions", xscale="log", xlabel="1 / p, the sparser to the right",
              ylabel="dimensions per feature", ylim=(0, 1.12))  # fmt: skip
    curve.legend(loc="lower left")
    return drawn
