"""What a terminal would obey is shown, and all other text is unchanged."""

from __future__ import annotations

import ast
import io
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import jax_interp
from jax_interp.core.errors import UserError
from jax_interp.core.terminal import print_text, printable

DIRECTIONS = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}  # Unicode's explicit direction marks
MARKS = "\u200e\u200f\u061c"  # its implicit ones
HARMFUL = st.sampled_from(
    [*map(chr, range(32)), "\x7f", "\x9b", "\x9d", "\u202e", "\u2066", "\ud800", "\U000e0041", "["]
)


def is_obeyed(c: str) -> bool:
    """Whether a terminal may do something else than show the character: an oracle from Unicode's tables."""
    return unicodedata.category(c) in ("Cc", "Cs") or unicodedata.bidirectional(c) in DIRECTIONS or c in MARKS


@given(st.lists(st.one_of(HARMFUL, st.characters())).map("".join))
def test_nothing_that_a_terminal_obeys_is_left(text):
    assert not any(map(is_obeyed, printable(text)))
    assert not any(is_obeyed(c) for c in printable(text, keep="\n\t") if c not in "\n\t")
    # In Python, the escapes are the characters again.
    escaped = printable(text.replace("\\", ""))
    assert escaped.encode("latin-1", "backslashreplace").decode("unicode_escape") == text.replace("\\", "")


@given(st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"])))
def test_text_is_unchanged(text):
    assert printable(text) == text


def test_joined_letters_and_emoji_are_unchanged():
    for text in ("می\u200cخواهم", "👩\u200d🔬", "שלום"):
        assert printable(text) == text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_with_few_characters(encoding):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, newline="")
    print_text("a → \x1b[2J\ud800\n\tb", file=file)
    shown = raw.getvalue().decode(encoding)
    assert shown == f"a {'→' if encoding == 'utf-8' else chr(92) + 'u2192'} \\x1b[2J\\ud800\n\tb\n"


def test_the_package_prints_through_this_file_only():
    """A bare `print` would show tokens, names and file content as they are."""
    package = Path(jax_interp.__file__).parent
    calls = [
        f"{file.relative_to(package)}:{node.lineno}"
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert calls == []


def test_the_message_of_an_error_is_printable_too():
    error = UserError("no token '\x1b]52;c;aGk=\x07' here\n\tsee \u202ethere")
    assert str(error) == "no token '\\x1b]52;c;aGk=\\x07' here\n\tsee \\u202ethere"
