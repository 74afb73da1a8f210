"""The code of docs/analysis.md runs as it stands and prints what the page says it prints."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import jax
import pytest

PAGE = Path(__file__).parents[3] / "docs" / "analysis.md"
NUMBER = re.compile(r"-?\d+\.?\d*")


def blocks() -> list[tuple[str, str | None]]:
    """Each Python block with the output that follows it."""
    found = re.findall(r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", PAGE.read_text(), re.DOTALL)
    return [(code, output or None) for code, output in found]


@pytest.mark.slow
def test_every_block_prints_what_the_page_says():
    names: dict = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as a reader would run it
        for code, wanted in blocks():
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(code, str(PAGE), "exec"), names)
            if wanted is not None:
                same(printed.getvalue(), wanted)


def same(printed: str, wanted: str) -> None:
    """Words to the letter; numbers nearly, for some of the text is the running Python's own library."""
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", wanted)
    got, expected = ([float(x) for x in NUMBER.findall(text)] for text in (printed, wanted))
    assert got == pytest.approx(expected, abs=0.05, rel=0.1)
