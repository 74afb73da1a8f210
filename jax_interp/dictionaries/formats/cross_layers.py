"""Dictionaries that span layers, stored as one file per layer.

A file in the folder selects one layer, the folder all layers. Decoders stay memory-mapped until they are placed, one
layer at a time, so loading needs little more memory than the dictionary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.formats.hook_names import HookValue
from jax_interp.dictionaries.forms.cross_layer import Source
from jax_interp.dictionaries.forms.dictionary import Dictionary

ONE_SOURCE = (
    "this is one source of a cross-layer dictionary, with the decoders to its own target and to later ones. The biases "
    "of the targets belong to the whole dictionary: its b_dec is zero here"
)


def numbered(files: Files, pattern: str) -> dict[int, str]:
    """The files whose names match a pattern with one group, the number of a layer: {0: "layer_0.safetensors", ...}.

    All files of the folder count, also if the user selected one of them.

    Raises:
      UserError: a number between the first and the last is missing.
    """
    names = sorted(path.name for path in files.directory.iterdir() if path.is_file())
    found = {int(match[1]): name for name in names if (match := re.fullmatch(pattern, name))}
    return dict(sorted(found.items()))


def consecutive(found: dict[int, str], files: Files) -> list[str]:
    """The names in order. Raises UserError if they do not count from 0 without a gap."""
    missing = sorted(set(range(max(found, default=0) + 1)) - set(found))
    if missing:
        raise UserError(f"{files.directory} has no file for layer {missing[0]}; it has {', '.join(found.values())}")
    return [found[i] for i in sorted(found)]


def selected_layer(found: dict[int, str], files: Files) -> int | None:
    """The layer of the file that the user selected. None: the user gave the folder."""
    return next((layer for layer, name in found.items() if name == files.selected), None)


def targets_of(decoders: Sequence[np.ndarray], where: str) -> list[np.ndarray]:
    """The decoders of each source to its own target and to later ones, [feature, n - source, d_out].

    Files store the axis of targets in two ways: by the number of the target, with zeros for targets before the source
    (absolute), or by target - source (relative). Shapes and zeros tell which.

    Args:
      decoders: for each source, [feature, target, d_out].
      where: the name of the folder, for messages.

    Raises:
      UserError: the axis fits neither way, or both.
    """
    n = len(decoders)
    written = [W.shape[1] for W in decoders]
    if written == [n - i for i in range(n)]:
        return list(decoders)
    if written != [n] * n:
        raise UserError(
            f"{where}: the decoders of {n} sources write {written} targets; they should write {n} each, or "
            f"{n}, {n - 1}, ..., 1"
        )
    absolute = all(not W[:, :i].any() for i, W in enumerate(decoders))
    relative = all(not W[:, n - i :].any() for i, W in enumerate(decoders))
    if absolute == relative:
        problem = "zero for all other targets, so it is not known" if absolute else "not zero for earlier targets"
        raise UserError(
            f"{where}: each decoder has {n} targets, and they are {problem}"
            + (" which targets they write" if absolute else ": a cross-layer dictionary writes only later targets")
        )
    return [W[:, i:] if absolute else W[:, : n - i] for i, W in enumerate(decoders)]


def alone(source: Source) -> Dictionary:
    """One source as a dictionary that writes its targets side by side, with its skip and without biases."""
    one = source.dictionary
    if source.W_skip is None:
        return one
    others = jnp.zeros((source.W_skip.shape[0], one.W_dec.shape[1] - source.W_skip.shape[1]), source.W_skip.dtype)
    return Dictionary(
        one.W_enc,
        one.b_enc,
        one.W_dec,
        one.b_dec,
        one.activation,
        jnp.concatenate([source.W_skip, others], axis=1),
        centred=False,
        write_sites=one.write_sites,
    )


def addresses(values: Sequence[HookValue]) -> tuple[str | tuple[str, ...] | None, str | tuple[str, ...] | None, tuple]:
    """(address, normalized, notes) of `Saved` for the values that a dictionary reads, or writes.

    One value gives a string, several give a tuple. If one of them has no address, none is given.
    """
    notes = tuple(dict.fromkeys(value.note for value in values if value.note is not None))
    named, normalized = [v.address for v in values], [v.normalized for v in values]
    together = lambda found: None if None in found else found[0] if len(found) == 1 else tuple(found)
    return together(named), together(normalized), notes
