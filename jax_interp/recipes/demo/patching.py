"""The demo's patching: choose a pair of prompts that the model tells apart, and patch it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jax_interp.circuits import LogitDifference, make_contrast
from jax_interp.circuits import patch as patch_cells
from jax_interp.core.config_json import reads_older_files
from jax_interp.core.errors import UserError
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.surgery import Model, call

PATCHED = {
    "resid_pre": "residual stream before the block",
    "attn_out": "what attention adds",
    "mlp_out": "what the MLP adds",
}
"""The values that are patched, and their titles in the report."""


@reads_older_files(called=("Pair",))
@dataclasses.dataclass(frozen=True)
class PromptPair:
    """Two prompts of the same length in tokens, with different right next tokens."""

    name: str
    clean: str
    corrupted: str
    clean_answer: str
    corrupted_answer: str


@dataclasses.dataclass(frozen=True)
class _Judged:
    """A pair as tokens, and how well the model distinguishes its prompts.

    Args:
      differences: logit of the clean answer minus logit of the corrupted one, after each prompt.
      right: whether the answers are the model's likeliest tokens.
    """

    pair: PromptPair
    clean: Int[Array, "1 pos"]
    corrupted: Int[Array, "1 pos"]
    answers: Int[Array, "2"]
    differences: tuple[float, float]
    right: bool

    @property
    def margin(self) -> float:
        """The smaller of the two preferences, in logits. It is positive if each prompt prefers its own answer."""
        return min(self.differences[0], -self.differences[1])


def patch(model: Model, tokenizer: Tokenizer, pairs: Sequence[PromptPair]) -> dict[str, Any]:
    """Patch the first pair that the model gets right, or else the one with the largest margin.

    Args:
      model: the language model.
      tokenizer: its tokenizer.
      pairs: at least one pair.

    Returns:
      Plain values for the report. For each patched value, `panels` has the part of the logit difference that the patch
      restores, [layer][pos]: 0 is the corrupted run, 1 the clean run. `preferred` says whether each prompt prefers its
      own answer.
    """
    chosen = _choose(model, tokenizer, pairs)
    high, low = chosen.differences
    contrast = make_contrast(chosen.clean, chosen.corrupted, LogitDifference(*chosen.answers))
    grids = {name: patch_cells(model, contrast, name).normalised().values for name in PATCHED}
    clean_tokens, corrupted_tokens = (
        tokenizer.strings(np.asarray(tokens)[0]) for tokens in (chosen.clean, chosen.corrupted)
    )
    return {
        "name": chosen.pair.name,
        "clean": chosen.pair.clean,
        "corrupted": chosen.pair.corrupted,
        "answers": tokenizer.strings(np.asarray(chosen.answers)),
        "right": chosen.right,
        "preferred": chosen.margin > 0,
        "clean_difference": high,
        "corrupted_difference": low,
        "clean_tokens": clean_tokens,
        "corrupted_tokens": corrupted_tokens,
        "titles": PATCHED,
        "panels": {name: np.nan_to_num(grid).tolist() for name, grid in grids.items()},
    }


def _choose(model: Model, tokenizer: Tokenizer, pairs: Sequence[PromptPair]) -> _Judged:
    """The first pair whose answers are the model's likeliest tokens, or else the one with the largest margin."""
    judged = []
    for pair in pairs:
        judged.append(_judge(model, tokenizer, pair))
        if judged[-1].right:
            return judged[-1]
    return max(judged, key=lambda one: one.margin)


def _judge(model: Model, tokenizer: Tokenizer, pair: PromptPair) -> _Judged:
    clean, corrupted, answers = encode_pair(pair, tokenizer)
    logits = [call(model, tokens) for tokens in (clean, corrupted)]
    metric = LogitDifference(*answers)
    high, low = (float(metric(each).mean()) for each in logits)
    right = [int(jnp.argmax(each[0, -1])) for each in logits] == answers.tolist()
    return _Judged(pair, clean, corrupted, answers, (high, low), right)


def encode_pair(
    pair: PromptPair, tokenizer: Tokenizer
) -> tuple[Int[Array, "1 pos"], Int[Array, "1 pos"], Int[Array, "2"]]:
    """The tokens of a pair: clean prompt, corrupted prompt, both answers.

    Raises:
      UserError: the prompts differ in length, or an answer is not a single token.
    """
    bos = tokenizer.bos_id is not None
    clean, corrupted = (tokenizer.encode(text, bos=bos) for text in (pair.clean, pair.corrupted))
    if len(clean) != len(corrupted):
        raise UserError(
            f"the prompts of pair {pair.name!r} have {len(clean)} and {len(corrupted)} tokens; patching position by "
            f"position needs equally many: {tokenizer.strings(clean)} and {tokenizer.strings(corrupted)}"
        )
    answers = [tokenizer.id_of(text) for text in (pair.clean_answer, pair.corrupted_answer)]
    return jnp.asarray([clean], jnp.int32), jnp.asarray([corrupted], jnp.int32), jnp.asarray(answers, jnp.int32)
