"""The documents of a user's text: files, directories, JSON Lines and Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import parse_json

PLAIN = (".txt", ".py", ".md")
"""Suffixes of files that are one document each."""
TABLES = (".jsonl", ".parquet")
"""Suffixes of files whose rows are documents."""
COLUMN = "text"


def read_documents(path: str | Path, column: str = COLUMN) -> list[str]:
    """Read the documents of a file or a directory.

    Args:
      path: a UTF-8 file, which is one document; a `.jsonl` or `.parquet` file, in which every row is a document; or a
        directory, in which every .txt, .py, .md, .jsonl and .parquet file is read, in the order of their paths.
      column: the column (the key) of the rows that holds the text.

    Returns:
      The documents. Empty ones are left out.

    Raises:
      UserError: there is no text, a file is not UTF-8, a row has no such column, or pyarrow is missing for Parquet.
    """
    if not str(path):
        raise UserError("the path of the text is empty: give 'stdlib', a file or a directory")
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in PLAIN + TABLES and p.is_file())
    else:
        files = [path]
    documents = [document for file in files for document in _read(file, column) if document]
    if not documents:
        known = ", ".join(PLAIN + TABLES)
        raise UserError(f"no text in {str(path)!r}: a directory is searched for files of the kinds {known}")
    return documents


def _read(file: Path, column: str) -> Iterator[str]:
    try:
        if file.suffix == ".parquet":
            yield from _parquet(file, column)
        elif file.suffix == ".jsonl":
            with open(file, encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield _cell(line, f"line {number} of {str(file)!r}", column)
        else:
            yield file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"no text at {str(file)!r}: {error.strerror}; give 'stdlib', a file or a directory") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{str(file)!r} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _cell(line: str, where: str, column: str) -> str:
    row = parse_json(line, where, nonfinite=True)
    if not isinstance(row, dict) or not isinstance(row.get(column), str):
        has = f"the keys {sorted(row)}" if isinstance(row, dict) else f"a {type(row).__name__}"
        raise UserError(f"{where} has no text under {column!r}; it has {has}")
    return row[column]


def _parquet(file: Path, column: str) -> Iterator[str]:
    try:
        from pyarrow import ArrowException, parquet, types  # type: ignore[import-not-found]  an optional extra
    except ImportError as error:
        raise UserError(f"{str(file)!r} needs pyarrow: pip install 'jax_interp[parquet]', or use .jsonl") from error
    try:
        with parquet.ParquetFile(file) as table:
            schema = table.schema_arrow
            found = schema.field(column).type if column in schema.names else None
            if found is None or not (types.is_string(found) or types.is_large_string(found)):
                columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
                raise UserError(f"{str(file)!r} has no column {column!r} of strings; it has {columns}")
            for batch in table.iter_batches(columns=[column]):
                yield from (text for text in batch.column(0).to_pylist() if text is not None)
    except (ArrowException, ValueError) as error:
        raise UserError(f"{str(file)!r} is not a readable Parquet file: {error}") from error
