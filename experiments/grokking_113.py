"""A transformer groks addition modulo 113 as published: it memorises, forms a circuit, and forgets the memorised pairs.

This is `grokking` (Nanda et al. 2023, arXiv 2301.05217) with the paper's p, fraction of pairs, model and optimizer. It
does 16,000 of the paper's 40,000 steps, which is enough for all three phases.
"""

from __future__ import annotations

import dataclasses

from experiments.experiment import Results, Row
from experiments.grokking import TrainingHistory, figure, train_and_measure
from jax_interp.toys.modular_addition import PAPER, ModularConfig


@dataclasses.dataclass(frozen=True)
class Config:
    task: ModularConfig = dataclasses.field(
        default_factory=lambda: dataclasses.replace(PAPER, training=dataclasses.replace(PAPER.training, steps=16_000))
    )
    every: int = 200
    seed: int = 0


QUICK = Config(dataclasses.replace(PAPER, training=dataclasses.replace(PAPER.training, steps=200)), every=100)


def run(config: Config) -> Results:
    history = train_and_measure(config.task, config.every, config.seed)
    return Results(rows(history), history.data)


def rows(history: TrainingHistory) -> tuple[Row, ...]:
    memorised, generalised = history.memorised, history.generalised
    return (
        Row("training pairs all right from step", f"{memorised}", "1400 at most",
            memorised is not None and memorised <= 1400),
        Row("test accuracy .99 from step", f"{generalised}", "between 9400 and 14000; another run of it: 10800",
            generalised is not None and 9400 <= generalised <= 14_000),
        Row("steps between the two", f"{generalised - memorised if generalised and memorised else None}", "thousands",
            generalised is not None and memorised is not None and generalised - memorised > 2000),
        history.frequencies("5: 14, 35, 41, 42, 52 (which ones depends on the seed)"),
        *history.progress(),
    )  # fmt: skip


__all__ = ["QUICK", "Config", "figure", "run"]
