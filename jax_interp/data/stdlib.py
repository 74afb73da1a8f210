"""The source of the running interpreter's standard library as a text corpus.

This is real text that exists on every machine: about ten megabytes of Python, with English prose in its docstrings.
Tests, the character tables of `encodings`, generated files and other tables are left out. All other files are decoded
as the interpreter decodes them and sorted by path. An explicit list of modules is held out for validation. The same
interpreter therefore always gives the same corpus. Another version of Python gives another corpus, with another
`Corpus.fingerprint`.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jax_interp.core.errors import UserError

EXCLUDED_DIRECTORIES = frozenset(
    {
        "site-packages",
        "dist-packages",
        "__pycache__",
        "test",
        "tests",
        "idle_test",
        "encodings",  # character tables
        "pydoc_data",  # one generated file of documentation topics
        "pgen2",  # lib2to3's copy of tokenize and its grammar tables
        "msilib",  # Windows installer tables
        "lib-dynload",
    }
)
"""Names of directories that are left out, anywhere in the tree."""

EXCLUDED_FILES = ("html/entities.py", "_sysconfigdata*", "_sysconfig_vars*", "config-*/*")
"""Path patterns of tables and generated files, which differ between machines."""

VALIDATION_MODULES = (
    "argparse.py",
    "asyncio/queues.py",
    "asyncio/streams.py",
    "bisect.py",
    "calendar.py",
    "collections/abc.py",
    "concurrent/futures/thread.py",
    "csv.py",
    "ctypes/util.py",
    "difflib.py",
    "email/message.py",
    "fractions.py",
    "gettext.py",
    "heapq.py",
    "html/parser.py",
    "http/cookies.py",
    "ipaddress.py",
    "json/decoder.py",
    "logging/config.py",
    "multiprocessing/managers.py",
    "queue.py",
    "random.py",
    "sched.py",
    "shlex.py",
    "smtplib.py",
    "statistics.py",
    "tarfile.py",
    "textwrap.py",
    "unittest/mock.py",
    "urllib/robotparser.py",
    "wsgiref/handlers.py",
    "xml/dom/pulldom.py",
    "zipapp.py",
)
"""The modules held out for validation: about a tenth of the text. They all exist in Python 3.11 to 3.14."""


@dataclass(frozen=True)
class Document:
    """One source file: its path relative to the root of the library (with `/`), and its text (newlines `\\n`)."""

    path: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Two splits of documents, each sorted by path."""

    train: tuple[Document, ...]
    validation: tuple[Document, ...]
    fingerprint: str
    """The SHA-256 of every path and text of both splits."""
    python: str
    """The version of the interpreter."""
    skipped: tuple[str, ...] = ()
    """Files that could not be decoded."""

    def describe(self) -> dict[str, object]:
        """A description of the corpus as JSON values, for a manifest or a log."""
        sizes = {split: sum(len(d.text.encode()) for d in getattr(self, split)) for split in ("train", "validation")}
        return {
            "name": "python-stdlib",
            "python": self.python,
            "fingerprint": self.fingerprint,
            "train_documents": len(self.train),
            "train_bytes": sizes["train"],
            "validation_documents": len(self.validation),
            "validation_bytes": sizes["validation"],
            "skipped": list(self.skipped),
        }


def _source_files(root: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name not in EXCLUDED_DIRECTORIES)
        for name in sorted(files):
            path = Path(directory, name)
            relative = path.relative_to(root)
            if name.endswith(".py") and not any(relative.match(pattern) for pattern in EXCLUDED_FILES):
                yield path


def stdlib_corpus(root: str | Path | None = None, *, validation: tuple[str, ...] = VALIDATION_MODULES) -> Corpus:
    """Read the corpus: about 500 files, in less than a second.

    Files that `tokenize.open` cannot decode are left out and named in `skipped`. Symbolic links to directories are not
    followed.

    Args:
      root: the root of the library. Default: the `sysconfig` path of the running interpreter.
      validation: paths of the modules that are held out.

    Returns:
      The corpus.

    Raises:
      UserError: `root` contains no Python source (some interpreters have their library in a zip archive), or a module
        of `validation` is missing (losses on a smaller validation split would not be comparable).
    """
    root = Path(sysconfig.get_paths()["stdlib"] if root is None else root)
    held_out = set(validation)
    train, valid, skipped = [], [], []
    digest = hashlib.sha256()
    documents = []
    for path in _source_files(root):
        relative = path.relative_to(root).as_posix()
        try:
            with tokenize.open(path) as file:
                documents.append(Document(relative, file.read()))
        except (SyntaxError, UnicodeDecodeError, OSError):
            skipped.append(relative)
    for document in sorted(documents, key=lambda d: d.path):
        (valid if document.path in held_out else train).append(document)
        data = document.text.encode()
        digest.update(f"{document.path}\0{len(data)}\0".encode() + data)
    if not train and not valid:
        raise UserError(
            f"no Python source under {root}: the corpus is the interpreter's own library as .py files; "
            "use an interpreter that installs them, or pass root= the Lib directory of a source checkout"
        )
    if missing := sorted(held_out - {d.path for d in valid}):
        raise UserError(
            f"validation modules {missing} are not under {root} (skipped as undecodable: {sorted(skipped)}); "
            "install the complete library (Debian: the libpython3-stdlib package) or pass validation= another list"
        )
    return Corpus(tuple(train), tuple(valid), digest.hexdigest(), platform.python_version(), tuple(sorted(skipped)))
