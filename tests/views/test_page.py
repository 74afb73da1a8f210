"""The head of a page allows only what is in the page, and texts from outside keep to themselves."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import unicodedata
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from jax_interp.views.page import content_policy, render_page
from jax_interp.views.report import render
from jax_interp.views.tokens import coloured, compared, isolated, isolated_token, token_cell

DIRECTIONS = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
TEXT = st.text(st.one_of(st.sampled_from("\x1b\x00\u202e\u2067\u200f<>&'\"[]"), st.characters()), max_size=20)


class Head(html.parser.HTMLParser):
    """The policy of a page, and the content of its styles and scripts, as a browser reads them."""

    def __init__(self, page: str):
        super().__init__()
        self.policy, self.inlined, self._open = "", [], None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if dict(attrs).get("http-equiv") == "Content-Security-Policy":
            self.policy = dict(attrs)["content"]
        self._open = tag if tag in ("style", "script") else None

    def handle_data(self, data):
        if self._open:
            self.inlined.append((self._open, data))
            self._open = None

    def directives(self) -> dict[str, list[str]]:
        return {name: values for name, *values in (part.split() for part in self.policy.split("; "))}


def of_content(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def is_harmful(c: str) -> bool:
    obeyed = unicodedata.category(c) in ("Cc", "Cs") or unicodedata.bidirectional(c) in DIRECTIONS
    return (obeyed and c not in "\n\t") or c in "\u200e\u200f\u061c"


def test_the_policy_allows_what_the_page_was_written_with_and_nothing_else(results):
    head = Head(render(results, [("FVU", "0.21", "text")]))
    allowed = head.directives()
    assert allowed["default-src"] == ["'none'"]
    for directive, element in (("script-src", "script"), ("style-src-elem", "style")):
        assert set(allowed[directive]) == {of_content(content) for kind, content in head.inlined if kind == element}
    assert [kind for kind, _ in head.inlined].count("script") == 1, "the search of the page"
    assert len(head.inlined) > 1, "figures have a style of their own"


def test_the_policy_allows_a_script_of_the_page_by_its_content():
    policy = content_policy("<script>let a = 1;</script><style>b {}</style>")
    assert f"script-src {of_content('let a = 1;')};" in policy
    assert f"style-src-elem {of_content('b {}')};" in policy


@given(text=TEXT)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_isolated_and_printable(text):
    pieces: list[Markup] = [
        isolated(text), isolated_token(text), token_cell(text, 0.5, text), coloured([text, text], [1.0, 0.0], 1.0, 0),
        compared([text, text], [text], 1),
    ]  # fmt: skip
    for piece in pieces:
        assert isinstance(piece, Markup)
        assert not any(map(is_harmful, piece))
        tags = Tags(piece)
        assert tags.left == []
        assert "bdi" in tags.seen or not text
        assert set(tags.seen) <= {"bdi", "code", "span"}


class Tags(html.parser.HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.left, self.seen = [], []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.left.append(tag)
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.left.pop() == tag


def test_plain_values_of_a_template_are_printable():
    page = render_page(
        "run_report.html.j2", title="\x1b]0;t\x07\u202ea", description="", config="a\n\tb\x00", records=[], k=None,
        sources=1, evaluation=None, evaluation_rows=(), values=(), members=(), columns=(), features=False,
        figures={"training": ""},
    )  # fmt: skip
    assert "\\x1b]0;t\\x07\\u202ea" in page
    assert "<pre>a\n\tb\\x00</pre>" in page
