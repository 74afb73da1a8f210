"""Labelled texts: tables with one text and one label in each row. CSV, JSON Lines and Parquet; CSV also as `.csv.zst`.

The distribution `sae-probes` (MIT; the texts are from the sources that it names) holds 113 tables of two labels. Its
files can be read without importing it, so `pip install --no-deps sae-probes` is enough. `installed_tables()` finds
them.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import parse_json

TEXT_COLUMNS = ("text", "prompt", "sentence")
"""Names of the column of texts, the first that a table has."""
LABEL_COLUMNS = ("label", "target")
"""Names of the column of labels."""
SUFFIXES = (".csv", ".csv.zst", ".jsonl", ".parquet")
DISTRIBUTION = "sae-probes"


@dataclasses.dataclass(frozen=True)
class LabelledTexts:
    """One labelled data set."""

    name: str
    texts: tuple[str, ...]
    labels: Int[np.ndarray, " text"]
    """The number of each text's class in `classes`."""
    classes: tuple[str, ...]
    """The distinct labels, sorted as strings."""
    left_out: int = 0
    """Rows without a text or without a label. They are not in `texts`."""
    repeated: int = 0
    """Rows whose text stands in an earlier row. They are not in `texts`, because the same text could be in the training
    part and in the test part of a probe."""

    def __len__(self) -> int:
        return len(self.texts)

    def counts(self) -> dict[str, int]:
        """The number of texts of each class."""
        return dict(zip(self.classes, np.bincount(self.labels, minlength=len(self.classes)).tolist(), strict=True))


def labelled(name: str, texts: Sequence[Any], labels: Sequence[Any]) -> LabelledTexts:
    """Make a data set from texts and labels.

    Args:
      name: its name in tables.
      texts: the texts. Rows without a text (None, or only blanks) are left out and counted, and so are repeated texts.
      labels: the label of each text: strings, numbers or booleans. Labels with the same `str` are the same class. Rows
        without a label (None, NaN or "") are left out and counted.

    Raises:
      UserError: the lengths differ, a text is not a string, or no row is left.
    """
    if len(texts) != len(labels):
        raise UserError(f"{name}: {len(texts)} texts and {len(labels)} labels: give one label for each text")
    rows: dict[str, str] = {}
    empty = 0
    for number, (text, label) in enumerate(zip(texts, labels), 1):
        if text is not None and not isinstance(text, str):
            raise UserError(f"{name}: row {number} has a {type(text).__name__} in place of its text")
        if text is None or not text.strip() or label is None or label != label or str(label) == "":
            empty += 1
            continue
        rows.setdefault(text, str(label))
    if not rows:
        raise UserError(f"{name}: no row has both a text and a label")
    classes = sorted(set(rows.values()))
    numbers = {label: i for i, label in enumerate(classes)}
    of_row = np.asarray([numbers[label] for label in rows.values()], np.int32)
    return LabelledTexts(name, tuple(rows), of_row, tuple(classes), empty, len(texts) - empty - len(rows))


def read_labelled(path: Path | str, text: str | None = None, label: str | None = None) -> LabelledTexts:
    """Read one table.

    Args:
      path: a `.csv`, `.csv.zst`, `.jsonl` or `.parquet` file.
      text: the column of texts. None: the first of "text", "prompt" and "sentence" that there is.
      label: the column of labels. None: the first of "label" and "target" that there is.

    Raises:
      UserError: the file cannot be read, has no such column, or no row has both a text and a label.
    """
    path = Path(path)
    columns = read_columns(path)
    texts = _column(path, columns, TEXT_COLUMNS if text is None else (text,), "texts")
    return labelled(_stem(path), texts, _column(path, columns, LABEL_COLUMNS if label is None else (label,), "labels"))


def tables_in(directory: Path | str) -> list[Path]:
    """The tables of a directory, sorted by name; or the one file, if `directory` is a file.

    Raises:
      UserError: there is no such path, or it holds no table.
    """
    directory = Path(directory)
    if directory.is_file():
        return [directory]
    if not directory.is_dir():
        raise UserError(f"no labelled texts at {str(directory)!r}: give a table, a directory of tables or 'sae-probes'")
    found = sorted(p for p in directory.iterdir() if p.is_file() and p.name.lower().endswith(SUFFIXES))
    if not found:
        raise UserError(f"no table in {str(directory)!r}: looked for files that end with {', '.join(SUFFIXES)}")
    return found


