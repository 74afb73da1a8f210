"""Pairs that begin with the same tokens: the beginning is computed once, and both ends go on from its cache.

The two texts of a question differ in their answer only. Computing the prompt once halves the work.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from jax_interp.models import Decoder
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.surgery import Model

WORTH = 0.2
"""The share of the tokens that must be saved: two programs are compiled instead of one."""


@dataclasses.dataclass(frozen=True, eq=False)
class SharedPrompts:
    """Pairs as prompts with two ends each.

    Args:
      prompts: the prompts, one example for each pair. They are not read.
      tokens: the tokens after the prompt, up to the last one that is read.
      mask: True at real tokens.
      weight: the weight of each token in the mean of each rule.
      rows: the numbers of the two examples of each pair.
    """

    prompts: LabelledTokens
    tokens: Int[np.ndarray, "pair 2 pos"]
    mask: Bool[np.ndarray, "pair 2 pos"]
    weight: Float[np.ndarray, "pair 2 rule pos"]
    rows: Int[np.ndarray, "pair 2"]


def shared_prompts(
    model: Model, data: LabelledTokens, weight: Float[np.ndarray, "example rule pos"]
) -> SharedPrompts | None:
    """The pairs as prompts with two ends; None where this is not possible, or not worth it.

    It is possible if the model is a `Decoder` without edits (it is causal and has a cache, and no edit depends on where
    a text ends), if each example is in one pair, and if the tokens that are read come after the first token.

    Args:
      model: the model.
      data: the examples.
      weight: the weight of each token in the mean of each rule.
    """
    if not isinstance(model, Decoder) or data.pairs is None or not len(data.pairs):
        return None
    if not np.array_equal(np.sort(data.pairs, axis=None), np.arange(len(data))):
        return None
    read = np.any(weight > 0, axis=1)
    real = [np.flatnonzero(row) for row in data.mask]
    texts = [(data.tokens[row, at], weight[row][:, at], read[row, at]) for row, at in enumerate(real)]
    starts = np.asarray([_shared(*(texts[row] for row in pair)) for pair in data.pairs.tolist()])
    ends = np.asarray([[np.flatnonzero(texts[row][2])[-1] + 1 for row in pair] for pair in data.pairs.tolist()])
    longest, most = int(starts.max()), int((ends - starts[:, None]).max())
    if starts.min() < 1 or starts.sum() < WORTH * data.mask.sum() or longest + most > model.config.n_ctx:
        return None
    n, rules = len(data.pairs), weight.shape[1]
    prompts, prompt_mask = np.zeros((n, longest), np.int32), np.zeros((n, longest), bool)
    tokens, mask = np.zeros((n, 2, most), np.int32), np.zeros((n, 2, most), bool)
    of_tokens = np.zeros((n, 2, rules, most), np.float32)
    for number, (pair, start) in enumerate(zip(data.pairs.tolist(), starts.tolist(), strict=True)):
        prompts[number, :start], prompt_mask[number, :start] = texts[pair[0]][0][:start], True
        for side, row in enumerate(pair):
            end = int(ends[number, side])
            ids, own, _ = texts[row]
            tokens[number, side, : end - start], mask[number, side, : end - start] = ids[start:end], True
            of_tokens[number, side, :, : end - start] = own[:, start:end]
    labels = np.zeros(n, np.int32)
    examples = LabelledTokens(data.name, prompts, prompt_mask, prompt_mask, labels, data.classes)
    return SharedPrompts(examples, tokens, mask, of_tokens, data.pairs)


def _shared(first: tuple[np.ndarray, np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray, np.ndarray]) -> int:
    """The number of tokens at the beginning of both texts that are equal, before the first token that is read."""
    shorter = min(len(first[0]), len(second[0]))
    differs = first[0][:shorter] != second[0][:shorter]
    equal = int(np.argmax(differs)) if differs.any() else shorter
    return min(equal, int(np.argmax(first[2])), int(np.argmax(second[2])))
