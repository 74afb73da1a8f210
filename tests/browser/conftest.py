"""A browser for all tests of this folder, and a page of features whose content is known."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chromium import Chromium, executable
from known_page import known_page, written

from jax_interp.views.feature_page import FeaturePage


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """A headless Chromium. Without one, the tests are skipped."""
    if executable() is None:
        pytest.skip("there is no Chromium on PATH (Debian: apt-get install chromium)")
    opened = Chromium(tmp_path_factory.mktemp("profile"))
    opened.resize(1300, 1000)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def content() -> FeaturePage:
    """The content of the page."""
    return known_page()


@pytest.fixture(scope="session")
def page(content: FeaturePage, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the page of `content`."""
    return written(content, tmp_path_factory.mktemp("page") / "features.html")
