"""The recipe of `inspect`: what a dictionary is, and what a few batches of its model show."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.data.text import text_for
from jax_interp.dictionaries.activations import Activation
from jax_interp.dictionaries.activations.jumprelu import Jump
from jax_interp.dictionaries.checking import Check, below_zero, check_dictionary, check_weights, widths_of
from jax_interp.dictionaries.formats.detection import format_named
from jax_interp.dictionaries.formats.folding import exact_row_norms
from jax_interp.dictionaries.forms import Normalised, Temporal
from jax_interp.dictionaries.forms.cross_layer import CrossLayer
from jax_interp.dictionaries.loading import load_dictionary
from jax_interp.dictionaries.releases import Release, releases
from jax_interp.dictionaries.storage import AnyDictionary, Saved
from jax_interp.models.hf import load
from jax_interp.recipes.evaluate_dictionary import dictionary_source

Source = Path | str


@dataclasses.dataclass(frozen=True)
class Text:
    """What `measured` reads: the text, and how much of it."""

    source: str = "stdlib"
    """"stdlib", a UTF-8 file, a .jsonl or .parquet file, or a directory. Its held-out part is used."""
    sequences: int = 8
    """Sequences."""
    context: int = 256
    """Tokens in each."""


def described(saved: Saved) -> dict[str, Any]:
    """What a dictionary is, as JSON values by name.

    Args:
      saved: what `load_dictionary` returned.
    """
    dictionary = saved.dictionary
    about: dict[str, Any] = {
        "format": f"{saved.format} ({format_named(saved.format).title})",
        "form": type(dictionary).__name__,
        "model": saved.model,
        "reads": saved.address if saved.normalized is None else f"{saved.normalized}, times the norm's weight",
        "writes": saved.writes or saved.address,
    }
    leaves = jax.tree.leaves(dictionary)
    return (
        about
        | _of_form(dictionary)
        | {
            "weights": f"{sum(leaf.size for leaf in leaves):,} numbers, {dictionary.b_dec.dtype}, "
            f"{sum(leaf.nbytes for leaf in leaves) / 2**20:,.1f} MiB",
            "stated": dict(saved.stated),
            "notes": list(saved.notes),
            "findings": [f"{found.name}: {found.message}" for found in check_weights(saved)],
        }
    )


def _of_form(dictionary: AnyDictionary) -> dict[str, Any]:
    """Sizes and settings of a dictionary, by its form."""
    if isinstance(dictionary, CrossLayer):
        return {
            "sources": len(dictionary.sources),
            "features of each": dictionary.n_features,
            "width read": dictionary.sources[0].W_enc.shape[0],
            "width written": dictionary.b_dec.shape[1],
            "targets of each": [source.W_dec.shape[1] for source in dictionary.sources],
            "activation": activation_text(dictionary.sources[0].activation),
            "decoder norms": quantiles(
                np.concatenate([exact_row_norms(s.dictionary.W_dec) for s in dictionary.sources])
            ),
        }
    if isinstance(dictionary, Normalised):
        undone = "and its output is scaled back" if dictionary.undo else "and its output is raw"
        return {"input of each token": f"{dictionary.norm}, {undone}"} | _of_form(dictionary.dictionary)
    read, written = widths_of(dictionary)
    sizes = {
        "features": dictionary.n_features,
        "width read": read,
        "width written": written,
        "b_dec subtracted from the input": dictionary.centred,
        "decoder norms": quantiles(np.asarray(exact_row_norms(dictionary.W_dec))),
    }
    if isinstance(dictionary, Temporal):
        return sizes | {"attention layers": len(dictionary.layers), "k": dictionary.k, "input scale": dictionary.scale}
    return sizes | {
        "activation": activation_text(dictionary.activation),
        "skip": dictionary.W_skip is not None,
        "encoder norms": quantiles(np.asarray(exact_row_norms(dictionary.W_enc.T))),
    }


def activation_text(activation: Activation) -> str:
    """The name of an activation with its settings, and quantiles of its thresholds."""
    fields = {field.name: getattr(activation, field.name) for field in dataclasses.fields(activation)}
    plain = {name: value for name, value in fields.items() if isinstance(value, bool | int | float | str)}
    if isinstance(activation, Jump):
        thresholds = np.where(below_zero(activation), 0.0, np.exp(np.asarray(activation.log_threshold, np.float64)))
        return f"JumpReLU, thresholds {quantiles(thresholds)}"
    settings = ", ".join(f"{name}={value}" for name, value in plain.items())
    return f"{type(activation).__name__}({settings})"


def quantiles(values: np.ndarray) -> str:
    """The smallest, median and largest number."""
    low, middle, high = np.quantile(np.asarray(values, np.float64), [0, 0.5, 1])
    return f"{low:.4g} to {high:.4g}, median {middle:.4g}"


def inspected(
    source: Source, id: str | None = None, *, format: str | None = None, revision: str | None = None
) -> Saved:
    """Load a dictionary to look at it. What its self-test finds is in `described`, and refuses nothing.

    Args:
      source: what `load_dictionary` takes, or a run directory.
      id: the dictionary in a release.
      format: the name of the format; None: it is detected.
      revision: a branch, tag or commit of the hub.
    """
    return load_dictionary(dictionary_source(source), id, format=format, revision=revision, check=False)


def measured(saved: Saved, model: str | None, address: Sequence[str] = (), text: Text = Text()) -> Check:
    """L0 and FVU on a few sequences of held-out text.

    Args:
      saved: the dictionary.
      model: the argument of `load`; None: the model that the files name.
      address: the address that it reads, or several; none: the one that the files name.
      text: the text, and how much of it.

    Raises:
      UserError: model or address are not known or do not fit, or there is too little text.
    """
    if address:
        saved = dataclasses.replace(saved, address=tuple(address) if len(address) > 1 else address[0], normalized=None)
    if saved.normalized is None:
        saved.reads()  # refused before the model is loaded
    name = model or saved.model_name()
    found, tokenizer = load(name)
    if tokenizer is None:
        raise UserError(f"{name} has no tokenizer.json: its text cannot be cut into tokens")
    batch = min(8, text.sequences)
    batches = text_for(text.source, tokenizer).validation_batches(batch, text.context, text.sequences)
    return check_dictionary(saved, found, batches)


def listed(release: Release, pattern: str | None = None) -> Mapping[str, Mapping[str, float]]:
    """The ids of a release with their stated figures, numbers in their order.

    Args:
      release: the release.
      pattern: only ids that match it, such as "layer_5/*"; None: all.

    Raises:
      UserError: no id matches.
    """
    by_number = lambda id: [(part.isdigit(), int(part) if part.isdigit() else part) for part in re.split(r"(\d+)", id)]
    ids = [id for id in release.entries if pattern is None or fnmatch.fnmatchcase(id, pattern)]
    found = {id: release.entries[id].stated for id in sorted(ids, key=by_number)}
    if not found:
        raise UserError(f"no id of {release.name} matches {pattern!r}; the first is {next(iter(release.entries))!r}")
    return found


def all_releases() -> list[tuple[str, str, str, int]]:
    """(name, model, format, number of dictionaries) of every release."""
    return [(name, found.model, found.format, len(found.entries)) for name, found in sorted(releases().items())]
