"""Run the HTTP interface on a socket until a signal ends it."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn

from jax_interp.core.errors import UserError
from jax_interp.steering.serving.http.app import Front, app_of

GRACE_S = 2
"""How long open connections may go on after the signal to end."""


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
      host: an address of this machine.
      port: the port; 0: any free port.

    Raises:
      UserError: the address does not exist, or the port is taken or not allowed.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen on {host} port {port}: {reason}") from None


def run_server(front: Front, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
      front: the interface.
      listening: the socket, from `bound_socket`.
      ready: called when requests are answered.

    Raises:
      KeyboardInterrupt: after SIGINT, when everything has ended.
    """

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

    config = uvicorn.Config(
        app_of(front),
        log_level="error",
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=GRACE_S,
        limit_concurrency=front.limits.waiting * 4 + 64,
        server_header=False,
    )
    Server(config).run(sockets=[listening])
