"""What a run of `decompose` is: its config, the model that it takes apart, and the data for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jax_interp.core.errors import UserError
from jax_interp.decomposition.apd import APDConfig
from jax_interp.decomposition.config import DecompositionConfig
from jax_interp.models.hf import load
from jax_interp.recipes.run_inputs import fingerprint
from jax_interp.toys import find_toy, target_forms


@dataclass(frozen=True)
class DecompositionRunConfig:
    """A run of `decompose`."""

    decomposition: DecompositionConfig | APDConfig = field(default_factory=DecompositionConfig)
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
    threshold: float = 0.0
    """Above which a component counts as important on a row, in every figure. 0 for a sigmoid that gets there."""
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
        if not 0 <= self.threshold < 1:
            raise UserError(f"threshold={self.threshold}: importances are from 0 to 1, so from 0 to below 1")
        if isinstance(self.decomposition, APDConfig) and self.threshold:
            raise UserError(f"threshold={self.threshold} is for importances: APD keeps the top k of attributions")
        if isinstance(self.decomposition, APDConfig) and ":" not in self.target:
            raise UserError(
                f"target={self.target!r}: APD takes toys apart ({target_forms()}); its attributions cost "
                "a backward pass for each output, and of a language model those are its vocabulary"
            )


@dataclass(frozen=True)
class HeldOut:
    """What the strongest components are looked for in: batches of inputs and of which rows count; of a language model
    `strings` writes its tokens."""

    batches: Sequence[tuple[Any, Any]]
    strings: Callable[[Any], list[str]] | None = None


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
    kind, colon, preset = config.target.partition(":")
    if not colon:
        return _of_text(config)
    try:
        toy = find_toy(kind)
    except UserError as error:
        raise UserError(f"target {config.target!r}: {target_forms()}, or what `load` takes ({error})") from None
    loaded = toy.target(preset, config.target_seed)
    model = toy.collapse(loaded) if config.collapsed else loaded
    draw, batch = partial(toy.sample, model), config.decomposition.batch

    def for_page(sequences: int) -> HeldOut:
        x = draw(jax.random.key(98), 100 * sequences)
        return HeldOut([(x, jnp.ones(x.shape[:-1], bool))])

    held_out = lambda rows: (draw(jax.random.key(99), rows), None)
    return Inputs(model, held_out, for_page, fingerprint(loaded), sample=lambda key: draw(key, batch))


def _of_text(config: DecompositionRunConfig) -> Inputs:
    from jax_interp.data.text import text_for

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
