"""A network of 50 neurons trained on 100 ReLUs is no better than one that computes 50, unless the labels have noise.

"Compressed Computation is (probably) not Computation in Superposition" (2025, arXiv 2606.14673). The labels are relu(x)
+ x M. With M = 0 a trained network has the naive loss, p/12 for each feature. With M its loss is lower, because it fits
M: its neurons are in the span of the top 50 eigenvectors of M. If the training continues without noise, the loss
returns to the naive loss. A factorisation of I + M is as good, without any training. The embedding in the residual MLP
of APD and SPD contains such an M.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.experiment import Results, Row
from jax_interp.toys.cache import cached
from jax_interp.toys.compressed_computation import (
    CompressedConfig,
    CompressedMLP,
    evaluate_compressed,
    factored_mlp,
    naive_per_probability,
    noise_matrix,
    train_compressed,
)
from jax_interp.toys.toy_training import ToyTraining
from jax_interp.views.style import BLUE, GREEN, MUTED, ORANGE, canvas, styled


@dataclasses.dataclass(frozen=True)
class Config:
    sigma: float = 0.025
    d_embed: int = 1000
    task: CompressedConfig = dataclasses.field(default_factory=CompressedConfig)
    seed: int = 0


QUICK = Config(task=CompressedConfig(training=ToyTraining(600, 1024, 3e-3, "cosine", weight_decay=0.0)))
PUBLISHED = {
    "clean": (".0834", lambda found: abs(found["gain"]) < 0.01),
    "noise": (".0667", lambda found: abs(found["gain"] - 0.20) < 0.03),
    "embedding": (".0672", lambda found: abs(found["gain"] - 0.19) < 0.03),
}


def run(config: Config) -> Results:
    n = config.task.n_features
    key = jax.random.key(config.seed + 3)
    noises = {
        "clean": jnp.zeros((n, n)),
        "noise": noise_matrix(key, n, config.sigma),
        "embedding": noise_matrix(key, n, config.d_embed**-0.5, "embedding"),
    }
    training, evaluate = jax.jit(lambda key, M: train_compressed(key, M, config.task)), jax.jit(evaluate_compressed)
    rows: list[Row] = []
    models: dict[str, CompressedMLP] = {}
    data: dict[str, Any] = {"naive": naive_per_probability(config.task)}
    for name, M in noises.items():
        start = jax.random.key(config.seed)
        make = lambda M=M, start=start: training(start, M)
        model = cached(f"compressed-{name}", config, config.seed, jax.eval_shape(training, start, M), make)
        models[name] = model
        found = {k: float(v) for k, v in evaluate(model, M, jax.random.key(9)).items()}
        response = np.sort(np.asarray(jnp.diag(model(jnp.eye(n))) - jnp.diag(M)))
        data[name] = found | {"response": response}
        published, holds = PUBLISHED[name]
        label = {"clean": "M = 0", "noise": f"M symmetric, σ = {config.sigma}",
                 "embedding": f"M of an embedding of {config.d_embed}"}[name]  # fmt: skip
        rows.append(
            Row(f"{label}: loss / p (naive .0833)", f"{found['loss_per_p']:.4f}", published, bool(holds(found)))
        )
    clean, start = noises["clean"], jax.random.key(config.seed + 1)
    noisy = models["noise"]
    onwards = jax.jit(lambda key, M, model: train_compressed(key, M, config.task, model))
    moved = cached("compressed-moved", config, config.seed, jax.eval_shape(onwards, start, clean, noisy),
                   lambda: onwards(start, clean, noisy))  # fmt: skip
    before, after = (float(evaluate(model, clean, jax.random.key(9))["loss_per_p"]) for model in (noisy, moved))
    single = dataclasses.replace(config.task, exactly_one=True)
    alone = jax.jit(lambda model, M: evaluate_compressed(model, M, jax.random.key(9), single))
    free = float(alone(factored_mlp(noises["noise"], config.task.n_neurons, key), noises["noise"])["loss_per_p"])
    same = float(alone(noisy, noises["noise"])["loss_per_p"])
    found = data["noise"]
    rows += [
        Row("the network of the noise without it: loss / p, then trained on", f"{before:.4f}, {after:.4f}",
            "falls back to naive", bool(abs(after - data["naive"]) < 0.02 * data["naive"])),
        Row("one feature on, with noise: loss / p trained, and factored without training", f"{same:.4f}, {free:.4f}",
            "about equal", bool(abs(free / same - 1) < 0.1)),
        Row("M = 0: responses above .9 / below .1", f"{data['clean']['diagonal_above_0.9']:.0f} / "
            f"{data['clean']['diagonal_below_0.1']:.0f}", "15 / 17"),
        Row("with noise: responses above .9 / below .1", f"{found['diagonal_above_0.9']:.0f} / "
            f"{found['diagonal_below_0.1']:.0f}", "0 / 0",
            found["diagonal_above_0.9"] == 0 == found["diagonal_below_0.1"]),
        Row("with noise: mean response", f"{found['diagonal_mean']:.3f}", ".60 to .63",
            bool(0.57 < found["diagonal_mean"] < 0.66)),
        Row("share of W_in, W_out in M's top 50 eigenvectors", f"{found['up_in_top']:.2f}, {found['down_in_top']:.2f}",
            ".88 to .90, .97 to .98", bool(found["up_in_top"] > 0.8 and found["down_in_top"] > 0.9)),
    ]  # fmt: skip
    return Results(tuple(rows), data)


@styled
def figure(data: dict[str, Any]) -> Any:
    kinds = (("clean", "M = 0", MUTED), ("noise", "M symmetric", BLUE), ("embedding", "M of an embedding", GREEN))
    drawn, (bars, curves) = canvas(9.5, 3.4, 2, width_ratios=[1, 1.4])
    for i, (name, label, color) in enumerate(kinds):
        bars.bar(i, data[name]["loss_per_p"], color=color, width=0.6)
        curves.plot(data[name]["response"], color=color, lw=1.6, label=label)
    bars.axhline(data["naive"], color=ORANGE, lw=1.2, ls="--")
    bars.annotate("50 features computed, 50 dropped", (2.4, data["naive"]), xytext=(0, 4), textcoords="offset points",
                  ha="right", color=ORANGE, fontsize=8.5)  # fmt: skip
    bars.set_xticks(range(3), ["M = 0", "symmetric", "embedding"])
    bars.set(title="Loss over p", ylim=(0, 0.1), xlabel="noise matrix M")
    bars.grid(axis="x", visible=False)
    curves.set(
        title="What each feature at 1 gives in its own place", xlabel="feature, sorted", ylabel="response, M taken off"
    )
    curves.legend(loc="upper left")
    return drawn
