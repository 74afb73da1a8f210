"""A whole run that trains a grid of dictionaries, in one run directory.

members/00/dictionary/..., members/00/evaluation.json     each member, with the files of a single run
members/00/features.html                                  the page of its features
sweep.json                                                each member's values in the grid, and its metrics
report.html                                               the Pareto plot and the training curves
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from jax_interp.core.atomic_write import atomic_write
from jax_interp.dictionaries.saving import save_dictionary
from jax_interp.dictionaries.training.config import DictionaryConfig
from jax_interp.dictionaries.training.sweep import Member, Sweep, member_config, train_sweep
from jax_interp.recipes.dictionary import DictionaryRunConfig, Inputs, measure, show_features
from jax_interp.recipes.evaluations import write_evaluation
from jax_interp.recipes.run_inputs import fingerprint, same_inputs
from jax_interp.training import Log, Run, SaveTo


def run_sweep(config: DictionaryRunConfig, run: Run, inputs: Inputs, *, log: Log = Log()) -> list[dict[str, Any]]:
    """Train and evaluate every member of a grid in an open run, from the last checkpoint if there is one.

    Args:
      config: the run's config; its `sweep` is the grid.
      run: the run, as `recipes.dictionary.opened(config, run_dir)` gives it.
      inputs: the result of `inputs_for(config)`.
      log: what is shown, and where else the log goes. `config.log_every` says how often.

    Returns:
      {"name", "label", "series", "l0", "fvu", "recovered", "dead", "member"} for each member. `sweep.json` has the same
      values.
    """
    grid, base = config.sweep, config.dictionary
    assert grid is not None
    assert isinstance(base, DictionaryConfig)
    batch_at = inputs.text.training_batches(config.batch, config.context, config.dictionary.seed)
    same_inputs(run.directory, fingerprint(inputs.model, inputs.text))
    found = train_sweep(
        base,
        grid,
        inputs.model,
        batch_at,
        run=SaveTo(run, every=config.checkpoint_every, keep=2),
        place=inputs.mesh,
        log=dataclasses.replace(log, every=config.log_every),
    )
    rows = []
    for i, (member, dictionary) in enumerate(found):
        directory = run.directory / "members" / f"{i:02d}"
        alone = dataclasses.replace(config, sweep=None, dictionary=member_config(base, member))
        save_dictionary(
            directory / "dictionary", dictionary, address=member.address, writes=config.dictionary.writes,
            model=config.model, config=alone,
        )  # fmt: skip
        result = measure(alone, dictionary, inputs)
        write_evaluation(directory, result)
        page = show_features(alone, directory, dictionary, inputs, quiet=log.quiet)
        rows.append(
            {
                "name": directory.name,
                "label": strength(member, grid),
                "series": series(member, grid),
                "l0": result["reconstruction"]["l0"],
                "fvu": result["reconstruction"]["fvu"],
                "recovered": result["cross_entropy"]["recovered_mean"],
                "dead": result["density"]["dead"],
                "member": dataclasses.asdict(member),
                "page": page,
            }
        )
    atomic_write(run.directory / "sweep.json", json.dumps(rows, indent=2, allow_nan=False) + "\n")
    return rows


def strength(member: Member, sweep: Sweep) -> str:
    """The label of a member: its k and coefficients (if the grid varies them), and whether it diverged."""
    parts = [f"k {member.k}"] if sweep.k else []
    parts += [f"{name} {value:g}" for name, value in member.coefficients.items()]
    parts += [] if member.diverged is None else [f"diverged after step {member.diverged}"]
    return ", ".join(parts)


def series(member: Member, sweep: Sweep) -> str:
    """The name of a member's line in the plot. Members on one line differ only in sparsity strength."""
    parts = [str(member.address)] if len(sweep.addresses) > 1 else []
    parts += [f"seed {member.seed}"] if len(sweep.seeds) > 1 else []
    parts += [f"rate {member.learning_rate:g}"] if len(sweep.learning_rates) > 1 else []
    return ", ".join(parts)
