"""The code of docs/toys.md runs and prints what the page shows."""

from __future__ import annotations

import pages
import pytest

from jax_interp.toys import TOYS


@pytest.mark.slow
def test_every_block_prints_what_the_page_shows(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_INTERP_CACHE", str(tmp_path))
    monkeypatch.setattr(TOYS, "_variants", dict(TOYS._variants))  # the page registers a toy of its own
    compared = []

    def same(printed: str, wanted: str) -> None:
        assert printed.split() == wanted.split()
        compared.append(wanted)

    pages.run("toys.md", same)
    assert len(compared) == (pages.DOCS / "toys.md").read_text().count("```text")
