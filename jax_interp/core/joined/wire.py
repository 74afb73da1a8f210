"""JSON values over a socket, one on each line."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

from jax_interp.core.json_files import JsonError, parse_json

LONGEST = 1 << 22  # bytes of one line; a longer one is not from this package
SEND_SECONDS = 5.0  # a process that takes no message for so long is not running, and its messages are dropped
GREETING = {"jax_interp": "processes", "version": 1}

# The kernel finds out that a machine is gone: after 15 s of silence it asks every 5 s, and gives up after 5 questions.
# A process that is only slow, or stopped, does not lose its connection by this.
_ALIVE = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 5), ("TCP_USER_TIMEOUT", 40_000))


class Line:
    """One end of a connection."""

    def __init__(self, connection: socket.socket):
        self.socket = connection
        self._rest = b""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_NODELAY", 1), *_ALIVE):
            with contextlib.suppress(OSError, AttributeError):  # an operating system may lack one of them
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, **message: Any) -> bool:
        """Send one message. Returns whether the other end took it."""
        self.socket.settimeout(SEND_SECONDS)
        try:
            self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def receive(self, seconds: float | None = None) -> list[dict[str, Any]] | None:
        """Wait for messages. An empty list: only a part of one has come. None: the connection has ended.

        Raises:
          TimeoutError: nothing came within `seconds`.
        """
        self.socket.settimeout(seconds)
        try:
            piece = self.socket.recv(1 << 16)
        except TimeoutError:
            raise
        except OSError:
            return None
        if not piece:
            return None
        *whole, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > LONGEST:
            return None
        try:
            found = [parse_json(line, "a message", nonfinite=True) for line in whole if line.strip()]
        except JsonError:
            return None
        return [message for message in found if isinstance(message, dict)]

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self.socket.close()
