"""A transformer that has memorised modular addition finds the rule later, and measures see it grow before that.

Nanda et al. 2023, "Progress measures for grokking via mechanistic interpretability" (arXiv 2301.05217), at p = 53 in
place of 113. The rule uses a few frequencies; the loss with these alone in the logits (restricted) falls, that without
them (excluded) rises, long before the test loss comes down; and the embedding's frequencies become few (Gini).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.experiment import Results, Row
from jax_interp.models.toys.modular_addition import ModularConfig, scores, train_modular
from jax_interp.models.toys.progress_measures import frequency_norms, frequency_shares, key_frequencies, progress
from jax_interp.models.toys.recipe import Recipe
from jax_interp.views.style import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, canvas, styled


@dataclasses.dataclass(frozen=True)
class Config:
    task: ModularConfig = dataclasses.field(
        default_factory=lambda: ModularConfig(
            recipe=Recipe(5000, 1, 1e-3, "constant", warm_up=10, weight_decay=1.0, betas=(0.9, 0.98))
        )
    )
    every: int = 100
    seed: int = 0


QUICK = Config(ModularConfig(23, 0.6, recipe=Recipe(600, 1, 1e-3, "constant", 10, 1.0, (0.9, 0.98))), every=50)


def run(config: Config) -> Results:
    p = config.task.p
    models, mask, _ = train_modular(jax.random.key(config.seed), config.task, every=config.every)
    found = jax.jit(lambda models: jax.lax.map(lambda model: scores(model, mask, p), models))(models)
    last = jax.tree.map(lambda leaf: leaf[-1], models)
    used = key_frequencies(last)
    keys = jnp.zeros(p // 2, bool).at[jnp.asarray(used) - 1].set(True)
    measures = jax.jit(lambda models: jax.lax.map(lambda model: progress(model, mask, keys), models))(models)
    every = {name: np.asarray(value) for name, value in (found | measures).items()}
    step = np.arange(len(every["test_loss"])) * config.every
    first = lambda reached: int(step[np.argmax(reached)]) if reached.any() else None
    known, grokked = first(every["train_accuracy"] >= 0.999), first(every["test_accuracy"] >= 0.99)
    peak = int(every["test_loss"].argmax())
    falls = first((step >= step[peak]) & (every["test_loss"] < 0.5 * every["test_loss"][peak]))
    restricted = first(every["restricted_loss"] < 0.5)
    shares = np.asarray(frequency_shares(last))
    gini = every["embed_gini"]
    at = lambda n: float(every["test_accuracy"][min(n // config.every, len(step) - 1)])
    rows = (
        Row("training pairs all right from step", f"{known}", "500 at most", known is not None and known <= 500),
        Row("test accuracy at 500, 1500, 2500", ", ".join(f"{at(n):.2f}" for n in (500, 1500, 2500)), ".21, .35, .69"),
        Row("test accuracy .99 from step", f"{grokked}", "3500", grokked is not None and 2000 < grokked <= 5000),
        Row("frequencies used, share of neurons' variance", ", ".join(f"{k} ({shares[k - 1]:.0%})" for k in used),
            "4: 21, 9, 13, 6 (which ones depends on the seed)", 2 <= len(used) <= 7),
        Row("restricted loss below .5 from; test loss halved at", f"{restricted}; {falls}", "the first long before",
            restricted is not None and falls is not None and restricted < falls),
        Row("Gini of the embedding's frequencies (norms), start and end", f"{gini[0]:.2f}, {gini[-1]:.2f}",
            "rises monotonically", bool((np.diff(gini)[1:] > -0.005).all() and gini[-1] > 0.3)),
    )  # fmt: skip
    data = every | {"step": step, "used": used, "embed": frequency_norms(last.embed.weight[...][:p])}
    return Results(rows, data)


@styled
def figure(data: dict[str, Any]) -> Any:
    drawn, (loss, sparse, bars) = canvas(12.5, 3.5, 3, width_ratios=[1.5, 1, 1])
    for name, label, color in (("train_loss", "train", MUTED), ("test_loss", "test", INK),
                               ("restricted_loss", "restricted to the key frequencies", BLUE),
                               ("excluded_loss", "excluded, training pairs", ORANGE)):  # fmt: skip
        loss.plot(data["step"], np.maximum(data[name], 1e-8), color=color, lw=1.6, label=label)
    loss.set(title="Loss", yscale="log", xlabel="step", ylabel="cross-entropy, nats", ylim=(1e-8, 1e5))
    loss.legend(loc="upper right", ncols=2, fontsize=8)
    for name, label, color in (("test_accuracy", "test accuracy", INK), ("embed_gini", "Gini, embedding", GREEN),
                               ("unembed_gini", "Gini, neurons to logits", PURPLE)):  # fmt: skip
        sparse.plot(data["step"], data[name], color=color, lw=1.6, label=label)
    sparse.set(title="Accuracy and sparsity of frequencies", xlabel="step", ylim=(0, 1.03))
    sparse.legend(loc="upper left", fontsize=8)
    norms = np.asarray(data["embed"])
    k = np.arange(1, len(norms) + 1)
    bars.bar(k, norms, color=[BLUE if one in data["used"] else MUTED for one in k])
    bars.set(title="Frequencies in the embedding", xlabel="frequency (blue: used by the neurons)", ylabel="norm")
    return drawn