def installed_tables() -> Path:
    """The directory of the tables in the installed distribution `sae-probes`. Nothing of it is imported.

    Raises:
      UserError: it is not installed.
    """
    try:
        distribution = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        raise UserError(
            f"{DISTRIBUTION} is not installed: `pip install --no-deps {DISTRIBUTION}` brings its tables without its "
            "dependencies, or give a directory of your own tables"
        ) from None
    directory = Path(str(distribution.locate_file("sae_probes"))) / "data" / "cleaned_data"
    if not directory.is_dir():
        raise UserError(f"this version of {DISTRIBUTION} ({distribution.version}) has no directory {directory}")
    return directory


def _stem(path: Path) -> str:
    return next((path.name[: -len(s)] for s in SUFFIXES if path.name.lower().endswith(s)), path.name)


def _column(path: Path, columns: Mapping[str, Sequence[Any]], names: Sequence[str], what: str) -> Sequence[Any]:
    for name in names:
        if name in columns:
            return columns[name]
    has = ", ".join(map(repr, columns)) or "none"
    raise UserError(f"{str(path)!r} has no column of {what} called {' or '.join(map(repr, names))}; it has {has}")


def read_columns(path: Path | str) -> Mapping[str, Sequence[Any]]:
    """The columns of a table by name: a `.csv`, `.csv.zst`, `.jsonl` or `.parquet` file.

    Raises:
      UserError: the file cannot be read, or is none of these.
    """
    path = Path(path)
    name = path.name.lower()
    try:
        if name.endswith(".jsonl"):
            return _transposed(_json_lines(path))
        if name.endswith(".csv"):
            return _csv(path, path.read_bytes())
        if name.endswith(".csv.zst"):
            return _csv(path, _decompressed(path))
        if name.endswith(".parquet"):
            return _parquet(path)
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
    raise UserError(f"{str(path)!r} is not a table: its name must end with {', '.join(SUFFIXES)}")


def _csv(path: Path, data: bytes) -> Mapping[str, Sequence[Any]]:
    limit = csv.field_size_limit(len(data) + 1)  # texts may be longer than the limit of the csv module
    try:
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
    except UnicodeDecodeError as error:
        raise UserError(f"{str(path)!r} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except csv.Error as error:
        raise UserError(f"{str(path)!r} is not a CSV file: {error}") from error
    finally:
        csv.field_size_limit(limit)
    for number, row in enumerate(rows, 1):
        if None in row:
            raise UserError(f"{str(path)!r} has more fields than columns in row {number}")
    return _transposed(rows)


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # `splitlines` would also cut inside strings, at U+2028
    except UnicodeDecodeError as error:
        raise UserError(f"{str(path)!r} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = parse_json(line, f"line {number} of {str(path)!r}", nonfinite=True)
        if not isinstance(row, dict):
            raise UserError(f"line {number} of {str(path)!r} is a {type(row).__name__}, not an object")
        yield row


def _transposed(rows: Any) -> dict[str, list[Any]]:
    rows = list(rows)
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(key for row in rows for key in row)}


def _decompressed(path: Path) -> bytes:
    pyarrow = _pyarrow(path)
    try:
        with pyarrow.input_stream(str(path), compression="zstd") as stream:
            return stream.read()
    except OSError as error:
        raise UserError(f"{str(path)!r} is not a Zstandard file: {error}") from error


def _parquet(path: Path) -> Mapping[str, Sequence[Any]]:
    pyarrow = _pyarrow(path)
    from pyarrow import parquet  # type: ignore[import-not-found]  an optional extra

    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, ValueError) as error:
        raise UserError(f"{str(path)!r} is not a readable Parquet file: {error}") from error
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow  # type: ignore[import-not-found]  an optional extra
    except ImportError as error:
        raise UserError(f"{str(path)!r} needs pyarrow: pip install 'jax_interp[parquet]', or use .csv") from error
    return pyarrow
