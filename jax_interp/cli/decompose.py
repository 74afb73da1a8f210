"""`jax-interp decompose CONFIG`: a model's matrices taken apart into components, measured, and shown on one page.

config.json, checkpoints/, metrics.jsonl   the run, as everywhere: killed and called again it goes on
inputs.json                                fingerprints of the weights and the text: it goes on with those alone
decomposition.safetensors                  V and U of every matrix, and the importance function
evaluation.json                            all figures, linearity beside reconstruction
report.html                                the page
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Bool, Int

from jax_interp.cli.arguments import parse
from jax_interp.cli.config_source import resolve
from jax_interp.cli.decomposition_page import HeldOut, Shown, write_page
from jax_interp.cli.run_inputs import fingerprint, same_inputs
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.config import DecompositionConfig
from jax_interp.decomposition.evaluate import composites_of, evaluate, linearity_of, plain
from jax_interp.decomposition.linearity import ideal
from jax_interp.decomposition.matrices import is_stacked
from jax_interp.decomposition.metrics import pattern_errors, probe, recovery
from jax_interp.decomposition.storage import save_decomposition
from jax_interp.decomposition.train import Trained, template, train_decomposition
from jax_interp.errors import UserError
from jax_interp.models.hf import load
from jax_interp.models.toys.features import sparse_features
from jax_interp.models.toys.known_features import KnownFeatures, known_features
from jax_interp.models.toys.resid_mlp import collapse, resid_mlp_target
from jax_interp.models.toys.tms import TMS, tms_target
from jax_interp.training.atomic_write import atomic_write


@dataclass(frozen=True)
class DecompositionRunConfig:
    """A run of `decompose`."""

    decomposition: DecompositionConfig = field(default_factory=DecompositionConfig)
    target: str = "tms:5-2"
    """"tms:PRESET", "resid-mlp:PRESET" (trained here, kept in a cache), or a language model that `load` takes."""
    target_seed: int = 0
    collapsed: bool = True
    """Whether a residual MLP's stream keeps only the directions that matter: the same function, ten times cheaper."""
    text: str = "stdlib"
    """Of a language model: "stdlib", a UTF-8 file, or a directory of .txt, .py and .md files."""
    context: int = 256
    """Tokens a sequence."""
    evaluate_rows: int = 512
    """Examples (of a language model: sequences) that figures are of."""
    linearity_rows: int = 64
    adversary_steps: tuple[int, ...] = (20, 40, 80, 160, 320)
    log_every: int = 100
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        for name in ("evaluate_rows", "linearity_rows", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if self.context < 2:
            raise UserError(f"context={self.context} leaves nothing to predict: at least 2")
        if not self.adversary_steps or min(self.adversary_steps) < 1:
            raise UserError(f"adversary_steps={self.adversary_steps}: one number or more, each at least 1")


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


@dataclass(frozen=True)
class Inputs:
    """The target and its data: `sample(key)` for a toy, `batch_at(step)` for a language model; `held_out(rows)`
    with the labels of a text (None of a toy), and `for_page(sequences)` for the strongest components. `fingerprint` is
    of the weights and the text loaded."""

    model: Any
    held_out: Callable[[int], tuple[Any, Any]]
    for_page: Callable[[int], HeldOut]
    fingerprint: Mapping[str, str]
    sample: Callable[[Any], Any] | None = None
    batch_at: Callable[[int], Any] | None = None


def inputs_for(config: DecompositionRunConfig) -> Inputs:
    """Train or load the target. Raises UserError."""
    kind, _, name = config.target.partition(":")
    batch = config.decomposition.batch
    if kind == "tms":
        loaded: Any = tms_target(name, config.target_seed)
        model = loaded
        draw = partial(sparse_features, n=model.linear1.weight.shape[0], probability=0.05)
    elif kind == "resid-mlp":
        loaded = resid_mlp_target(name, config.target_seed)
        model = collapse(loaded) if config.collapsed else loaded
        draw = partial(sparse_features, n=model.embed.weight.shape[0], probability=0.01, low=-1.0)
    elif name:
        raise UserError(f"target {config.target!r}: tms:PRESET, resid-mlp:PRESET, or what `load` takes")
    else:
        return _of_text(config)

    def for_page(sequences: int) -> HeldOut:
        x = draw(jax.random.key(98), 100 * sequences)
        return HeldOut([(x, jnp.ones(x.shape[:-1], bool))])

    held_out = lambda rows: (draw(jax.random.key(99), rows), None)
    return Inputs(model, held_out, for_page, fingerprint(loaded), sample=lambda key: draw(key, batch))


def _of_text(config: DecompositionRunConfig) -> Inputs:
    from jax_interp.cli.text import text_for

    model, tokenizer = load(config.target)
    if tokenizer is None:
        raise UserError(f"{config.target} has no tokenizer.json: its text cannot be cut into tokens")
    text = text_for(config.text, tokenizer)
    batches = text.training_batches(config.decomposition.batch, config.context, config.decomposition.seed)

    def held_out(rows: int) -> tuple[Any, Any]:
        tokens, keep = text.validation_batches(rows, config.context, rows)[0]
        return jnp.asarray(tokens), next_tokens(tokens, keep)

    def for_page(sequences: int) -> HeldOut:
        batch = min(sequences, config.decomposition.batch, config.evaluate_rows)  # as many as there are: `held_out` ran
        return HeldOut(text.validation_batches(batch, config.context, sequences), tokenizer.strings)

    seen = fingerprint(model, text)
    return Inputs(model, held_out, for_page, seen, batch_at=lambda step: jnp.asarray(batches(step)[0]))


def next_tokens(tokens: Int[np.ndarray, "seq pos"], keep: Bool[np.ndarray, "seq pos"]) -> Int[Array, "seq pos"]:
    """The label of each position: the token after it, or -1 where there is none or one of the two is not kept."""
    kept = np.asarray(keep, bool)
    labels = np.where(kept[:, :-1] & kept[:, 1:], tokens[:, 1:], -1)
    return jnp.asarray(np.pad(labels, ((0, 0), (0, 1)), constant_values=-1))


def measure(config: DecompositionRunConfig, trained: Trained, inputs: Inputs) -> dict[str, Any]:
    """Every figure of the trained decomposition, as JSON values."""
    settings = config.decomposition
    x, labels = inputs.held_out(config.evaluate_rows)
    result = evaluate(settings, trained, x, labels=labels, adversary_steps=config.adversary_steps)
    few = {"samples": 2, "ks": (1, 4), "adversary_steps": (20,), "pairs": 16} if labels is not None else {}
    known = known_features(inputs.model)
    oracle = None if known is None else ideal(trained.model, known.parts)
    result["linearity"] = plain(linearity_of(settings, trained, x[: config.linearity_rows], oracle=oracle, **few))
    result["target"], result["source"] = config.target, settings.source
    return result if known is None else result | against(known, settings, trained, oracle)


def against(
    known: KnownFeatures, settings: DecompositionConfig, trained: Trained, oracle: Decomposed | None
) -> dict[str, Any]:
    """Of a toy: its importances on one-hot probes by concrete address, how far they are from the patterns expected,
    mechanistic faithfulness on composite inputs, and how well the directions of TMS were found."""
    model, active = trained.model, [k for k in (1, 2) if k <= known.count]
    importance = jax.device_get(trained.importance(probe(known.count)).lower)
    probes = {name: np.asarray(g, float).round(4).tolist() for name, g in importance.items()}
    result: dict[str, Any] = {
        "probe": {
            name.replace("*", str(layer)): rows
            for name, g in probes.items()
            for layer, rows in enumerate(g if is_stacked(name) else [g])
        },
        "pattern_errors": pattern_errors(model, importance, known.patterns),
        "composites": composites_of(
            settings, trained, known.count, active=active, oracle=oracle, samples=32, cap=16, feature_sets=32
        ),
    }
    if isinstance(model.target, TMS) and "linear1" in model.names:
        found = recovery(model.of("linear1"), model.target.linear1.weight)
        result |= {"mmcs": float(found.mmcs), "ml2r": float(found.ml2r)}
    return result


def run(argv: Sequence[str]) -> int:
    found, rest = resolve(DecompositionRunConfig, argv, command="decompose", shown_in_help="tms_5_2_spd")
    defaults = Decompose(found.config)
    asked = parse(Decompose, rest, command="decompose", usage="CONFIG", default=defaults)
    config = asked.config
    directory = asked.run_dir or found.run_dir or Path("runs") / found.name
    inputs = inputs_for(config)
    # Too few rows, and matrices that there are not, are refused now: before training, and before there is a directory.
    inputs.held_out(config.evaluate_rows)
    jax.eval_shape(partial(template, config.decomposition), inputs.model)
    trained = train(config, inputs, directory, quiet=asked.quiet)
    save_decomposition(directory / "decomposition.safetensors", trained, config.decomposition)
    if not asked.quiet:
        print("measuring ...", flush=True)
    result = measure(config, trained, inputs)
    atomic_write(directory / "evaluation.json", json.dumps(result, indent=2) + "\n")
    shown = Shown()
    write_page(directory, result, trained, inputs.for_page(shown.sequences), shown)
    for line in summary(result):
        print(line)
    print(f"saved in {directory}: decomposition.safetensors, evaluation.json, metrics.jsonl, report.html")
    return 0


def train(config: DecompositionRunConfig, inputs: Inputs, directory: Path | str, *, quiet: bool = False) -> Trained:
    """Train in `directory`, from its last checkpoint if it has one."""
    from jax_interp.training import open_run

    may_differ = ("log_every", "checkpoint_every", "evaluate_rows", "linearity_rows", "adversary_steps")
    with open_run(directory, config, may_differ=may_differ) as opened:
        same_inputs(opened.directory, inputs.fingerprint)
        return train_decomposition(
            config.decomposition,
            inputs.model,
            sample=inputs.sample,
            batch_at=inputs.batch_at,
            run=opened,
            log_every=config.log_every,
            checkpoint_every=config.checkpoint_every,
            keep=2,
            quiet=quiet,
        )


def summary(result: dict[str, Any]) -> list[str]:
    """The figures that decide, one a line; linearity and mechanistic faithfulness beside reconstruction."""
    lines = [f"faithfulness {result['faithfulness']:.3g} (relative {result['relative_faithfulness']:.3g})"]
    lines += [f"error under {kind} masks: {value:.4g}" for kind, value in result["error"].items()]
    lines += [f"error after {n} steps of the adversary: {value:.4g}" for n, value in result["pgd"].items()]
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
