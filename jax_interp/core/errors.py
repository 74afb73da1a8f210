"""The one exception type for mistakes that a user can make in a config, a command or a file."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user asked for: an unknown key, a missing file, a wrong site name, a wrong type.

    The message is the complete answer: what was asked, what exists, the nearest match, what to do. The command line
    prints it as one line and exits with code 2, without a traceback.
    """
