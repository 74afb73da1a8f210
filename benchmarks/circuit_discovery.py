"""Methods of circuit discovery on circuits that are known: AUC of the known edges, CPR and CMD, with random circuits.

    python benchmarks/circuit_discovery.py                  prints the table of docs/finding-circuits.md

Tasks: `program` is a transformer written by hand (`toys/induction_program.py`), whose edges are known. `trained` is the
induction toy after training; its known edges are those of the mechanism that the prompts of a pair tell apart. Scores
are found on some prompts and judged on others. CPR takes signed scores and CMD absolute ones, as in MIB.
"""

from __future__ import annotations

import time

import jax
import numpy as np

from jax_interp.circuits import LogitDifference, make_contrast, residual_graph
from jax_interp.circuits.discovery.methods import MethodOptions, find_edges
from jax_interp.circuits.discovery.pruning import PruningConfig
from jax_interp.circuits.discovery.units import EdgeUnits
from jax_interp.circuits.evaluation.ranking import roc
from jax_interp.circuits.evaluation.report import evaluate
from jax_interp.circuits.tasks import Induction
from jax_interp.toys.induction import induction_target
from jax_interp.toys.induction_program import MOVED, induction_program, reordered_prompts

METHODS = ("eap", "eap-ig", "ig-activations", "clean-corrupted", "importance", "acdc", "edge-pruning", "random")
FRACTIONS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The graphs have 75 and 29 edges, so MIB's smallest sizes would be circuits without an edge."""


def program():
    def pairs(seed):
        clean, corrupted, answers, others = reordered_prompts(jax.random.key(seed), 12)
        return make_contrast(clean, corrupted, LogitDifference(answers, others))

    return induction_program(jax.random.key(0)), pairs(1), pairs(2), MOVED


def trained():
    model, task = induction_target(), Induction(period=12, repeated=6)
    heads = range(model.config.n_heads)
    known = [f"input->a1.h{i}<v>" for i in heads] + [f"a1.h{i}->logits" for i in heads]
    return model, *(task.of_ids(np.arange(32), 12, seed=seed).contrast for seed in (0, 1)), known


def main() -> None:
    print("| task | method | AUC (chance) | CPR | CMD | seconds |\n|---|---|---|---|---|---|")
    for task in (program, trained):
        model, finding, judging, names = task()
        units = EdgeUnits(residual_graph(model))
        known = np.isin(units.names, list(names))
        options = MethodOptions(target=0.1, pruning=PruningConfig(steps=150))
        for method in METHODS:
            start = time.perf_counter()
            scores = find_edges(method, model, finding, units, options)
            seconds = time.perf_counter() - start
            found = roc(np.abs(scores), known)
            signed = evaluate(model, judging, units, scores, order="signed", fractions=FRACTIONS)
            absolute = evaluate(model, judging, units, scores, fractions=FRACTIONS)
            auc = f"{found.auc:.2f} ({found.chance.low:.2f} to {found.chance.high:.2f})"
            print(
                f"| {task.__name__} | {method} | {auc} | {signed.cpr()} | {absolute.cmd()} | {seconds:.0f} |",
                flush=True,
            )
        print(
            f"| {task.__name__} | random circuits | | {signed.random_cpr()} | {absolute.random_cmd()} | |", flush=True
        )


if __name__ == "__main__":
    main()
