"""`python -m experiments`: list the experiments, run an experiment, write the table, or draw the figures again."""

from __future__ import annotations

import sys
from pathlib import Path

import tyro

from experiments import table
from experiments.experiment import (
    FIGURES,
    RESULTS,
    draw_figure,
    experiment_names,
    find_experiment,
    load_record,
    run_experiment,
)
from jax_interp.core.errors import UserError


def main(arguments: list[str]) -> int:
    """The command line. Returns the exit status."""
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            for name in experiment_names():
                print(f"{name:26}{(find_experiment(name).__doc__ or '').strip().splitlines()[0]}")
            print("python -m experiments NAME [--quick] [options] | table | draw")
        elif arguments[0] == "table":
            print(table.write())
        elif arguments[0] == "draw":
            for path in sorted(RESULTS.glob("*.json")):
                draw_figure(path.stem, load_record(path)["data"])
        else:
            name, rest = arguments[0], [one for one in arguments[1:] if one != "--quick"]
            module, quick = find_experiment(name), "--quick" in arguments
            default = module.QUICK if quick else module.Config()
            config = tyro.cli(module.Config, default=default, args=rest, prog=f"python -m experiments {name}")
            folders = (Path("out/experiments"),) * 2 if quick or config != module.Config() else (RESULTS, FIGURES)
            command = " ".join(["python -m experiments", *arguments])
            for row in run_experiment(name, config, command, *folders).rows:
                print(f"{row.quantity:60} {row.ours:>24}   published {row.published or '-'}"
                      + ("" if row.holds is not False else "   DOES NOT HOLD"))  # fmt: skip
            print(f"written: {folders[0] / name}.json, {folders[1] / name}.png")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
