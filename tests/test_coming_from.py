"""Every expression in the right columns of docs/coming-from-other-libraries.md runs."""

from __future__ import annotations

import re

import pytest
from pages import DOCS, as_a_reader

PAGE = "coming-from-other-libraries.md"
PIECE = re.compile(r"```python\n(.*?)```|^\|[^\n]*\| `([^|\n]+)` \|$", re.DOTALL | re.MULTILINE)

pytestmark = pytest.mark.slow


def test_each_call_of_the_tables_runs():
    names: dict = {}
    rows = 0
    with as_a_reader():
        for block, cell in PIECE.findall((DOCS / PAGE).read_text()):
            rows += bool(cell)
            exec(compile(block or cell, PAGE, "exec"), names)
    table_rows = [line for line in (DOCS / PAGE).read_text().splitlines() if line.startswith("| ")]
    assert rows == len(table_rows) - 4  # without the four headings
