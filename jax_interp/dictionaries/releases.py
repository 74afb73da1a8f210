"""Published releases of dictionaries: where each one is on the hub, and what its release states.

    releases()["gemma-scope-2b-pt-res"].repository
    find_release("gemma-scope-2b-pt-res").entry("layer_5/width_16k/average_l0_68").path

The list is a file of the package, which `benchmarks/make_releases.py` writes. Nothing is fetched to read it.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import gzip
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import parse_json

FILE = "dictionary-releases.json.gz"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One dictionary of a release."""

    path: str
    """Its folder or file in the repository. "": the whole repository."""
    stated: Mapping[str, float]
    """Figures that the release states: "l0", "variance_explained"."""
    norm_scaling_factor: float | None
    """The constant that SAELens multiplies inputs by, where a file leaves it open."""


@dataclasses.dataclass(frozen=True)
class Release:
    """Dictionaries that were published together."""

    name: str
    repository: str
    """The repository on the hub."""
    format: str
    """The name of the format of its files."""
    model: str
    """The model that they are for, as the release calls it."""
    entries: Mapping[str, Entry]
    """The dictionaries by id."""
    settings: Mapping[str, Any]
    """Settings that replace those of the config files."""
    whole: str | None = None
    """The release of the whole dictionary, if the entries are layers of a cross-layer dictionary: none of them is a
    dictionary by itself."""

    def entry(self, id: str) -> Entry:
        """The dictionary with this id. Raises UserError with the nearest ids if there is none."""
        if id in self.entries:
            return self.entries[id]
        some = nearest(id, self.entries, 3) or list(self.entries)[:3]
        raise UserError(
            f"the release {self.name} has no id {id!r}. It has {len(self.entries)}, such as {', '.join(some)}; "
            f"`jax-interp inspect {self.name}` lists them"
        )


@functools.cache
def releases() -> Mapping[str, Release]:
    """All releases by name."""
    packed = files("jax_interp").joinpath("assets", FILE).read_bytes()
    return {name: _release(name, values) for name, values in parse_json(gzip.decompress(packed), FILE).items()}


def find_release(name: str) -> Release | None:
    """The release with this name, or None."""
    return releases().get(name)


def nearest(name: str, among: Any, n: int = 1) -> list[str]:
    """The names that are most like `name`, the nearest first. Those that contain it count as like it."""
    near = difflib.get_close_matches(name.lower(), {one.lower(): one for one in among}, n=n, cutoff=0.6)
    as_written = {one.lower(): one for one in among}
    inside = [one for one in among if name and name.lower() in one.lower()]
    return list(dict.fromkeys([*(as_written[one] for one in near), *inside]))[:n]


def _release(name: str, values: Mapping[str, Any]) -> Release:
    entries = {}
    for id, about in values["dictionaries"].items():
        stated = {figure: about[figure] for figure in ("l0", "variance_explained") if figure in about}
        entries[id] = Entry(about["path"], stated, about.get("scale"))
    return Release(
        name=name,
        repository=values["repository"],
        format=values["format"],
        model=values["model"],
        entries=entries,
        settings=values.get("settings", {}),
        whole=values.get("whole"),
    )
