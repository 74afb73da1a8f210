"""The demo from its config to its report, stage by stage, in one run directory."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from jax_interp.circuits import patching
from jax_interp.core.atomic_write import atomic_write
from jax_interp.recipes import dictionary as dictionary_run
from jax_interp.recipes.demo import features, intervention, writing
from jax_interp.recipes.demo.config import DemoConfig
from jax_interp.recipes.demo.provenance import provenance
from jax_interp.training.metrics import read_log
from jax_interp.views import tables
from jax_interp.views.report import render

STAGES = 8


class Teller:
    """Says what is being done, stage by stage, and keeps the seconds each took."""

    def __init__(self, quiet: bool):
        self.quiet, self.seconds, self._began, self._title = quiet, {}, time.monotonic(), ""

    def stage(self, title: str, says: str = "") -> None:
        self.close()
        self._began, self._title = time.monotonic(), title
        number = len(self.seconds) + 1
        self(f"\n[{number}/{STAGES}] {title}{': ' + says if says else ''}")

    def close(self) -> None:
        if self._title:
            self.seconds[self._title] = time.monotonic() - self._began
        self._title = ""

    def __call__(self, text: str) -> None:
        if not self.quiet:
            print(text, flush=True)


def demonstrate(config: DemoConfig, directory: Path, *, quiet: bool = False, command: str = "") -> Path:
    """Do all of it in `directory`; returns the path of the report. Raises UserError for what the config gets wrong."""

    run, tell = config.dictionary, Teller(quiet)
    tell.stage("Load", f"{run.model} and its text")
    inputs = dictionary_run.inputs_for(run)
    model, tokenizer = inputs.model, inputs.tokenizer
    about = writing.about(run.model, model, inputs)
    tell(f"      {about['parameters']:,} parameters in {about['n_layers']} blocks")
    tell(f"      {about['train_tokens']:,} tokens to train on, {about['validation_tokens']:,} held out")
    tokenizer.id_of(config.token)
    for pair in config.pairs:
        patching.encoded(pair, tokenizer)

    tell.stage("Write", "what the model makes of an opening")
    opening = writing.continuation(model, tokenizer, config.opening, 2 * config.new_tokens)
    tell(_indented("".join(opening["texts"])))

    steps, tokens = run.dictionary.steps, run.tokens
    tell.stage("Train", f"a dictionary of {run.dictionary.n_features:,} features on {run.dictionary.address}, "
               f"{steps:,} steps of {tokens // steps:,} tokens")  # fmt: skip
    sys.stdout.flush()
    sae = dictionary_run.train(run, directory / "dictionary", inputs, quiet=quiet)

    tell.stage("Evaluate", "on held-out text; splicing the identity must change nothing, which is checked first")
    evaluation = dictionary_run.measure(run, sae, inputs, directory / "dictionary" / "evaluation.json").to_json()
    if not quiet:
        tables.evaluation(evaluation, title=f"{run.dictionary.address} of {run.model}")

    tell.stage("Find", f"the features that tell {config.token!r} from other tokens")
    found = features.find(config, inputs, sae)
    for page in found["pages"]:
        writes = " ".join(repr(text) for text, _ in page["promoted"][:4])
        tell(f"      feature {page['feature']}: fires on {page['rate_on']:.0%} of {config.token!r} and "
             f"{page['rate_elsewhere']:.1%} of other tokens; writes {writes}")  # fmt: skip

    tell.stage("Intervene", "one feature ablated, then held high, while the model writes")
    maxima = {page["feature"]: page["max"] for page in found["pages"]}
    changed = intervention.intervene(
        model, tokenizer, run.dictionary.reads[0], sae, config.prompt, list(maxima), maxima, config.strength,
        config.new_tokens,
    )  # fmt: skip
    for column in changed["columns"]:
        tell(f"  {column['says']}:\n{_indented(''.join(column['texts']))}")

    tell.stage("Patch", "one prompt's activations into another's run, every layer and position at once")
    patched = patching.patch(model, tokenizer, config.pairs)
    a, b = patched["answers"]
    tell(f"      {patched['name']}: logit of {a!r} minus that of {b!r} is {patched['clean_difference']:+.2f} on the "
         f"clean prompt, {patched['corrupted_difference']:+.2f} on the corrupted one")  # fmt: skip
    if not patched["preferred"]:
        tell("      the model does not tell this pair apart: read the map with care")

    tell.stage("Report", "one page, nothing fetched")
    results = {
        "model": about,
        "opening": opening,
        "dictionary": {
            "name": f"{type(run.dictionary.activation).__name__} sparse autoencoder",
            "address": run.dictionary.address, "tokens": tokens, "steps": steps,
            "n_features": run.dictionary.n_features, "k": run.dictionary.activation.k,
            "d": about["d_model"], "records": read_log(directory / "dictionary" / "metrics.jsonl"),
        },
        "evaluation": evaluation,
        "features": found,
        "intervention": changed,
        "patching": patched,
        "provenance": provenance(config, command) | {"seconds": dict(tell.seconds)},
    }  # fmt: skip
    atomic_write(directory / "results.json", json.dumps(results, indent=1) + "\n")
    report = atomic_write(directory / "report.html", render(results, tables.evaluation_rows(evaluation)))
    tell.close()
    tell(f"      {sum(tell.seconds.values()):.0f} s in all: "
         + ", ".join(f"{name.lower()} {seconds:.0f} s" for name, seconds in tell.seconds.items()))  # fmt: skip
    return report


def _indented(text: str) -> str:
    return "\n".join(f"      | {line}" for line in text.rstrip().splitlines())
