"""Read a command's options by tyro, and turn each tyro error into one line.

tyro prints an error as a box of several lines. The first paragraph of the box is the message, and a later one may
suggest the nearest option.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from jax_interp.core.errors import UserError
from jax_interp.core.terminal import print_text

Options = TypeVar("Options")


def parse(
    kind: type[Options], argv: Sequence[str], *, command: str, usage: str = "", default: Options | None = None
) -> Options:
    """Read a command's options.

    Args:
      kind: the dataclass of the options.
      argv: the arguments after the command, without the arguments that were already read.
      command: the command's name, for the help and for messages.
      usage: the arguments that were already read, such as "CONFIG", for the help.
      default: the values of options that are not given; None: the defaults of `kind`.

    Returns:
      The options.

    Raises:
      UserError: an option is unknown, has the wrong type, or lacks its value. The message is one line.
      SystemExit: `--help` was printed.
    """
    import tyro

    prog = " ".join(part for part in ("jax-interp", command, usage) if part)
    defaults: dict[str, Any] = {} if default is None else {"default": default}
    wants_help = any(argument in ("-h", "--help") for argument in argv)
    stderr, shown = io.StringIO(), _Help()
    try:
        with (
            contextlib.nullcontext() if wants_help else _wide_terminal(),
            contextlib.redirect_stderr(stderr),
            contextlib.redirect_stdout(shown),
        ):
            return tyro.cli(kind, args=list(argv), prog=prog, config=(tyro.conf.AvoidSubcommands,), **defaults)
    except SystemExit as stop:
        if not stop.code:
            shown.print()
            raise
        raise UserError(f"{one_line(stderr.getvalue())} (jax-interp {command} --help lists the options)") from None


def one_line(box: str) -> str:
    """The message in an error box of tyro, and the option that the box suggests."""
    paragraphs: list[list[str]] = [[]]
    for row in (row.strip("│| ") for row in box.splitlines()):
        if re.fullmatch(r"[╭╰+].*|[─-]*", row):  # the frame, a rule inside it, an empty row
            paragraphs.append([])
        else:
            paragraphs[-1].append(row)
    paragraphs = [p for p in paragraphs if p]
    if not box.lstrip().startswith(("╭", "+")):  # without a frame, where the terminal has none, the title is a row
        paragraphs = paragraphs[1:]
    if not paragraphs:
        return "the arguments could not be read"
    message = paragraphs[0][0].rstrip(".")
    if message.startswith("Missing from") and len(paragraphs[0]) > 1:
        return f"missing argument: {paragraphs[0][1]}"
    for pattern, replacement in REWORDED:
        message = re.sub(pattern, replacement, message)
    usage = next((p[1].split() for p in paragraphs if len(p) > 1 and p[0].startswith("Argument helptext")), [])
    message = message.replace("{kind}", " ".join(usage[1:]) or "a value of its type")
    suggestions = (p[1] for p in paragraphs if len(p) > 1 and re.match("Perhaps you meant|Arguments similar", p[0]))
    near = next(suggestions, None)
    return f"{message[:1].lower()}{message[1:]}" + (f"; did you mean {near.split()[0].rstrip(',')}?" if near else "")


REWORDED = (  # tyro's messages, and what is printed in their place
    (r"^Unrecognized options: (-[^,]*).*", r"unknown option \1"),
    (r"^Unrecognized options: ([^,]*).*", r"\1 is one argument too many"),
    (r"^Error parsing ", ""),
    (r"invalid literal for int\(\) with base 10: (.*)", r"\1 is not an int"),
    (r"could not convert string to float: (.*)", r"\1 is not a float"),
    (r"Could not find valid parse for arguments: \[(.*)\]", r"\1 is not {kind}"),
    (r"no type matching (\S+) could be instantiated from \[(.*)\]", r"\2 is not \1"),
)


class _Help(io.StringIO):
    """tyro's help before it is printed. It has colours if stdout is a terminal, and quotes values of config files."""

    COLOUR = re.compile(r"(\x1b\[(?:[0-4]|22|39|[39][0-7])m)")  # no code that hides text

    def __init__(self) -> None:
        super().__init__()
        self._is_terminal = sys.stdout.isatty()

    def isatty(self) -> bool:
        return self._is_terminal

    def print(self) -> None:
        """Print the help on stdout, with escapes for all control characters except colours."""
        text = self.getvalue()
        parts = self.COLOUR.split(text) if self._is_terminal else [text]
        for i, part in enumerate(parts):
            if i % 2:
                sys.stdout.write(part)
            else:
                print_text(part, end="")


@contextlib.contextmanager
def _wide_terminal() -> Iterator[None]:
    """Make the terminal so wide that tyro does not break words."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "1000"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
