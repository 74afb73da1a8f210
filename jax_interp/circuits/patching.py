"""Activation patching of a pair of prompts, every layer x position in one compiled sweep.

The corrupted prompt is run with one value at one layer and position taken from the run on the clean prompt: where that
brings the clean answer back, the model carries what tells the prompts apart (Meng et al. 2022; Heimersheim & Nanda
2024 call this direction denoising).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.surgery import Each, Replace, at, edit, read


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two prompts of equally many tokens that should be continued by different tokens."""

    name: str
    clean: str
    corrupted: str
    clean_answer: str
    corrupted_answer: str


NAMES = {
    "resid_pre": "residual stream before the block",
    "attn_out": "what attention adds",
    "mlp_out": "what the MLP adds",
}


def difference(logits: Float[Array, "1 pos vocab"], answers: Int[Array, "2"]) -> Float[Array, ""]:
    """Logit of the clean answer minus logit of the corrupted one, after the last token."""
    return logits[0, -1, answers[0]] - logits[0, -1, answers[1]]


@partial(jax.jit, static_argnames="name")
def sweep(
    model: Any, donor: Float[Array, "layer 1 pos d"], tokens: Int[Array, "1 pos"], answers: Int[Array, "2"], name: str
) -> Float[Array, "layer pos"]:
    """The logit difference with the donor's `name` in place at each layer and position: layer and position are data,
    so the whole sweep is one program, a `vmap` of a `vmap`."""

    def patched(layer, pos):
        return difference(
            edit(model, at(f"blocks.{name}", Each(Replace(donor)), layer=layer, pos=pos))(tokens), answers
        )

    over_positions = jax.vmap(patched, in_axes=(None, 0))
    return jax.vmap(over_positions, in_axes=(0, None))(jnp.arange(donor.shape[0]), jnp.arange(tokens.shape[1]))


def patch(model: Any, tokenizer: Any, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Sweep the first of `pairs` that the model gets right: the answers are its likeliest tokens. Where it gets none
    right, the one whose answers it tells apart by most. "preferred" says whether each prompt prefers its own answer."""
    best: dict[str, Any] | None = None
    for pair in pairs:
        here = judged(model, pair, tokenizer)
        if best is None or here["right"] or here["margin"] > best["margin"]:
            best = here
        if here["right"]:
            break
    assert best is not None
    (clean, corrupted), answers, (high, low) = best["tokens"], best["answers"], best["scores"]
    donors = jax.jit(lambda m, t: read(m, *(f"blocks.*.{name}" for name in NAMES), output=False)(t))(model, clean)
    span = (high - low) or 1.0
    panels = {
        name: (np.asarray(sweep(model, donors[f"blocks.*.{name}"], corrupted, answers, name), np.float64) - low) / span
        for name in NAMES
    }
    strings = [tokenizer.strings(np.asarray(tokens)[0]) for tokens in (clean, corrupted)]
    return {
        "name": best["pair"].name,
        "clean": best["pair"].clean,
        "corrupted": best["pair"].corrupted,
        "answers": tokenizer.strings(np.asarray(answers)),
        "right": best["right"],
        "preferred": best["margin"] > 0,
        "clean_difference": high,
        "corrupted_difference": low,
        "clean_tokens": strings[0],
        "corrupted_tokens": strings[1],
        "says": NAMES,
        "panels": {name: panel.tolist() for name, panel in panels.items()},
    }


def judged(model: Any, pair: Pair, tokenizer: Any) -> dict[str, Any]:
    """How well a model tells the prompts of a pair apart; `margin` is the lesser of the two preferences, in logits."""
    clean, corrupted, answers = encoded(pair, tokenizer)
    logits = [_call(model, tokens) for tokens in (clean, corrupted)]
    scores = [float(difference(each, answers)) for each in logits]
    right = [int(jnp.argmax(each[0, -1])) for each in logits] == answers.tolist()
    return {"pair": pair, "tokens": (clean, corrupted), "answers": answers, "scores": scores, "right": right,
            "margin": min(scores[0], -scores[1])}  # fmt: skip


_call = jax.jit(lambda model, tokens: model(tokens))


def encoded(pair: Pair, tokenizer: Any) -> tuple[Array, Array, Array]:
    """`(clean [1, pos], corrupted [1, pos], answers [2])`. UserError where the lengths differ or an answer is no single
    token."""
    bos = tokenizer.bos_id is not None
    clean, corrupted = (tokenizer.encode(text, bos=bos) for text in (pair.clean, pair.corrupted))
    if len(clean) != len(corrupted):
        raise UserError(
            f"the prompts of pair {pair.name!r} have {len(clean)} and {len(corrupted)} tokens; patching position by "
            f"position needs equally many: {tokenizer.strings(clean)} and {tokenizer.strings(corrupted)}"
        )
    answers = [tokenizer.id_of(text) for text in (pair.clean_answer, pair.corrupted_answer)]
    return jnp.asarray([clean], jnp.int32), jnp.asarray([corrupted], jnp.int32), jnp.asarray(answers, jnp.int32)
