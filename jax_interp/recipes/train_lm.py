"""The recipe of `train-lm`: a small language model from text, its training, evaluation and export.

    results = train_lm(CONFIG, "runs/stdlib-small")

The run directory then holds the run (config, log, checkpoints), `tokens/` (tokenizer and token stores), `results.json`
and `export/`, a Hugging Face directory that `load` reads. If a run was killed, the
same call resumes it, and the result is the same bit for bit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import write_json
from jax_interp.core.processes import from_first_process
from jax_interp.data.batches import (
    WindowSampler,
    begin_as_documents,
    evaluation_windows,
    random_repeats,
    repeat_stretches,
)
from jax_interp.data.ngram import fit_kneser_ney
from jax_interp.data.prepared import PreparedText, TextConfig, prepare_text
from jax_interp.data.token_store import TokenStore
from jax_interp.models.config import Config
from jax_interp.models.decoder import Decoder, init
from jax_interp.models.hf import load, save
from jax_interp.models.language_modelling import (
    Optimization,
    TrainState,
    decays,
    evaluate_induction,
    evaluate_text,
    init_state,
    summary,
    train_step,
)
from jax_interp.models.sharding import rules_for
from jax_interp.training import Log, RowBatches, Run, SaveTo, fit, open_run, placed
from jax_interp.training.parent import about_parent
from jax_interp.training.sharding import check_rows


@dataclass(frozen=True)
class LanguageModelConfig:
    """A run of `train_lm`. `text.vocab_size` must equal that of the model. The context is `model.n_ctx`.

    A schedule is a sequence of pairs `(step, fraction)`. A fraction is used from its step on; it is 0 before the first.
    """

    model: Config
    text: TextConfig = field(default_factory=TextConfig)
    optimization: Optimization = field(default_factory=Optimization)
    steps: int = 1000
    batch: int = 16
    """Windows of `n_ctx` tokens in each step."""
    accumulate: int = 1
    """The gradient is computed for this many parts of the batch in turn. It saves memory, and changes only rounding."""
    remat: tuple[str, ...] | None = None
    """The values in the blocks that are kept for the backward pass, such as ("attn.z", "mlp.post"); the others are
    computed again. (): only the inputs of the blocks are kept. None: everything is kept."""
    repeats: tuple[tuple[int, float], ...] = ()
    """Schedule of the fraction of windows in which one stretch occurs twice (`repeat_stretches`)."""
    random_repeats: tuple[tuple[int, float], ...] = ()
    """Schedule of the fraction of windows that are repeated random tokens (`random_repeats`)."""
    documents: tuple[tuple[int, float], ...] = ()
    """Schedule of the fraction of windows whose first token is replaced by BOS (`begin_as_documents`)."""
    seed: int = 0
    log_every: int = 10
    """Steps between two records of the log."""
    checkpoint_every: int = 200
    """Steps between two checkpoints."""
    evaluate_every: int = 200
    """Steps between two evaluations."""
    evaluate_windows: int = 64
    """Validation windows used during training, evenly spread."""
    final_windows: int | None = None
    """Validation windows used at the end, evenly spread. None: all of them; bits per byte are measured only then."""
    baseline_order: int | None = 5
    """Order of the Kneser-Ney n-gram model that is measured for comparison. None: no baseline."""
    export_dtype: Literal["float16", "bfloat16", "float32"] = "float16"

    def __post_init__(self) -> None:
        if self.model.vocab_size != self.text.vocab_size:
            raise UserError(
                f"model.vocab_size={self.model.vocab_size} and text.vocab_size={self.text.vocab_size} must be equal"
            )
        if self.accumulate < 1 or self.batch % self.accumulate:
            raise UserError(f"accumulate={self.accumulate} does not divide batch={self.batch} into equal parts")
        none_means = {"evaluate_windows": "", "final_windows": ", or None for all", "baseline_order": ", or None"}
        for name, alternative in none_means.items():
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name}={value} must be at least 1{alternative}")


MAY_DIFFER = (
    "steps",
    "accumulate",
    "remat",
    "log_every",
    "checkpoint_every",
    "evaluate_every",
    "evaluate_windows",
    "final_windows",
    "baseline_order",
    "export_dtype",
)
"""Fields that may change between the calls that make up one run."""


def train_lm(
    config: LanguageModelConfig,
    run_dir: str | Path,
    *,
    mesh: Mesh | None = None,
    quiet: bool = False,
    parent: str | Path | None = None,
    log: Log = Log(),
) -> dict[str, Any]:
    """Train a language model in a run directory, evaluate it and export it.

    Args:
      config: the run. Between calls that continue one run only the fields in `MAY_DIFFER` may change. `steps` also
        places the decay of the learning rate (`Optimization.decay`): more steps continue the same run only while the
        decay has not begun.
      run_dir: the run directory. If it has a stopped run, this run is resumed.
      mesh: the mesh to train on (`training.sharding.mesh_of`). None: one device. A run may be resumed on another mesh.
      quiet: show no progress.
      parent: `RUN` or `RUN@STEP`, a checkpoint that a new run starts from (see `training.parent`).
      log: where the log goes besides `metrics.jsonl`, and what happens at a NaN. How often it is
        written is in the config.

    Returns:
      The final figures, which are also written to `results.json`.

    Raises:
      UserError: the run directory holds another run, or there is too little text.
    """
    log = dataclasses.replace(log, quiet=quiet)
    if mesh is not None:
        check_rows(config.batch, mesh)
    with open_run(run_dir, config, may_differ=MAY_DIFFER, parent=parent) as run:
        text = prepare_text(config.text, run.directory / "tokens")
        model = _trained(config, run, text, mesh, log)
        directory = export(model, config, text, run.directory / "export")
        measured = lambda: final_results(load(directory, dtype=jnp.float32)[0], config, text)
        results = from_first_process(measured) | about_parent(run.parent)
        write_json(run.directory / "results.json", results, nonfinite=True)
        return results


def _trained(config: LanguageModelConfig, run: Run, text: PreparedText, mesh: Mesh | None, log: Log) -> Decoder:
    """Train, from the last checkpoint if there is one."""
    with placed(mesh, rules_for) as there:
        optimizer = config.optimization.build(config.steps)
        state = fit(
            train_step(optimizer, accumulate=config.accumulate, save=config.remat),
            there.state(init_state(init(config.model, jax.random.key(config.seed)), optimizer)),
            there.batches(_training_batches(config, text)),
            steps=config.steps,
            run=SaveTo(run, every=config.checkpoint_every, keep=2),
            log=dataclasses.replace(
                log,
                every=config.log_every,
                evaluate=_evaluation(config, text),
                evaluate_every=config.evaluate_every,
                per_step={"tokens": config.batch * config.model.n_ctx},
                shown=("loss", "eval.loss", "eval.induction.second_half"),
                title="train-lm",
            ),
        )
    return state.model


def _training_batches(config: LanguageModelConfig, text: PreparedText) -> RowBatches[Int[np.ndarray, "batch length"]]:
    """The batch of each step: windows of the training split, changed by the three schedules."""
    sampler = WindowSampler(text.train.tokens, config.batch, config.model.n_ctx + 1, seed=config.seed)
    bos_id, vocab_size, seed = text.train.bos_id, config.model.vocab_size, config.seed

    def rows(step: int, first: int, stop: int) -> np.ndarray:
        repeats, documents, random = (
            _scheduled(schedule, step) for schedule in (config.repeats, config.documents, config.random_repeats)
        )
        own = {"seed": seed, "first": first}
        windows = repeat_stretches(sampler.rows(step, first, stop), step, fraction=repeats, **own)
        windows = begin_as_documents(windows, step, fraction=documents, bos_id=bos_id, **own)
        of_text = {"vocab_size": vocab_size, "bos_id": bos_id, "of": config.batch}
        return random_repeats(windows, step, fraction=random, **of_text, **own)

    return RowBatches(config.batch, rows)


def _scheduled(schedule: tuple[tuple[int, float], ...], step: int) -> float:
    """The fraction that a schedule gives at a step."""
    return max((start, fraction) for start, fraction in ((-1, 0.0), *schedule) if start <= step)[1]


def _evaluation(config: LanguageModelConfig, text: PreparedText) -> Callable[[TrainState], dict[str, float]]:
    """What is measured during training: the loss on some validation windows, and induction."""
    windows = some_windows(text.validation, config.model.n_ctx, config.evaluate_windows)

    def evaluate(state: TrainState) -> dict[str, float]:
        loss = evaluate_text(state.model, windows, bos_id=text.validation.bos_id)["loss"]
        return summary({"loss": loss, "induction": _induction(state.model, config)})

    return evaluate


def export(model: Decoder, config: LanguageModelConfig, text: PreparedText, directory: Path) -> Path:
    """Write a model and its tokenizer as a Hugging Face directory.

    Matrices are rounded to `export_dtype`, which makes the file small. Norm weights are not rounded. The model still
    loads and computes in float32, unless you ask for another dtype.

    Returns:
      The directory. The model that `load` reads from it is the one to evaluate.
    """
    narrow = jnp.dtype(config.export_dtype)
    rounded = jax.tree.map(lambda x, matrix: x.astype(narrow) if matrix else x, model, decays(model))
    header = {"eos_token_id": text.train.bos_id, "dtype": "float32"}
    return save(rounded, directory, tokenizer=text.tokenizer, overwrite=True, header=header)


def final_results(model: Decoder, config: LanguageModelConfig, text: PreparedText) -> dict[str, Any]:
    """Measure the validation loss, the baseline's loss on the same tokens, and induction.

    Windows overlap by half. Only the second half of a window counts, except in the first window. So each prediction has
    at least `n_ctx / 2` tokens of context, or all tokens before it. Neither loss counts predictions of BOS, the first
    token of a document.
    """
    n_ctx, store, skip = config.model.n_ctx, text.validation, config.model.n_ctx // 2
    places = evaluation_windows(np.arange(store.tokens.size), n_ctx + 1, pad_id=0, overlap=skip + 1)  # a BOS is at 0
    count = len(places) if config.final_windows is None else config.final_windows
    places, whole = spread(places, count), count >= len(places)
    validation = evaluate_text(
        model,
        store.tokens[places].astype(np.int32),
        bos_id=store.bos_id,
        text_bytes=int(text.about["validation_bytes"]) if whole else None,
        skip=skip,
    )
    results: dict[str, Any] = {
        "steps": config.steps,
        "tokens_seen": config.steps * config.batch * n_ctx,
        "parameters": sum(x.size for x in jax.tree.leaves(model)),
        "corpus": text.about | {"train_tokens": int(text.train.tokens.size)},
        "validation": validation,
        "induction": _induction(model, config),
    }
    if config.baseline_order is not None:
        counted = np.concatenate([places[0, 1:], places[1:, 1 + skip :].ravel()])
        results["baseline"] = kneser_ney_baseline(text, config.baseline_order, None if whole else counted)
    return results


def kneser_ney_baseline(
    text: PreparedText, order: int = 5, places: Int[np.ndarray, " n"] | None = None
) -> dict[str, Any]:
    """Fit an interpolated modified Kneser-Ney model on the training split and measure it on the validation split.

    Args:
      text: the text.
      order: the n of the n-gram.
      places: indices of the validation tokens that count. Each is predicted from all earlier tokens of its document.
        None: all tokens count, and bits per byte are measured too.

    Returns:
      `model` (its name), `loss` in nats per token, `tokens` (how many counted), and `bits_per_byte`.
    """
    model = fit_kneser_ney(
        text.train.tokens, vocab_size=text.tokenizer.vocab_size, bos_id=text.train.bos_id, order=order
    )
    losses = -model.log_probs(text.validation.tokens)
    losses = losses if places is None else losses[places]
    results = {
        "model": f"{order}-gram interpolated modified Kneser-Ney",
        "loss": float(np.nanmean(losses)),
        "tokens": int(np.sum(~np.isnan(losses))),
    }
    if places is None:
        results["bits_per_byte"] = float(np.nansum(losses)) / math.log(2) / int(text.about["validation_bytes"])
    return results


def some_windows(store: TokenStore, n_ctx: int, count: int) -> Int[np.ndarray, "windows length"]:
    """`count` evaluation windows (or all, if there are fewer), evenly spread over a split."""
    return spread(evaluation_windows(store.tokens, n_ctx + 1, pad_id=store.bos_id), count)


def spread(rows: Int[np.ndarray, "rows length"], count: int) -> Int[np.ndarray, "count length"]:
    """`count` of the rows (or all, if there are fewer), evenly spread from the first to the last."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]


def _induction(model: Decoder, config: LanguageModelConfig) -> dict[str, float]:
    length = min(64, (config.model.n_ctx - 1) // 2)
    return evaluate_induction(
        model, jax.random.key(0), vocab_size=config.model.vocab_size, bos_id=0, rows=64, length=length
    )
