"""The one exception type for mistakes that a user can make in a config, a command or a file."""

from __future__ import annotations


class UserError(ValueError):
    """What was asked for cannot be done as asked: an unknown key, a missing file, a bad site name, a wrong type.

    Its message is the whole answer: what was asked, what exists, the nearest match, what to do. The command line
    prints it as one line and exits with code 2; a traceback would only bury it.
    """
