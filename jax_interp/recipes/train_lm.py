"""Training a small language model from a config: text to tokens, the run, its evaluation, an export.

    results = train_lm(CONFIG, "runs/stdlib-small")

The directory then holds the run (config, log, checkpoints), `tokens/` (tokenizer and token stores), `results.json` and
`export/`, a Hugging Face directory that `load` reads. Killed and called again it goes on and ends with the same bits.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jax_interp.core.atomic_write import atomic_write
from jax_interp.core.errors import UserError
from jax_interp.data.batches import (
    TokenStore,
    WindowSampler,
    begin_as_documents,
    evaluation_windows,
    random_repeats,
    repeat_stretches,
)
from jax_interp.data.ngram import fit_kneser_ney
from jax_interp.data.prepared import PreparedText, TextConfig, prepare_text
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
from jax_interp.training import Log, SaveTo, fit, open_run


@dataclass(frozen=True)
class LanguageModelConfig:
    """A run of `train_lm`. The vocabulary is `text.vocab_size`, the context `model.n_ctx`."""

    model: Config
    text: TextConfig = field(default_factory=TextConfig)
    optimization: Optimization = field(default_factory=Optimization)
    steps: int = 1000
    batch: int = 16
    """Windows of `n_ctx` tokens a step."""
    repeats: tuple[tuple[int, float], ...] = ()
    """`(step, fraction)`: from that step on, the fraction of windows in which a stretch is said twice
    (`repeat_stretches`); before the first, none."""
    random_repeats: tuple[tuple[int, float], ...] = ()
    """Likewise, the fraction of windows that are nothing but random tokens said over and over (`random_repeats`)."""
    documents: tuple[tuple[int, float], ...] = ()
    """Likewise, the fraction of windows in which BOS takes the place of the first token (`begin_as_documents`)."""
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 200
    evaluate_every: int = 200
    evaluate_windows: int = 64
    """Validation windows used while training, spread over the split; the end uses all."""
    final_windows: int | None = None
    """Validation windows used at the end, spread likewise; None: all of them, which bits per byte need."""
    baseline_order: int | None = 5
    """The Kneser-Ney n-gram that the validation loss is set beside; None: no baseline."""
    export_dtype: Literal["float16", "bfloat16", "float32"] = "float16"

    def __post_init__(self) -> None:
        if self.model.vocab_size != self.text.vocab_size:
            raise UserError(
                f"model.vocab_size={self.model.vocab_size} and text.vocab_size={self.text.vocab_size} must be equal"
            )
        otherwise = {
            "evaluate_windows": "",
            "final_windows": ", or None for all",
            "baseline_order": ", or None for none",
        }
        for name, instead in otherwise.items():
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name}={value} must be at least 1{instead}")


MAY_DIFFER = (
    "steps",
    "log_every",
    "checkpoint_every",
    "evaluate_every",
    "evaluate_windows",
    "final_windows",
    "baseline_order",
    "export_dtype",
)
"""What may change between the calls that make up one run."""


def train_lm(config: LanguageModelConfig, run_dir: str | Path, *, quiet: bool = False) -> dict[str, Any]:
    """Run `config` in `run_dir`, from where it stopped if it did; returns and writes the final figures.

    A resume with another config is refused but for `MAY_DIFFER`. Mind that `steps` also places the learning rate's
    fall (`Optimization.decay`): to train on longer is the same run only if the fall had not begun.
    """
    with open_run(run_dir, config, may_differ=MAY_DIFFER) as run:
        text = prepare_text(config.text, run.directory / "tokens")
        optimizer = config.optimization.build(config.steps)
        state = init_state(init(config.model, jax.random.key(config.seed)), optimizer)
        sampler = WindowSampler(text.train.tokens, config.batch, config.model.n_ctx + 1, seed=config.seed)

        def batch_at(step: int) -> np.ndarray:
            fraction = _share(config.repeats, step)
            windows = repeat_stretches(sampler.batch_at(step), step, fraction=fraction, seed=config.seed)
            windows = begin_as_documents(
                windows,
                step,
                fraction=_share(config.documents, step),
                bos_id=text.train.bos_id,
                seed=config.seed,
            )
            return random_repeats(
                windows,
                step,
                fraction=_share(config.random_repeats, step),
                vocab_size=config.model.vocab_size,
                bos_id=text.train.bos_id,
                seed=config.seed,
            )

        few = some_windows(text.validation, config.model.n_ctx, config.evaluate_windows)

        def evaluate(state: TrainState) -> dict[str, float]:
            return summary(
                {
                    "loss": evaluate_text(state.model, few, bos_id=text.validation.bos_id)["loss"],
                    "induction": _induction(state.model, config),
                }
            )

        state = fit(
            train_step(optimizer),
            state,
            batch_at,
            steps=config.steps,
            run=SaveTo(run, every=config.checkpoint_every, keep=2),
            log=Log(
                every=config.log_every,
                evaluate=evaluate,
                evaluate_every=config.evaluate_every,
                per_step={"tokens": config.batch * config.model.n_ctx},
                shown=("loss", "eval.loss", "eval.induction.second_half"),
                title="train-lm",
                quiet=quiet,
            ),
        )
        exported = export(state.model, config, text, run.directory / "export")
        results = final_results(exported, config, text)
        atomic_write(run.directory / "results.json", json.dumps(results, indent=2) + "\n")
        return results


def _share(schedule: tuple[tuple[int, float], ...], step: int) -> float:
    """The fraction that `((from step, fraction), ...)` gives at a step."""
    return max((at, share) for at, share in ((-1, 0.0), *schedule) if at <= step)[1]


def export(model: Decoder, config: LanguageModelConfig, text: PreparedText, directory: Path) -> Decoder:
    """Write `model` and its tokenizer for `load`; returns what `load` gives back, which is what is evaluated.

    Matrices are rounded to `export_dtype` and norm weights are not, so that the file is small and still loads, and
    computes, in float32 unless another dtype is asked for.
    """
    narrow = jnp.dtype(config.export_dtype)
    rounded = jax.tree.map(lambda x, matrix: x.astype(narrow) if matrix else x, model, decays(model))
    header = {"eos_token_id": text.train.bos_id, "dtype": "float32"}
    save(rounded, directory, tokenizer=text.tokenizer, overwrite=True, header=header)
    return load(directory, dtype=jnp.float32)[0]


def final_results(model: Decoder, config: LanguageModelConfig, text: PreparedText) -> dict[str, Any]:
    """Validation loss, the baseline's on the same tokens, and the induction figures.

    Windows overlap by half and only their second half counts (but for the first), so every prediction has at least
    `n_ctx / 2` tokens of context or all there is. Documents' first tokens, BOS, are not predicted by either.
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
    """An interpolated modified Kneser-Ney model of the training split, on the validation split.

    With `places` only these tokens of it count, each after all of its document, and there are no bits per byte.
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
