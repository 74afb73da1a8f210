"""`FeatureData` on disk: arrays in `features.safetensors`, everything else in `features.json`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.core.tensor_files import read_described, write_described
from jax_interp.dashboards.feature_data import Examples, FeatureData, Histogram, Neighbours, TokenEffects
from jax_interp.dashboards.windows import Windows

STEM = "features"
FORMAT = 1
_TEXTS = ("name", "title", "model", "address", "text")
_PLAIN = ("units", "firings", "max_activation", "min_activation", "mean_activation_when_on")
_PARTS = {
    "activation_histogram": Histogram, "promoted": TokenEffects, "suppressed": TokenEffects,
    "logit_histogram": Histogram, "neighbours": Neighbours, "co_firing": Neighbours,
}  # fmt: skip


def write_feature_data(data: FeatureData, directory: Path | str) -> Path:
    """Write the data as a pair of files. Returns the directory. Raises UserError if it cannot be written."""
    description: dict[str, Any] = {"format": FORMAT, "kind": "feature data", "tokens_seen": data.tokens_seen}
    description |= {name: getattr(data, name) for name in _TEXTS}
    description["measures"] = {
        name: part.measure for name in ("neighbours", "co_firing") if (part := getattr(data, name)) is not None
    }
    description["examples"] = [{"label": group.label, "before": group.windows.before} for group in data.examples]
    description["strings"] = [[int(token), text] for token, text in sorted(data.strings.items())]
    return write_described(directory, STEM, dict(data.arrays()), description)


def read_feature_data(directory: Path | str) -> FeatureData:
    """Read what `write_feature_data` wrote. Raises UserError if a file is missing, changed or of another kind."""
    found, arrays = read_described(directory, STEM, formats=(FORMAT,), what="feature data")
    where = f"{Path(directory) / STEM}.json"
    try:
        if found.pop("kind") != "feature data":
            raise ValueError("it is of another kind")
        data = _data(found, arrays)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where} does not describe feature data: {type(error).__name__}: {error}") from error
    if arrays:
        raise UserError(f"{where}: the tensors {sorted(arrays)} are not known")
    return data


def _data(found: dict[str, Any], arrays: dict[str, np.ndarray]) -> FeatureData:
    """Take everything out of `arrays`."""
    values: dict[str, Any] = {name: _checked(found[name], str, name) for name in _TEXTS}
    values["tokens_seen"] = _checked(found["tokens_seen"], int, "tokens_seen")
    values |= {name: arrays.pop(name) for name in _PLAIN}
    values["loss_effect"] = arrays.pop("loss_effect", None)
    for name, kind in _PARTS.items():
        extra = {"measure": _checked(found["measures"][name], str, name)} if name in found["measures"] else {}
        values[name] = _part(kind, name, arrays, extra)
    values["examples"] = tuple(_examples(i, about, arrays) for i, about in enumerate(found["examples"]))
    values["strings"] = {
        _checked(token, int, "strings"): _checked(text, str, "strings") for token, text in found["strings"]
    }
    return FeatureData(**values)


def _examples(i: int, about: dict[str, Any], arrays: dict[str, np.ndarray]) -> Examples:
    name, label = f"examples.{i}", _checked(about["label"], str, "label")
    windows = _part(Windows, f"{name}.windows", arrays, {"before": _checked(about["before"], int, "before")})
    return Examples(label, windows, arrays.pop(f"{name}.loss_effects", None), arrays.pop(f"{name}.token_effects", None))


def _part(kind: type[Any], name: str, arrays: dict[str, np.ndarray], extra: dict[str, Any]) -> Any:
    """A dataclass from its arrays. None if there are none of them."""
    names = [field.name for field in dataclasses.fields(kind)]
    found = {field: arrays.pop(f"{name}.{field}") for field in names if f"{name}.{field}" in arrays}
    if not found:
        if extra and kind is not Neighbours:
            raise ValueError(f"the arrays of {name} are missing")
        return None
    if kind is Windows:
        found |= {"activations": found.get("activations")}
    return kind(**found, **extra)


def _checked(value: Any, kind: type[Any], name: str) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{name} is {value!r}, not a {kind.__name__}")
    return value
