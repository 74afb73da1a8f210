"""The pages of docs/: their code runs as it stands, block after block, as a reader would run it."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", re.DOTALL)


@contextlib.contextmanager
def as_a_reader() -> Iterator[None]:
    """Without this test-suite's strictness."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def run(page: str, compare: Callable[[str, str], None] | None = None) -> dict:
    """The names that a page's code leaves behind. `compare(printed, wanted)` is called with what a block has printed
    where the page shows its output right after it."""
    names: dict = {}
    with as_a_reader():
        for code, wanted in BLOCK.findall((DOCS / page).read_text()):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed) if compare else contextlib.nullcontext():
                exec(compile(code, str(DOCS / page), "exec"), names)
            if compare and wanted:
                compare(printed.getvalue(), wanted)
    return names
