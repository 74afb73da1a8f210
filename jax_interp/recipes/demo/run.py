"""The recipe of the demo. It runs all stages in one run directory and writes the report."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jax_interp.core.atomic_write import atomic_write
from jax_interp.core.json_files import write_json
from jax_interp.core.terminal import print_text
from jax_interp.dictionaries.forms import Dictionary
from jax_interp.recipes import dictionary as dictionary_recipe
from jax_interp.recipes.demo import features, intervention, patching, writing
from jax_interp.recipes.demo.config import DemoConfig
from jax_interp.recipes.demo.provenance import provenance
from jax_interp.recipes.dictionary import Inputs
from jax_interp.recipes.evaluations import write_evaluation
from jax_interp.training import Log
from jax_interp.training.metrics import read_log
from jax_interp.views import tables
from jax_interp.views.report import render

STAGES = 8


class StagePrinter:
    """Prints the stages and their results (unless it is quiet), and measures the time of each stage.

    Attributes:
      seconds: the time of each finished stage in seconds, by its title.
    """

    def __init__(self, quiet: bool):
        self.quiet = quiet
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, title: str, description: str) -> Iterator[None]:
        start = time.monotonic()
        self.print(f"\n[{len(self.seconds) + 1}/{STAGES}] {title}: {description}")
        yield
        self.seconds[title] = time.monotonic() - start

    def print(self, text: str) -> None:
        if not self.quiet:
            print_text(text)

    def print_indented(self, text: str) -> None:
        self.print("\n".join(f"      | {line}" for line in text.rstrip().splitlines()))


def demonstrate(config: DemoConfig, directory: Path, *, quiet: bool = False, command: str = "") -> Path:
    """Run the whole demo in a directory.

    Args:
      config: the config of the demo.
      directory: the directory for all files: `dictionary/`, `results.json`, `report.html`.
      quiet: print nothing.
      command: the command line, for the report.

    Returns:
      The path of the report.

    Raises:
      UserError: the token, the prompts, the address or the model in the config is wrong.
    """
    out, run = StagePrinter(quiet), config.dictionary
    results: dict[str, Any] = {}
    with out.stage("Load", f"{run.model} and its text"):
        inputs = _load(config)
        results["model"] = writing.describe(run.model, inputs)
        _print_model(results["model"], out)
    with out.stage("Write", "the model continues an opening"):
        results["opening"] = writing.write(inputs.model, inputs.tokenizer, config.opening, 2 * config.new_tokens)
        out.print_indented("".join(results["opening"]["texts"]))
    sae = _train(config, inputs, directory, out)
    with out.stage("Evaluate", "on held-out text; first a check that splicing in the identity changes nothing"):
        evaluated = dictionary_recipe.measure(run, sae, inputs)
        write_evaluation(directory / "dictionary", evaluated)
        if not quiet:
            tables.print_evaluation(evaluated, title=f"{run.dictionary.address} of {run.model}")
    with out.stage("Find", f"features that fire on {config.token!r} and not on other tokens"):
        results["features"] = features.find(config, inputs, sae)
        _print_features(results["features"], out)
    with out.stage(
        "Intervene", "the feature that matters most for a prompt, ablated and clamped while the model writes"
    ):
        results["matter"] = features.matter(config, inputs, sae)
        chosen = results["matter"][0]
        results["intervention"] = intervention.intervene(config, inputs, sae, chosen["feature"], chosen["max"])
        for column in results["intervention"]["columns"]:
            out.print(f"  {column['description']}:")
            out.print_indented("".join(column["texts"]))
    with out.stage("Patch", "values of one prompt's run put into another's, every layer and position at once"):
        results["patching"] = patching.patch(inputs.model, inputs.tokenizer, config.pairs)
        _print_patching(results["patching"], out)
    with out.stage("Report", "one page that fetches nothing"):
        results["dictionary"] = _dictionary(config, results["model"]["d_model"], directory)
        results["evaluation"] = evaluated
        results["provenance"] = provenance(config, command) | {"seconds": dict(out.seconds)}
        report = _write(results, directory)
    each = ", ".join(f"{name.lower()} {seconds:.0f} s" for name, seconds in out.seconds.items())
    out.print(f"      {sum(out.seconds.values()):.0f} s in all: {each}")
    return report


def _load(config: DemoConfig) -> Inputs:
    """Load model and text. Errors in the token or the prompts are raised here, before any training."""
    inputs = dictionary_recipe.inputs_for(config.dictionary)
    inputs.tokenizer.id_of(config.token)
    for pair in config.pairs:
        patching.encode_pair(pair, inputs.tokenizer)
    return inputs


def _train(config: DemoConfig, inputs: Inputs, directory: Path, out: StagePrinter) -> Dictionary:
    run, steps = config.dictionary, config.dictionary.dictionary.steps
    trained = f"a dictionary of {run.dictionary.n_features:,} features on {run.dictionary.address}"
    with out.stage("Train", f"{trained}, {steps:,} steps of {run.tokens // steps:,} tokens"):
        sys.stdout.flush()
        with dictionary_recipe.opened(run, directory / "dictionary") as open_run:
            dictionary = dictionary_recipe.train(run, open_run, inputs, log=Log(quiet=out.quiet))
    assert isinstance(dictionary, Dictionary)  # `DemoConfig` does not accept a cross-layer dictionary
    return dictionary


def _print_model(model: Mapping[str, Any], out: StagePrinter) -> None:
    out.print(f"      {model['parameters']:,} parameters in {model['n_layers']} blocks")
    out.print(f"      {model['train_tokens']:,} tokens to train on, {model['validation_tokens']:,} held out")


def _print_features(found: Mapping[str, Any], out: StagePrinter) -> None:
    for page in found["pages"]:
        promoted = " ".join(repr(text) for text, _ in page["promoted"][:4])
        out.print(
            f"      feature {page['feature']}: fires on {page['rate_on']:.0%} of {found['token']!r} and "
            f"{page['rate_elsewhere']:.1%} of other tokens; promotes {promoted}"
        )


def _print_patching(patched: Mapping[str, Any], out: StagePrinter) -> None:
    answer, other = patched["answers"]
    clean, corrupted = patched["clean_difference"], patched["corrupted_difference"]
    out.print(
        f"      {patched['name']}: logit of {answer!r} minus logit of {other!r} is {clean:+.2f} on the clean prompt, "
        f"{corrupted:+.2f} on the corrupted one"
    )
    if not patched["preferred"]:
        out.print("      the model does not tell these prompts apart: read the map with care")


def _dictionary(config: DemoConfig, d: int, directory: Path) -> dict[str, Any]:
    """The dictionary and its training log, for the report."""
    trained = config.dictionary.dictionary
    return {
        "name": f"{type(trained.activation).__name__} sparse autoencoder",
        "address": trained.address,
        "tokens": config.dictionary.tokens,
        "steps": trained.steps,
        "n_features": trained.n_features,
        "k": trained.activation.k,
        "d": d,
        "records": read_log(directory / "dictionary" / "metrics.jsonl"),
    }


def _write(results: dict[str, Any], directory: Path) -> Path:
    write_json(directory / "results.json", results, indent=1, nonfinite=True)
    return atomic_write(directory / "report.html", render(results, tables.evaluation_rows(results["evaluation"])))
