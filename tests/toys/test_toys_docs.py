"""The code of docs/toys.md runs as it stands, block after block, and prints what the page says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import jax
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "toys.md"


@pytest.mark.slow
def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_INTERP_CACHE", str(tmp_path))
    names: dict = {}
    blocks = re.findall(r"```(python|text)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    printed = io.StringIO()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as a reader would run it
        for kind, block in blocks:
            if kind == "python":
                printed = io.StringIO()
                with contextlib.redirect_stdout(printed):
                    exec(compile(block, str(PAGE), "exec"), names)
            else:
                assert printed.getvalue().split() == block.split(), block
