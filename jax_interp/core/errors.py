"""The one exception type for mistakes that a user can make in a config, a command or a file."""

from __future__ import annotations

from jax_interp.core.terminal import printable


class UserError(ValueError):
    """A mistake of the user: an unknown key, a missing file, a wrong site name, a wrong type.

    The message says what was asked, what exists, the nearest match, and what to do. The command line prints the message
    on one line and exits with code 2, without a traceback.

    The text of the message has escapes for control characters, because it may quote a file, a token or a name.
    """

    def __str__(self) -> str:
        return printable(super().__str__(), keep="\n\t")
