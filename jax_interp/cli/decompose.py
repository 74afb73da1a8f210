"""`jax-interp decompose CONFIG`: a model's matrices taken apart into components, measured, and shown on one page.

config.json, checkpoints/, metrics.jsonl   the run, as everywhere: killed and called again it goes on
inputs.json                                fingerprints of the weights and the text: it goes on with those alone
decomposition.safetensors                  V and U of every matrix, and the importance function or APD's threshold
evaluation.json                            all figures, linearity beside reconstruction
report.html                                the page
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.cli.config_source import resolve
from jax_interp.core.atomic_write import atomic_write
from jax_interp.decomposition.apd import APDConfig
from jax_interp.recipes.decomposition import DecompositionRunConfig, HeldOut, Inputs, inputs_for
from jax_interp.recipes.decomposition_apd import APD
from jax_interp.recipes.decomposition_method import Method
from jax_interp.recipes.decomposition_page import Shown
from jax_interp.recipes.decomposition_spd import SPD
from jax_interp.recipes.run_inputs import same_inputs


@dataclass(frozen=True)
class Decompose:
    """Take a model's matrices apart into components, save them, measure them and write one HTML page.

    CONFIG is a name (tms_5_2_spd, ...), a .py file with a CONFIG, a config.json or a run directory. Every field of it
    but the list of losses can be overridden below. Stopped or killed, the same command goes on and ends with the same
    bits.
    """

    config: Annotated[DecompositionRunConfig, tyro.conf.arg(name="")]
    run_dir: Path | None = None
    """Where the run is kept: runs/<config name>, or the run directory that was given as CONFIG."""
    quiet: bool = False
    """No progress."""


def method_of(config: DecompositionRunConfig) -> Method:
    """What trains, saves, measures and shows a run of this config."""
    return APD if isinstance(config.decomposition, APDConfig) else SPD


def run(argv: Sequence[str]) -> int:
    found, rest = resolve(DecompositionRunConfig, argv, command="decompose", shown_in_help="tms_5_2_spd")
    defaults = Decompose(found.config)
    asked = parse(Decompose, rest, command="decompose", usage="CONFIG", default=defaults)
    config = asked.config
    settings, method = config.decomposition, method_of(config)
    directory = asked.run_dir or found.run_dir or Path("runs") / found.name
    inputs = inputs_for(config)
    # Too few rows, and matrices that there are not, are refused now: before training, and before there is a directory.
    inputs.held_out(config.evaluate_rows)
    method.check(settings, inputs)
    trained = train(config, inputs, directory, quiet=asked.quiet)
    method.save(directory / "decomposition.safetensors", trained, settings)
    if not asked.quiet:
        print("measuring ...", flush=True)
    result = {"target": config.target, "source": settings.source}
    result |= method.measure(settings, config, trained, inputs)
    atomic_write(directory / "evaluation.json", json.dumps(result, indent=2) + "\n")
    shown = Shown()
    write_page(method, directory, result, trained, inputs.for_page(shown.sequences), shown)
    for line in summary(result):
        print(line)
    print(f"saved in {directory}: decomposition.safetensors, evaluation.json, metrics.jsonl, report.html")
    return 0


def train(config: DecompositionRunConfig, inputs: Inputs, directory: Path | str, *, quiet: bool = False) -> Any:
    """Train in `directory`, from its last checkpoint if it has one."""
    from jax_interp.training import Log, SaveTo, open_run

    may_differ = ("log_every", "checkpoint_every", "evaluate_rows", "linearity_rows", "adversary_steps", "threshold")
    with open_run(directory, config, may_differ=may_differ) as opened:
        same_inputs(opened.directory, inputs.fingerprint)
        return method_of(config).train(
            config.decomposition,
            config,
            inputs,
            run=SaveTo(opened, every=config.checkpoint_every, keep=2),
            log=Log(every=config.log_every, quiet=quiet),
        )


def write_page(
    method: Method, directory: Path, result: Mapping[str, Any], trained: Any, held_out: HeldOut, shown: Shown
) -> Path:
    """Write `report.html` in the run's directory, from its evaluation and its log there."""
    from jax_interp.training.metrics import read_log

    records, name = read_log(directory / "metrics.jsonl"), directory.absolute().name
    return atomic_write(directory / "report.html", method.page(result, records, name, trained, held_out, shown))


def summary(result: dict[str, Any]) -> list[str]:
    """The figures that decide, one a line; linearity and mechanistic faithfulness beside reconstruction."""
    lines = [f"faithfulness {result['faithfulness']:.3g} (relative {result['relative_faithfulness']:.3g})"]
    lines += [f"error under {kind} masks: {value:.4g}" for kind, value in result["error"].items()]
    lines += [f"error after {n} steps of the adversary: {value:.4g}" for n, value in result.get("pgd", {}).items()]
    composites = [row for row in result.get("composites", ()) if row["normalised"] is not None]
    lines += [f"composite inputs, {row['name']}: {_of_square(row)}" for row in composites]
    rows = {row["name"]: row for row in result["linearity"]}
    lines += [f"linearity, {n}: {_of_square(rows[n])}" for n in ("strict", "stochastic", "union of 2") if n in rows]
    lines += [f"linearity, {n}: {rows[n]['value']:.4g}" for n in ("anti / scrub", "L0", "sum of ranks") if n in rows]
    for name, found in result.get("pattern_errors", {}).items():
        lines.append(f"one-hot importances of {name}, errors at .1: {found['errors']['0.1']} ({found['pattern']})")
    return lines + ([f"MMCS {result['mmcs']:.4f}, ML2R {result['ml2r']:.4f}"] if "mmcs" in result else [])


def _of_square(row: dict[str, Any]) -> str:
    excess = "" if row["excess"] is None else f", {row['excess']:.4g} over the oracle's"
    return f"{row['normalised']:.4g} of ‖f‖²{excess}"
