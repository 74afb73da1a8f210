"""Text for a terminal. Control and direction characters are shown as escapes.

A terminal obeys some characters: ESC starts commands that write to the clipboard, change the title or hide text, and
direction marks change the order in which text is shown. Tokens, generated text, file content and names of files can
hold any of them. So everything that the package prints goes through this file, or through `views.tables`.
"""

from __future__ import annotations

import sys
import unicodedata
from typing import TextIO

ESCAPED = ("Cc", "Cf", "Cs", "Zl", "Zp")  # categories of Unicode: control, format, surrogate, line separators
JOINERS = "\u200c\u200d"  # of the category Cf. Words of some languages and many emoji need them


def printable(text: object, keep: str = "") -> str:
    r"""The text with every character that a terminal may obey as an escape: `\x1b`, `\u202e`.

    Args:
      text: any text, or an object, which is converted to text.
      keep: characters that are not changed, such as line ends.

    Example:
        printable("\x1b]52;c;aGk=\x07")  # '\\x1b]52;c;aGk=\\x07'
    """
    text, kept = str(text), keep + JOINERS
    if text.isascii() and text.isprintable():
        return text
    shown = lambda c: c in kept or unicodedata.category(c) not in ESCAPED
    return "".join(c if shown(c) else c.encode("unicode_escape").decode() for c in text)


def print_text(text: object = "", *, end: str = "\n", file: TextIO | None = None) -> None:
    """Print text like `print`, with escapes for all control characters except line ends and tabs.

    Characters that the encoding of the terminal lacks are escapes too.

    Args:
      text: the text.
      end: printed after it.
      file: where to print; None: stdout.
    """
    file = sys.stdout if file is None else file
    if file is None:  # a program without a terminal
        return
    encoding = getattr(file, "encoding", None) or "utf-8"
    shown = printable(text, keep="\n\t") + end
    file.write(shown.encode(encoding, "backslashreplace").decode(encoding))
    file.flush()
