"""The page about tasks runs as it stands."""

from __future__ import annotations

from pages import run


def test_the_page_about_tasks():
    names = run("circuit-tasks.md")
    assert len(names["pair"].differ) == 1
    assert (names["clean"] > 5).all()
