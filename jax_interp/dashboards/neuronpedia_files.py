"""Reading Neuronpedia's JSON into `FeatureData`.

Three layouts are read: an export (a folder), a JSON file with one feature or a list of features (as the API returns
them), and a `batch-0.json` of SAEDashboard, which has the same values under names like `feature_index`.

Nothing is trusted: JSON is strict, lines and lists have limits, and names in files are never paths. Fields that a page
does not show are ignored: authors, dates, votes, correlated neurons, direct attribution. `FeatureData` has what follows
from the other fields:

- `firings` is the sum of `freq_hist_data_bar_heights`, and `tokens_seen` is `n_prompts_total` · `n_tokens_in_prompt`.
  If these are absent, it is firings / `frac_nonzero` of the feature that is on most often.
- Examples without a bin (`binMin` below `binMax`) are the group "top". Those of the highest bin of each feature are the
  group "interval 1", those of the second highest "interval 2", and so on.
- Token ids are numbers of strings in the order in which they appear. They are not the ids of a tokenizer.
- `mean_activation_when_on` and `min_activation` are not in the files: NaN.
"""

from __future__ import annotations

import dataclasses
import gzip
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import MAX_BYTES, parse_json, read_bytes
from jax_interp.dashboards.feature_data import Examples, FeatureData, Histogram, Neighbours, TokenEffects
from jax_interp.dashboards.statistics.activity import bin_edges
from jax_interp.dashboards.windows import Windows

