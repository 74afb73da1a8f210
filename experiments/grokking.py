"""A transformer memorises modular addition, and finds the rule much later; progress measures show the rule earlier.

Nanda et al. 2023, "Progress measures for grokking via mechanistic interpretability" (arXiv 2301.05217), with p = 53
instead of 113 (see `grokking_113`). The rule uses a few frequencies. Long before the test loss falls, the loss with
only these frequencies in the logits (restricted) falls, and the loss without them (excluded) rises. The embedding comes
to use few frequencies (Gini).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.experiment import Results, Row
from jax_interp.toys.modular_addition import ModularConfig, evaluate_modular, train_modular
from jax_interp.toys.progress_measures import frequency_norms, frequency_shares, key_frequencies, progress
from jax_interp.toys.toy_training import ToyTraining
from jax_interp.views.style import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, canvas, styled


@dataclasses.dataclass(frozen=True)
class Config:
    task: ModularConfig = dataclasses.field(
        default_factory=lambda: ModularConfig(
            training=ToyTraining(5000, 1, 1e-3, "constant", warm_up=10, weight_decay=1.0, betas=(0.9, 0.98))
        )
    )
    every: int = 100
    seed: int = 0


QUICK = Config(ModularConfig(23, 0.6, training=ToyTraining(600, 1, 1e-3, "constant", 10, 1.0, (0.9, 0.98))), every=50)


def run(config: Config) -> Results:
    history = train_and_measure(config.task, config.every, config.seed)
    accuracy = lambda n: float(history.data["test_accuracy"][min(n // config.every, len(history.data["step"]) - 1)])
    memorised, generalised = history.memorised, history.generalised
    rows = (
        Row("training pairs all right from step", f"{memorised}", "500 at most",
            memorised is not None and memorised <= 500),
        Row("test accuracy at 500, 1500, 2500", ", ".join(f"{accuracy(n):.2f}" for n in (500, 1500, 2500)),
            ".21, .35, .69"),
        Row("test accuracy .99 from step", f"{generalised}", "3500",
            generalised is not None and 2000 < generalised <= 5000),
        history.frequencies("4: 21, 9, 13, 6 (which ones depends on the seed)"),
        *history.progress(),
    )  # fmt: skip
    return Results(rows, history.data)


@dataclasses.dataclass(frozen=True)
class TrainingHistory:
    """The measures of a training run. `data` has each measure at each `step`."""

    data: dict[str, Any]
    memorised: int | None
    """The first step at which all training pairs are right; None: never."""
    generalised: int | None
    """The first step at which the test accuracy is 0.99; None: never."""

    def frequencies(self, published: str) -> Row:
        """The row of the frequencies that the finished model uses."""
        used, shares = self.data["used"], self.data["shares"]
        found = ", ".join(f"{k} ({shares[k - 1]:.0%})" for k in used)
        return Row("frequencies used, share of neurons' variance", found, published, 2 <= len(used) <= 7)

    def progress(self) -> tuple[Row, Row]:
        """The rows of the progress measures: the restricted loss falls before the test loss, the embedding becomes
        sparse."""
        step, loss, gini = (np.asarray(self.data[name]) for name in ("step", "test_loss", "embed_gini"))
        peak = int(loss.argmax())
        restricted = _first(step, self.data["restricted_loss"] < 0.5)
        falls = _first(step, (step >= step[peak]) & (loss < 0.5 * loss[peak]))
        return (
            Row("restricted loss below .5 from; test loss halved at", f"{restricted}; {falls}", "the first long before",
                restricted is not None and falls is not None and restricted < falls),
            Row("Gini of the embedding's frequencies (norms), start and end", f"{gini[0]:.2f}, {gini[-1]:.2f}",
                "rises monotonically", bool((np.diff(gini)[1:] > -0.005).all() and gini[-1] > 0.3)),
        )  # fmt: skip


def train_and_measure(task: ModularConfig, every: int, seed: int) -> TrainingHistory:
    """Train a transformer, and measure it during the training.

    Args:
      task: task and training.
      every: steps between two measurements.
      seed: the seed of the initial weights and the training pairs.
    """
    p = task.p
    models, mask, _ = train_modular(jax.random.key(seed), task, every=every)
    found = jax.jit(lambda models: jax.lax.map(lambda model: evaluate_modular(model, mask, p), models))(models)
    last = jax.tree.map(lambda leaf: leaf[-1], models)
    used = key_frequencies(last)
    keys = jnp.asarray(np.isin(np.arange(1, p // 2 + 1), used))
    measures = jax.jit(lambda models: jax.lax.map(lambda model: progress(model, mask, keys), models))(models)
    data: dict[str, Any] = {name: np.asarray(value) for name, value in (found | measures).items()}
    step = np.arange(len(data["test_loss"])) * every
    data |= {"step": step, "used": used, "shares": np.asarray(frequency_shares(last))}
    data |= {"embed": frequency_norms(last.embed.weight[...][:p])}
    return TrainingHistory(
        data, _first(step, data["train_accuracy"] >= 0.999), _first(step, data["test_accuracy"] >= 0.99)
    )


def _first(step: np.ndarray, reached: np.ndarray) -> int | None:
    return int(step[np.argmax(reached)]) if reached.any() else None


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
    sparse.legend(loc="lower right", fontsize=8)
    norms = np.asarray(data["embed"])
    k = np.arange(1, len(norms) + 1)
    bars.bar(k, norms, color=[BLUE if one in data["used"] else MUTED for one in k])
    bars.set(title="Frequencies in the embedding", xlabel="frequency (blue: used by the neurons)", ylabel="norm")
    return drawn
