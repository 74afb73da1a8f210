"""Neuronpedia's JSON: features with their statistics and examples, written and read.

    write_neuronpedia(data, "export", Source("gpt2-small", "6-mysae", "mysae", release="my-release"))
    found = read_neuronpedia("export")
    found.data, found.explanations

An export is a folder with `release.jsonl`, `model.jsonl`, `sourceset.jsonl`, `source.jsonl`, and gzipped lines in
`features/batch-0.jsonl.gz`, `activations/batch-0.jsonl.gz` and `explanations/batch-0.jsonl.gz`. `feature_json` is one
feature with its activations, as Neuronpedia's API returns it. What was not measured is absent.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jax_interp.core.atomic_write import is_taken, make_directory, replacing
from jax_interp.core.errors import UserError
from jax_interp.dashboards.feature_data import Examples, FeatureData


@dataclasses.dataclass(frozen=True)
class Source:
    """Where features belong on Neuronpedia.

    Args:
      model: the id of the model: "gpt2-small".
      layer: the id of the source, "{layer}-{set}": "6-res-jb".
      source_set: the name of the set of sources: "res-jb".
      release: the name of the release. "": none.
      hook: the name of the value in TransformerLens: "blocks.6.hook_resid_pre". "": not told.
    """

    model: str
    layer: str
    source_set: str
    release: str = ""
    hook: str = ""

    def __post_init__(self) -> None:
        if missing := [name for name in ("model", "layer", "source_set") if not getattr(self, name)]:
            raise UserError(f"a source of Neuronpedia needs {' and '.join(missing)}")


def feature_json(
    data: FeatureData, row: int, source: Source, vector: Float[np.ndarray, " d"] | None = None
) -> dict[str, Any]:
    """One feature with its activations, as JSON values in Neuronpedia's names.

    Args:
      data: the data, with the text of its tokens (`with_strings`).
      row: the row of the feature in the data.
      source: where it belongs.
      vector: its decoder direction.

    Returns:
      JSON values. All are finite numbers, strings, lists and objects.

    Raises:
      UserError: the data has no text of its tokens, or a number is not finite.
    """
    found = {
        **_identity(source, int(data.units[row])),
        "sourceSetName": source.source_set,
        "maxActApprox": float(data.max_activation[row]),
        "frac_nonzero": float(data.density[row]),
        "activations": _activations(data, row),
    }
    if source.hook:
        found["hookName"] = source.hook
    if vector is not None:
        found["vector"] = np.asarray(vector, np.float64).tolist()
    for end, effects in (("pos", data.promoted), ("neg", data.suppressed)):
        if effects is not None:
            found[f"{end}_str"] = [_text(data, token) for token in effects.tokens[row]]
            found[f"{end}_values"] = effects.effects[row].tolist()
    for name, histogram in (("freq_hist", data.activation_histogram), ("logits_hist", data.logit_histogram)):
        if histogram is not None:
            edges = histogram.edges if histogram.edges.ndim == 1 else histogram.edges[row]
            found[f"{name}_data_bar_values"] = ((edges[1:].astype(np.float64) + edges[:-1]) / 2).tolist()
            found[f"{name}_data_bar_heights"] = histogram.counts[row].tolist()
    if data.neighbours is not None and "cosine" in data.neighbours.measure:
        there = data.neighbours.units[row] >= 0
        found["topkCosSimIndices"] = data.neighbours.units[row][there].tolist()
        found["topkCosSimValues"] = data.neighbours.values[row][there].tolist()
    try:
        json.dumps(found, allow_nan=False)
    except ValueError as error:
        raise UserError(f"feature {data.units[row]} has a number that is not finite: {error}") from error
    return found


def write_neuronpedia(
    data: FeatureData,
    directory: Path | str,
    source: Source,
    *,
    vectors: Float[np.ndarray, "unit d"] | None = None,
    explanations: Mapping[int, str] | None = None,
    batch: int = 512,
) -> Path:
    """Write the data as an export of Neuronpedia.

    Args:
      data: the data, with the text of its tokens (`with_strings`).
      directory: the folder. It must be empty or missing.
      source: where the features belong.
      vectors: their decoder directions.
      explanations: a description of some features, by their index.
      batch: the number of features in a file.

    Returns:
      The folder.

    Raises:
      UserError: the folder holds something, the data has no text of its tokens, an explanation is of a feature that is
        not in the data, or a file cannot be written.
    """
    directory, explanations = Path(directory), dict(explanations or {})
    if is_taken(directory):
        raise UserError(f"{directory} is not an empty folder: an export would be mixed with what is there")
    if unknown := sorted(set(explanations) - set(data.units.tolist())):
        raise UserError(f"explanations of {unknown[:5]}, which are not in the data")
    if vectors is not None and len(vectors) != len(data.units):
        raise UserError(f"{len(vectors)} vectors for {len(data.units)} features")
    for first in range(0, len(data.units), batch):
        rows = range(first, min(first + batch, len(data.units)))
        features = [feature_json(data, i, source, None if vectors is None else vectors[i]) for i in rows]
        activations = [
            {**_identity(source, feature["index"]), **one} for feature in features for one in feature.pop("activations")
        ]
        described = [
            {**_identity(source, int(u)), "description": explanations[int(u)]}
            for u in data.units[rows.start : rows.stop]
            if int(u) in explanations
        ]
        for kind, lines in (("features", features), ("activations", activations), ("explanations", described)):
            if lines:
                make_directory(directory / kind)
                _write_lines(directory / kind / f"batch-{first // batch}.jsonl.gz", lines)
    make_directory(directory)
    release = {"releaseName": source.release} if source.release else {}
    about = {
        "model": {"id": source.model},
        "sourceset": {"modelId": source.model, "name": source.source_set, **release},
        "source": {"id": source.layer, "modelId": source.model, "setName": source.source_set},
    }
    if source.release:
        about["release"] = {"name": source.release}
    for name, line in about.items():
        with replacing(directory / f"{name}.jsonl") as temporary:
            temporary.write_text(json.dumps(line) + "\n")
    return directory


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    with (
        replacing(path) as temporary,
        open(temporary, "wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file,
    ):
        for line in lines:
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")


def _identity(source: Source, index: int | str) -> dict[str, Any]:
    return {"modelId": source.model, "layer": source.layer, "index": str(index)}


def _text(data: FeatureData, token: int | np.integer) -> str:
    try:
        return data.strings[int(token)]
    except KeyError:
        raise UserError(f"there is no text of token {token}: give the data `with_strings` of its tokenizer") from None


def _activations(data: FeatureData, row: int) -> list[dict[str, Any]]:
    """All examples of a unit, each place of the text once, the highest peak first."""
    found: dict[Any, tuple[float, dict[str, Any]]] = {}
    for number, group in enumerate(data.examples):
        windows = group.windows
        for k in np.flatnonzero(windows.tokens[row, :, windows.before] >= 0).tolist():
            place = (number, k) if windows.place is None else tuple(windows.place[row, k].tolist())
            found.setdefault(place, (float(windows.peak[row, k]), _activation(data, group, row, k)))
    return [one for _, one in sorted(found.values(), key=lambda both: -both[0])]


def _activation(data: FeatureData, group: Examples, row: int, k: int) -> dict[str, Any]:
    windows = group.windows
    there = np.flatnonzero(windows.tokens[row, k] >= 0)
    values = windows.scores[row, k, there].astype(np.float64)
    return {
        "tokens": [_text(data, token) for token in windows.tokens[row, k, there]],
        "values": values.tolist(),
        "maxValue": values.max().item(),
        "maxValueTokenIndex": int(values.argmax()),
        "minValue": values.min().item(),
        "qualifyingTokenIndex": int(np.searchsorted(there, windows.before)),
    }
