"""The page of a dictionary's features, and the data that it shows, in a run directory.

    features.html                                      the page: open it in a browser
    features/features.json, features.safetensors       its data: `FeatureData.read(directory / "features")`

`train-dictionary`, `evaluate` and `dashboard` write it by `write_page`. The number of features and of tokens is bounded
by a `FeaturePageConfig`, and what was chosen is on the page.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from jax_interp.analysis.readout import unembedding
from jax_interp.core.errors import UserError
from jax_interp.core.terminal import print_text
from jax_interp.dashboards.collect_features import collect_features, collect_units
from jax_interp.dashboards.collector import Reading, ScoreFunction
from jax_interp.dashboards.feature_data import FeatureData
from jax_interp.dashboards.feature_page import prompt_features, write_feature_page
from jax_interp.dashboards.form_latents import count, latent_names, scores_of, with_directions
from jax_interp.dashboards.options import Names, PageOptions
from jax_interp.data.harvest import Addresses, TokenBatch
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.dictionaries.forms import Dictionary, Temporal
from jax_interp.dictionaries.forms.cross_layer import CrossLayer
from jax_interp.dictionaries.storage import AnyDictionary
from jax_interp.models.decoder import Decoder
from jax_interp.views.feature_page import Prompt

PAGE, DATA, PASS = "features.html", "features", "pass"
IN_THE_STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
"""The last parts of addresses of values that are in the residual stream, or are added to it."""
PASSAGE = 64
"""The tokens of a held-out text that stands in the view of prompts."""


@dataclasses.dataclass(frozen=True)
class FeaturePageConfig:
    """How much is collected for the page of a dictionary's features."""

    features: int = 256
    """The number of features on the page, if there are more: up to half of them are the strongest ones of the texts in
    the view of prompts, the others are evenly spaced over all. 0: no page."""
    tokens: int = 16_384
    """The number of held-out tokens that are read, rounded up to full batches."""
    examples: int = 10
    """The number of examples with the largest activations."""
    loss_examples: int = 0
    """The number of examples on which each feature is ablated, to measure the effect on the loss. Each costs two runs
    of the model."""
    token_examples: int = 0
    """The number of examples whose tokens are ablated, to measure the effect on the feature. Each costs 18 runs."""
    passages: int = 2
    """The number of held-out texts in the view of prompts."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 1 if field.name in ("tokens", "examples") else 0
            if value < least:
                raise UserError(f"{field.name}={value} must be at least {least}")
        if max(self.loss_examples, self.token_examples) > self.examples:
            raise UserError(f"examples={self.examples}: effects are measured on at most this number of examples")

    def sequences(self, context: int) -> int:
        """The number of held-out sequences of `context` tokens to read."""
        return -(-self.tokens // context)


@dataclasses.dataclass(frozen=True)
class Shown:
    """What a page shows: a dictionary, with its model and its text.

    Args:
      model: the model.
      tokenizer: its tokenizer.
      dictionary: the dictionary.
      reads: the address that it reads, or several.
      writes: the address that it writes, or several. None: the same.
      model_name: the name of the model, for the reader.
      text_name: the name of the text.
      notes: what is to be known about the dictionary.
    """

    model: Decoder
    tokenizer: Tokenizer
    dictionary: AnyDictionary
    reads: Addresses
    writes: Addresses | None
    model_name: str
    text_name: str
    notes: Sequence[str] = ()


def write_page(
    directory: Path,
    shown: Shown,
    batches: Sequence[TokenBatch],
    config: FeaturePageConfig,
    *,
    features: Sequence[int] = (),
    prompts: Sequence[str] = (),
    quiet: bool = False,
) -> FeatureData | None:
    """Collect what some features fire on, and write the page and its data.

    The pass over the text can be interrupted: the same call goes on where it stopped.

    Args:
      directory: where `features.html` and `features/` are written.
      shown: the dictionary.
      batches: pairs `(tokens, keep)` of held-out text. The first `config.tokens` tokens are read.
      config: how much is collected.
      features: the indices of the features to show. Empty: `config.features` of them, as it says.
      prompts: texts for the view of prompts, besides `config.passages` held-out ones.
      quiet: print nothing.

    Returns:
      The data; None if `config.features` is 0 and no features are given.

    Raises:
      UserError: there is no such feature, a prompt is empty, or an effect cannot be measured with this dictionary.
    """
    if not features and not config.features:
        return None
    batch, context = np.shape(batches[0][0])
    read = batches[: -(-config.sequences(context) // batch)]
    total, scores = count(shown.dictionary), scores_of(shown.dictionary, shown.reads)
    texts = [_encoded(text, shown.tokenizer) for text in prompts] + passages(read, config.passages)
    active = prompt_features(scores, shown.model, texts)
    units = tuple(features) or choose(total, config.features, active)
    some = f"all {total:,}" if len(units) == total else f"{len(units):,} of {total:,}"
    if not quiet:
        print_text(f"collecting {some} features on {sum(np.size(t) for t, _ in read):,} tokens of held-out text ...")
    data = _collected(shown, scores, read, units, config, Reading(save_to=directory / DATA / PASS, quiet=quiet))
    data = data.with_strings(_strings(data.token_ids(), shown.tokenizer))
    data.write(directory / DATA)
    write_feature_page(
        directory / PAGE,
        data,
        prompts=active,
        strings=shown.tokenizer.strings,
        names=latent_names(shown.dictionary, shown.reads) if isinstance(shown.dictionary, CrossLayer) else {},
        facts={"features": some} | {f"note {i}": note for i, note in enumerate(shown.notes, 1)},
    )
    shutil.rmtree(directory / DATA / PASS, ignore_errors=True)  # the state of the pass, which is finished
    return data


def choose(total: int, count: int, prompts: Sequence[Prompt]) -> tuple[int, ...]:
    """Choose features for a page: up to half of them are the strongest in some prompts, the others are evenly spaced.

    Args:
      total: the number of all features.
      count: the number to choose.
      prompts: the features that are active in the prompts.

    Returns:
      Different indices, ascending. All of them if there are not more than `count`.
    """
    if count >= total:
        return tuple(range(total))
    strongest = np.zeros(total)
    for prompt in prompts:
        for units, scores in zip(prompt.features, prompt.scores):
            np.maximum.at(strongest, units, np.abs(scores))
    first = np.argsort(-strongest, kind="stable")[: count // 2]
    first = first[strongest[first] > 0]
    others = np.setdiff1d(np.arange(total), first)
    spaced = others[np.arange(count - len(first)) * len(others) // (count - len(first))]
    return tuple(int(i) for i in np.sort(np.concatenate([first, spaced])))


def passages(batches: Sequence[TokenBatch], count: int) -> list[Int[np.ndarray, " pos"]]:
    """The beginnings of some sequences, without padding. Sequences without a kept token are left out."""
    rows = ((np.asarray(row), np.asarray(kept)) for tokens, keep in batches for row, kept in zip(tokens, keep))
    found: list[Int[np.ndarray, " pos"]] = []
    for row, kept in rows:
        if len(found) == count:
            break
        if kept.any():
            found.append(row[: min(PASSAGE, int(np.flatnonzero(kept)[-1]) + 1)])
    return found


def _collected(
    shown: Shown,
    scores: ScoreFunction,
    batches: Sequence[TokenBatch],
    units: tuple[int, ...],
    config: FeaturePageConfig,
    reading: Reading,
) -> FeatureData:
    reads = shown.reads if isinstance(shown.reads, str) else tuple(shown.reads)
    address = reads if isinstance(reads, str) else " ".join(reads)
    names = Names("feature", f"{address} of {shown.model_name}", shown.model_name, shown.text_name)
    written = reads if shown.writes is None else shown.writes
    if config.loss_examples and not isinstance(written, str):
        raise UserError(f"loss_examples: the dictionary writes {', '.join(written)}; a feature is ablated at one value")
    options = PageOptions(
        units=None if units == tuple(range(count(shown.dictionary))) else units,
        top=config.examples,
        loss_examples=config.loss_examples,
        token_examples=config.token_examples,
        writes=written if isinstance(written, str) and written != reads else None,
    )
    if config.loss_examples and not isinstance(shown.dictionary, Dictionary):
        raise UserError(f"loss_examples: features of a {type(shown.dictionary).__name__} are not ablated: set it to 0")
    if isinstance(shown.dictionary, (CrossLayer, Temporal)):
        return collect_units(scores, shown.model, batches, options, address=address, names=names, reading=reading)
    in_the_stream = isinstance(written, str) and written.rpartition(".")[2] in IN_THE_STREAM
    unembed = unembedding(shown.model) if in_the_stream else None
    encoder, how = with_directions(shown.dictionary), {"unembed": unembed, "names": names, "reading": reading}
    return collect_features(shown.model, reads, encoder, batches, options, **how)


def _strings(ids: Int[np.ndarray, " token"], tokenizer: Tokenizer) -> dict[int, str]:
    listed = [int(i) for i in ids]
    return dict(zip(listed, tokenizer.strings(listed)))


def _encoded(text: str, tokenizer: Tokenizer) -> Int[np.ndarray, " pos"]:
    ids = tokenizer.encode(text, bos=tokenizer.bos_id is not None)
    if not text or not ids:
        raise UserError("a prompt is empty: give some text")
    return np.asarray(ids, np.int32)
