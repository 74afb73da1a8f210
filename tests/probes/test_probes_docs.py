"""The code of docs/probes.md runs as it stands and prints what the page says it prints."""

from __future__ import annotations

import pages


def test_the_page_prints_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the page writes a file
    names = pages.run("probes.md", same)
    assert names["accuracy"].max() == 1.0  # `def` and `class` are easy to tell apart


def same(printed: str, wanted: str) -> None:
    assert printed == wanted
