"""A transformer groks addition modulo 113 as published: it remembers, forms a circuit, and forgets what it remembered.

As `grokking` (Nanda et al. 2023, arXiv 2301.05217), with the paper's p, fraction of pairs, model and optimizer; 16,000
of its 40,000 steps, by which time its three phases are over.
"""

from __future__ import annotations

import dataclasses

from experiments.experiment import Results, Row
from experiments.grokking import Grown, figure, grow
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
    grown = grow(config.task, config.every, config.seed)
    return Results(rows(grown), grown.data)


def rows(grown: Grown) -> tuple[Row, ...]:
    known, grokked = grown.known, grown.grokked
    return (
        Row("training pairs all right from step", f"{known}", "1400 at most", known is not None and known <= 1400),
        Row("test accuracy .99 from step", f"{grokked}", "between 9400 and 14000; another run of it: 10800",
            grokked is not None and 9400 <= grokked <= 14_000),
        Row("steps between the two", f"{grokked - known if grokked and known else None}", "thousands",
            grokked is not None and known is not None and grokked - known > 2000),
        grown.frequencies("5: 14, 35, 41, 42, 52 (which ones depends on the seed)"),
        *grown.progress(),
    )  # fmt: skip


__all__ = ["QUICK", "Config", "figure", "run"]
