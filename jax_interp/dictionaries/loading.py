"""Load dictionaries, in the format of this package and in those of other programs.

    saved = load_dictionary("runs/sae/dictionary")                                          a folder or file
    saved = load_dictionary("gemma-scope-2b-pt-res", "layer_5/width_16k/average_l0_68")     a release, and an id in it
    saved = load_dictionary("hf:google/gemma-scope-2b-pt-res/layer_5/width_16k/average_l0_68")      a hub repository
    saved.dictionary, saved.address, saved.model, saved.notes, saved.stated

The format is detected: exactly one must recognise the files. A dictionary reads and writes raw activations of its
model; constant scales are folded into the weights. `saved.notes` say what else a user must know.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jax_interp.core.errors import UserError
from jax_interp.core.leaves import flatten, unflatten
from jax_interp.dictionaries.checking import check_weights, report_findings
from jax_interp.dictionaries.formats import Files
from jax_interp.dictionaries.formats.detection import detect, format_named, read_as
from jax_interp.dictionaries.formats.placing import automatic_axes, placing
from jax_interp.dictionaries.hub import REPOSITORY, Fetched, fetch, parse_hub_address
from jax_interp.dictionaries.releases import Release, find_release, nearest, releases
from jax_interp.dictionaries.sharding import rules
from jax_interp.dictionaries.storage import Saved
from jax_interp.training.sharding import shard


def load_dictionary(
    source: Path | str,
    id: str | None = None,
    *,
    format: str | None = None,
    dtype: DTypeLike | None = None,
    place: Mesh | None = None,
    revision: str | None = None,
    check: bool = True,
) -> Saved:
    """Load a dictionary that was saved here, or that another program published.

    Args:
      source: a folder or a file; the name of a release (releases.py); or "hf:owner/repository[/path][@revision]".
      id: the dictionary in the release.
      format: the name of the format, such as "saelens". None: it is detected.
      dtype: the dtype of the weights. None: float32 if the file of another program has 16 bits, as that program
        computes in float32; files of this package keep their dtype.
      place: a mesh. Each device reads its own part of the files. None: the default device.
      revision: a branch, tag or commit of the repository of a release. None: the newest.
      check: run the self-test (checking.py). It warns of what is suspicious, and refuses what cannot be right.

    Returns:
      The dictionary with its model, addresses, settings, notes and stated figures.

    Raises:
      UserError: there are no such files, release or id; they cannot be fetched; no format or several formats recognise
        them; a part is damaged, missing, not finite, unknown, or cannot be represented; the self-test fails.

    Example:
        saved = load_dictionary("runs/sae/dictionary")
        evaluate(model, saved.reads(), saved.dictionary, batches)
    """
    found = _located(source, id, format, revision)
    kind = detect(found.files) if found.format is None else format_named(found.format)
    files = dataclasses.replace(found.files, place=placing(place, widen=not kind.keeps_dtype))
    with contextlib.nullcontext() if place is None else jax.set_mesh(automatic_axes(place)):
        saved = read_as(kind, files)
        if check:
            report_findings(check_weights(saved), str(source) if id is None else f"{source} {id}")
        dictionary = _as_dtype(saved.dictionary, dtype)
    if place is not None:
        dictionary = shard(dictionary, rules(dictionary), place)
    return dataclasses.replace(
        saved,
        dictionary=dictionary,
        format=kind.name,
        model=saved.model or found.model,
        notes=(*saved.notes, *found.notes),
        stated={**saved.stated, **found.stated},
    )


@dataclasses.dataclass(frozen=True)
class _Located:
    """Files on this disk, and what a release says about them."""

    files: Files
    format: str | None
    model: str | None = None
    notes: tuple[str, ...] = ()
    stated: Mapping[str, float] = dataclasses.field(default_factory=dict)


def _located(source: Path | str, id: str | None, format: str | None, revision: str | None) -> _Located:
    """The files of a source. What is on the hub is fetched."""
    release = find_release(source) if isinstance(source, str) and not Path(source).exists() else None
    if release is not None:
        return _of_release(release, id, format, revision)
    if id is not None:
        raise UserError(f"{str(source)!r} is not a release, so id={id!r} says nothing{_near_release(source)}")
    if isinstance(source, str) and source.startswith("hf:"):
        repository, path, own = parse_hub_address(source)
        if own is not None and revision is not None:
            raise UserError(f"{source} names a revision already: leave out revision={revision!r}")
        kind = None if format is None else format_named(format)
        fetched = fetch(repository, path, kind=kind, revision=own or revision)
        return _Located(Files.at(fetched.path, fetched.location), format, notes=(_commit(fetched),))
    if revision is not None:
        raise UserError(f"revision={revision!r} is for dictionaries on the hub; {source} is a path")
    check_source(source)
    return _Located(Files.at(source), format)


def check_source(source: Path | str) -> None:
    """Raise UserError if `source` is no release, no address on the hub, and no path that exists. Nothing is fetched."""
    if isinstance(source, str) and (source.startswith("hf:") or find_release(source) is not None):
        return
    if not Path(source).expanduser().exists():
        raise UserError(f"there is no file or folder {str(source)!r}{_near_release(source)}")


def _of_release(release: Release, id: str | None, format: str | None, revision: str | None) -> _Located:
    if id is None and len(release.entries) > 1:
        some = ", ".join(list(release.entries)[:3])
        raise UserError(
            f"{release.name} has {len(release.entries)} dictionaries, such as {some}: give the id of one; "
            f"`jax-interp inspect {release.name}` lists them"
        )
    entry = release.entry(next(iter(release.entries)) if id is None else id)
    if release.whole is not None:
        raise UserError(
            f"{release.name} {id} is one layer of a cross-layer dictionary, whose decoder writes several layers: load "
            f"it whole, load_dictionary({release.whole!r})"
        )
    name = format or release.format
    fetched = fetch(release.repository, entry.path, kind=format_named(name), revision=revision)
    settings = dict(release.settings)
    if entry.norm_scaling_factor is not None:
        settings["norm_scaling_factor"] = entry.norm_scaling_factor
    files = dataclasses.replace(Files.at(fetched.path, fetched.location), settings=settings)
    return _Located(files, name, release.model, (_commit(fetched),), entry.stated)


def _commit(fetched: Fetched) -> str:
    return f"from {fetched.location} at {fetched.revision}"


def _near_release(source: Path | str) -> str:
    near = nearest(str(source), releases(), 3)
    if near:
        return f"; releases with a like name are {', '.join(near)}"
    if REPOSITORY.fullmatch(str(source)) and str(source)[0].isalnum():
        return f"; a repository of the hub is hf:{source}"
    return ""


def _as_dtype(dictionary: Any, dtype: DTypeLike | None) -> Any:
    """The dictionary with weights in another dtype. Raises UserError if a weight leaves the range of the dtype."""
    if dtype is None:
        return dictionary
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"dtype={dtype}: weights are floating-point numbers, such as float32 or bfloat16")
    leaves = flatten(dictionary)
    changed = {
        name: leaf.astype(dtype)
        for name, leaf in leaves.items()
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not name.endswith("log_threshold")  # see `Jump`
    }
    for name, leaf in changed.items():
        if bool(jnp.any(jnp.isinf(leaf) & ~jnp.isinf(leaves[name]))):
            raise UserError(f"{name} has numbers beyond the range of {jnp.dtype(dtype)}: choose another dtype")
    return unflatten(dictionary, leaves | changed)