_DASHBOARD = {"feature_index": "index", "bin_min": "binMin", "bin_max": "binMax", "bin_contains": "binContains",
              "qualifying_token_index": "qualifyingTokenIndex"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Found:
    """What is in files of Neuronpedia.

    Args:
      data: the features, in the order of the files.
      explanations: the descriptions of some features, by index.
    """

    data: FeatureData
    explanations: dict[int, tuple[str, ...]]


LARGEST = float(np.finfo(np.float32).max)
MAX_GROUPS, MAX_WINDOWS = 100, 1 << 28
"""The largest number of groups of examples, and of tokens in one group with all blanks."""


def read_neuronpedia(path: Path | str) -> Found:
    """Read an export, a JSON file of features, or a batch of SAEDashboard.

    Args:
      path: the folder, or the JSON file.

    Raises:
      UserError: it is missing, is not one of these layouts, has features of several sources, or a field has the wrong
        type, length or value.
    """
    path = Path(path)
    features, activations, explanations = _of_folder(path) if path.is_dir() else _of_file(path)
    if not features:
        raise UserError(f"{path} has no features of Neuronpedia")
    reader = _Reader(str(path))
    sources = {(reader.text(f, "modelId"), reader.text(f, "layer")) for f in features}
    if len(sources) > 1:
        raise UserError(f"{path} has features of {len(sources)} sources: give files of one")
    by_unit: dict[int, dict[str, Any]] = {}
    for feature in features:
        if by_unit.setdefault(unit := reader.index(feature), feature) is not feature:
            raise UserError(f"{path} has feature {unit} twice")
    examples: dict[int, list[Mapping[str, Any]]] = {unit: [] for unit in by_unit}
    for one in activations:
        examples.setdefault(reader.index(one), []).append(one)
    described: dict[int, tuple[str, ...]] = {}
    for one in explanations:
        described[unit] = (*described.get(unit := reader.index(one), ()), reader.text(one, "description"))
    if unknown := sorted((set(examples) | set(described)) - set(by_unit)):
        raise UserError(f"{path} has activations or explanations of features {unknown[:5]}, which are not there")
    return Found(_data(reader, by_unit, examples), described)


def _of_folder(path: Path) -> tuple[list[Any], list[Any], list[Any]]:
    kinds = []
    for kind in ("features", "activations", "explanations"):
        files = sorted((path / kind).glob("batch-*.jsonl.gz"))
        kinds.append([line for file in files for line in _lines(file)])
    return kinds[0], kinds[1], kinds[2]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with gzip.open(path, "rb") as file:
            number = 0
            while line := file.readline(MAX_BYTES + 1):
                number += 1
                value = parse_json(line, f"{path}, line {number}")
                if not isinstance(value, dict):
                    raise UserError(f"{path}, line {number} is not a JSON object")
                yield value
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a whole gzip file: {error}") from error


def _of_file(path: Path) -> tuple[list[Any], list[Any], list[Any]]:
    value = parse_json(read_bytes(path), str(path))
    if isinstance(value, dict) and "features" in value:  # SAEDashboard
        reader = _Reader(str(path))
        layer = f"{value.get('layer', '')}-{value.get('sae_set', '')}"
        same = {"modelId": reader.text(value, "model_id"), "layer": layer}
        value = [{**_renamed(one), **same} for one in reader.objects(value, "features")]
    features = value if isinstance(value, list) else [value]
    if not all(isinstance(one, dict) for one in features):
        raise UserError(f"{path} is not JSON of Neuronpedia: it should hold features, which are objects")
    activations, explanations, reader = [], [], _Reader(str(path))
    for feature in features:
        own = {"index": feature.get("index")}
        activations += [{**_renamed(one), **own} for one in reader.objects(feature, "activations")]
        explanations += [{**one, **own} for one in reader.objects(feature, "explanations")]
    return features, activations, explanations


def _renamed(value: Mapping[str, Any]) -> dict[str, Any]:
    return {_DASHBOARD.get(name, name): one for name, one in value.items()}


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Takes fields out of JSON objects, with their types. `where` names the file in messages."""

    where: str

    def text(self, value: Mapping[str, Any], name: str) -> str:
        found = value.get(name)
        if not isinstance(found, str):
            raise UserError(f"{self.where}: {name} is {found!r}, not a text")
        return found

    def index(self, value: Mapping[str, Any]) -> int:
        found = value.get("index")
        if type(found) is int and 0 <= found < 2**31:
            return found
        if isinstance(found, str) and found.isascii() and found.isdigit() and len(found) < 10:
            return int(found)
        raise UserError(f"{self.where}: the index of a feature is {found!r}, not a whole number")

    def objects(self, value: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
        found = value.get(name)
        found = [] if found is None else found
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise UserError(f"{self.where}: {name} is not a list of objects")
        return found

    def number(self, value: Mapping[str, Any], name: str) -> float | None:
        found = value.get(name)
        if found is not None and (type(found) not in (int, float) or abs(found) > LARGEST):
            raise UserError(f"{self.where}: {name} is {found!r}, not a number of float32")
        return found

    def numbers(self, value: Mapping[str, Any], name: str) -> list[float]:
        found = value.get(name)
        found = [] if found is None else found
        if not isinstance(found, list) or not all(type(one) in (int, float) and abs(one) <= LARGEST for one in found):
            raise UserError(f"{self.where}: {name} is not a list of numbers of float32")
        return found

    def texts(self, value: Mapping[str, Any], name: str) -> list[str]:
        found = value.get(name)
        found = [] if found is None else found
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise UserError(f"{self.where}: {name} is not a list of texts")
        return found


def _data(
    reader: _Reader, features: dict[int, dict[str, Any]], examples: dict[int, list[Mapping[str, Any]]]
) -> FeatureData:
    ids: dict[str, int] = {}
    number = lambda text: ids.setdefault(text, len(ids))
    rows = list(features.values())
    heights = [reader.numbers(row, "freq_hist_data_bar_heights") for row in rows]
    firings, seen = _firings(reader, rows, heights)
    largest = [reader.number(row, "maxActApprox") for row in rows]
    if None in largest:  # SAEDashboard does not tell it: the largest value of the examples
        largest = [
            max((max(reader.numbers(e, "values"), default=0.0) for e in own), default=0.0) for own in examples.values()
        ]
    unknown = np.full(len(rows), np.nan, np.float32)
    alike = [(reader.numbers(r, "topkCosSimIndices"), reader.numbers(r, "topkCosSimValues")) for r in rows]
    near = None
    if any(units for units, _ in alike):
        units, values = _table(reader, alike, "topkCosSim", -1)
        if (units != np.round(units)).any():
            raise UserError(f"{reader.where}: topkCosSimIndices are not whole numbers")
        near = Neighbours(units.astype(np.int64), values, "cosine of decoder directions")
    return FeatureData(
        np.asarray(list(features)), "feature", reader.text(rows[0], "layer"), reader.text(rows[0], "modelId"),
        str(rows[0].get("hookName") or ""), str(rows[0].get("dataset") or ""), seen, firings,
        np.asarray(largest, np.float32), unknown, unknown,
        _histogram(reader, rows, "freq_hist"), tuple(_groups(reader, list(examples.values()), number)),
        _effects(reader, rows, "pos", number), _effects(reader, rows, "neg", number),
        _histogram(reader, rows, "logits_hist"), near, strings={token: text for text, token in ids.items()},
    )  # fmt: skip


def _firings(reader: _Reader, rows: list[dict[str, Any]], heights: list[list[float]]) -> tuple[np.ndarray, int]:
    """(firings of each feature, kept positions)."""
    rate = np.asarray([reader.number(row, "frac_nonzero") or 0.0 for row in rows])
    counts = np.asarray([round(sum(one)) for one in heights])
    if rate.min() < 0 or rate.max() > 1 or counts.min() < 0:
        raise UserError(f"{reader.where}: frac_nonzero is from 0 to 1, and counts are not negative")
    prompts, length = (reader.number(rows[0], name) for name in ("n_prompts_total", "n_tokens_in_prompt"))
    most = int(counts.argmax())
    if prompts and length:
        seen = round(prompts * length)
    elif counts[most] and rate[most]:
        seen = round(counts[most] / rate[most])
    else:
        raise UserError(
            f"{reader.where} does not tell how many tokens were read: n_prompts_total and n_tokens_in_prompt, or "
            "freq_hist_data_bar_heights and frac_nonzero are needed"
        )
    known = np.asarray([bool(one) for one in heights])
    firings = np.where(known, counts, np.round(rate * seen).astype(np.int64))
    if (firings > seen).any() or (abs(firings / seen - rate) > 1e-3 + 0.01 * rate).any():
        raise UserError(
            f"{reader.where}: frac_nonzero, freq_hist_data_bar_heights and the number of tokens do not agree"
        )
    return firings, seen


def _table(
    reader: _Reader, columns: list[tuple[list[float], list[float]]], name: str, blank: int
) -> tuple[np.ndarray, Float[np.ndarray, "unit n"]]:
    """Lists of pairs as two arrays; -1 and 0 where a list is shorter."""
    if any(len(first) != len(second) for first, second in columns):
        raise UserError(f"{reader.where}: the two lists of {name} have different lengths")
    width = max(len(first) for first, _ in columns)
    firsts, seconds = np.full((len(columns), width), blank, np.float64), np.zeros((len(columns), width), np.float32)
    for i, (first, second) in enumerate(columns):
        firsts[i, : len(first)], seconds[i, : len(second)] = first, second
    return firsts, seconds


def _effects(reader: _Reader, rows: list[dict[str, Any]], end: str, number: Any) -> TokenEffects | None:
    columns = [(list(map(number, reader.texts(r, f"{end}_str"))), reader.numbers(r, f"{end}_values")) for r in rows]
    if not any(tokens for tokens, _ in columns):
        return None
    tokens, effects = _table(reader, columns, end, -1)
    return TokenEffects(tokens.astype(np.int64), effects)


def _histogram(reader: _Reader, rows: list[dict[str, Any]], name: str) -> Histogram | None:
    """A histogram from the centres of its bins. A feature without bins has counts of 0 in the bins of another one."""
    names = f"{name}_data_bar_values", f"{name}_data_bar_heights"
    columns = [tuple(reader.numbers(row, one) for one in names) for row in rows]
    widths = {len(centres) for centres, _ in columns if centres}
    if not widths:
        return None
    if len(widths) > 1 or any(len(centres) != len(heights) for centres, heights in columns):
        raise UserError(f"{reader.where}: the features have different numbers of bins in {name}")
    edges = [_edges(reader, np.asarray(centres, np.float64), names[0]) if centres else None for centres, _ in columns]
    some = next(one for one in edges if one is not None)
    counts = [np.round(heights) if heights else np.zeros(len(some) - 1) for _, heights in columns]
    table = np.stack([some if one is None else one for one in edges])
    shared = bool((table == table[:1]).all()) and name == "freq_hist"
    return Histogram(table[0] if shared else table, np.stack(counts).astype(np.int64))


def _edges(reader: _Reader, centres: Float[np.ndarray, " bin"], name: str) -> Float[np.ndarray, "bin+1"]:
    """The edges of bins with these centres: bins of equal width, or bins of `Activity`."""
    ours = bin_edges()
    middle = (ours[1:] + ours[:-1]) / 2
    first = int(np.searchsorted(middle, centres[0] - 1e-9 * abs(centres[0])))
    grid = middle[first : first + len(centres)]
    if len(grid) == len(centres) and np.allclose(grid, centres, rtol=1e-6, atol=0):
        return ours[first : first + len(centres) + 1]
    steps = np.diff(centres)
    width = steps[0] if len(steps) else 1.0
    if width <= 0 or not np.allclose(steps, width, rtol=1e-2, atol=1e-6):
        raise UserError(f"{reader.where}: the edges of the bins cannot be told from {name}: they have different widths")
    return np.append(centres - width / 2, centres[-1] + width / 2)


def _groups(reader: _Reader, examples: list[list[Mapping[str, Any]]], number: Any) -> Iterator[Examples]:
    """Examples without a bin, and then those of the highest bin of each feature, of the second highest, ..."""
    groups: dict[int, list[tuple[int, Mapping[str, Any]]]] = {}
    for row, own in enumerate(examples):
        bins = [_bin(reader, one) for one in own]
        order = sorted({one for one in bins if one is not None}, reverse=True)
        for one, place in zip(own, bins):
            groups.setdefault(0 if place is None else 1 + order.index(place), []).append((row, one))
    if len(groups) > MAX_GROUPS:
        raise UserError(f"{reader.where}: a feature has {len(groups)} bins of examples; up to {MAX_GROUPS} are read")
    for rank in sorted(groups):
        yield Examples(f"interval {rank}" if rank else "top", _windows(reader, groups[rank], len(examples), number))


def _bin(reader: _Reader, one: Mapping[str, Any]) -> tuple[float, float] | None:
    low, high = reader.number(one, "binMin"), reader.number(one, "binMax")
    return None if low is None or high is None or low >= high else (low, high)


def _windows(reader: _Reader, group: list[tuple[int, Mapping[str, Any]]], units: int, number: Any) -> Windows:
    """The examples of a group, by unit, the highest peak first. Peaks stand in one column."""
    found: list[list[tuple[float, int, list[str], list[float]]]] = [[] for _ in range(units)]
    for row, one in group:
        tokens, values = reader.texts(one, "tokens"), reader.numbers(one, "values")
        if not tokens or len(tokens) != len(values):
            raise UserError(f"{reader.where}: an activation has {len(tokens)} tokens and {len(values)} values")
        at = reader.number(one, "qualifyingTokenIndex")
        at = reader.number(one, "maxValueTokenIndex") if at is None else at
        at = int(np.argmax(values)) if at is None else at
        if at != int(at) or not 0 <= at < len(tokens):
            raise UserError(f"{reader.where}: an activation of {len(tokens)} tokens has its peak at {at}")
        found[row].append((values[int(at)], int(at), tokens, values))
    every = [one for own in found for one in own]
    before, after = max(at for _, at, *_ in every), max(len(tokens) - at for _, at, tokens, _ in every)
    shape = units, max(len(own) for own in found), before + after
    if np.prod(shape, dtype=float) > MAX_WINDOWS:
        raise UserError(f"{reader.where}: examples of {shape} tokens are too many")
    peak, ids, scores = np.zeros(shape[:2], np.float32), np.full(shape, -1), np.zeros(shape, np.float32)
    for row, own in enumerate(found):
        for k, (value, at, tokens, values) in enumerate(sorted(own, key=lambda one: -one[0])):
            span = slice(before - at, before - at + len(tokens))
            peak[row, k], ids[row, k, span], scores[row, k, span] = value, [number(t) for t in tokens], values
    return Windows(peak, ids, scores, None, before)
