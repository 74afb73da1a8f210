"""The page: whatever text is in the results, it is text; and nothing is fetched."""

from __future__ import annotations

import html.parser
import re

import jinja2
import pytest

from jax_interp.views.page import duration, environment, percent, significant
from jax_interp.views.report import render
from jax_interp.views.tokens import coloured, compared, spaced, token_cell


class Tags(html.parser.HTMLParser):
    """Counts elements and checks that they are closed in the order in which they were opened."""

    VOID = frozenset({"meta", "path", "use", "rect", "line", "br", "input"})

    def __init__(self):
        super().__init__()
        self.open, self.counts = [], {}

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


ROWS = [("FVU", "0.21", "of <b>variance</b>"), ("self-check", "exact", "to the bit")]


def test_text_from_outside_stays_text(results, evil):
    page = render(results, ROWS)
    assert evil not in page
    assert page.count("<script") == 1, "the search of the page"
    assert page.count("&lt;script&gt;") > 10
    assert "&lt;b&gt;variance" in page


def test_the_page_is_whole_and_fetches_nothing(results):
    page = render(results, ROWS)
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.counts["svg"] == 5
    assert tags.counts["section"] == 8
    assert not {"link", "img", "iframe", "object"} & set(tags.counts)
    addresses = set(re.findall(r"""(?:href|src)=["']([^"'#][^"']*)""", page))
    assert addresses == set()
    assert set(re.findall(r"https?://[^\s\"']+", page)) <= {
        "http://www.w3.org/1999/xlink",
        "http://www.w3.org/2000/svg",
    }


def test_what_it_says(results):
    page = render(results, ROWS)
    for said in (
        "95.0 %",
        "21.0 %",
        "2.123 nats per token",
        "1.23 bits per byte",
        "1 min 18 s",
        "does not prefer the right answer",
    ):
        assert said in page, said
    results["model"]["results"] = None
    results["patching"]["preferred"] = True
    without = render(results, ROWS)
    assert "nats the first time" not in without
    assert "does not prefer the right answer" not in without


def test_a_name_that_is_missing_is_an_error(results):
    del results["provenance"]["command"]
    with pytest.raises(jinja2.UndefinedError, match="command"):
        render(results, ROWS)
    assert environment().autoescape is True


def test_contexts(evil):
    out = coloured(["a", evil, "b"], [0.0, 4.0, 2.0], 4.0, 1)
    assert evil not in out
    assert 'class="t peak" style="--a:1.00" title="4"' in out
    assert "--a:0.50" in out
    assert out.count("style=") == 2, "what does not fire has no colour"
    assert coloured(["a"], [0.0], 0.0, 0).count("style=") == 0


def test_a_share_outside_its_range_is_cut():
    assert "--a:1.00" in token_cell("a", 7.0, "7")
    assert "style" not in token_cell("a", -1.0, "-1")


def test_texts_are_compared_from_the_first_difference():
    out = compared(["p", "a", "b", "c"], ["p", "a", "x", "c"], 1)
    assert out == '<bdi class="prompt">p</bdi><bdi class="same">a</bdi><bdi class="other">bc</bdi>'
    assert compared(["p", "a"], ["p", "a", "b"], 1) == '<bdi class="prompt">p</bdi><bdi class="same">a</bdi>'
    assert compared(["p", "a", "b"], ["p", "a"], 1).endswith('<bdi class="other">b</bdi>')
    assert compared(["p", "<"], None, 1) == '<bdi class="prompt">p</bdi><bdi class="same">&lt;</bdi>'


def test_long_runs_of_spaces_are_counted():
    assert spaced("⏎············") == "⏎·₁₂"
    assert spaced("⏎····") == "⏎····"


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, "0.0 %"), (0.9731, "97.3 %"), (0.000123, "0.012 %"), (None, "–"), (float("nan"), "–")]
)
def test_percent(value, expected):
    assert percent(value) == expected


def test_other_figures():
    assert significant(3.14159) == "3.14"
    assert significant(123456.0) == "123,000"
    assert significant(None) == "–"
    assert duration(59.6) == "1 min 0 s"
    assert duration(12) == "12 s"
