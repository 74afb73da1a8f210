"""A relay of TCP connections: `python relay.py HOST PORT`. It prints its own port, and ends when its stdin is closed.

JAX's client in each process reaches the coordinator through a relay of its own. If the coordinator dies, the relay
keeps the client's connection open. Otherwise the client would notice at once and abort its process, with a stack trace
and before Python could say anything. The relay is a program and not a thread, because JAX may hold the lock of the
Python interpreter while it waits for the coordinator. It imports nothing but the standard library.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time

RETRY_SECONDS = 0.2


def pump(source: socket.socket, sink: socket.socket, closes: bool) -> None:
    """Copy bytes from `source` to `sink` until `source` ends. Then `sink` is closed, if `closes`."""
    with contextlib.suppress(OSError):
        while piece := source.recv(1 << 16):
            with contextlib.suppress(OSError):  # the coordinator is gone: the client must not notice
                sink.sendall(piece)
    if closes:
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


def serve(client: socket.socket, host: str, port: int) -> None:
    """Connect a client of this process with the coordinator."""
    while True:
        try:
            coordinator = socket.create_connection((host, port), timeout=10)
            break
        except OSError:  # it starts a moment later
            time.sleep(RETRY_SECONDS)
    coordinator.settimeout(None)
    for connection in (client, coordinator):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=pump, args=(client, coordinator, True), daemon=True).start()
    pump(coordinator, client, False)


def accept(listener: socket.socket, host: str, port: int) -> None:
    """Accept clients for ever."""
    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve, args=(client, host, port), daemon=True).start()


def main() -> None:
    """Relay until the process that started this one closes the pipe or ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # they are for the run, which still needs its relay
        signal.signal(number, signal.SIG_IGN)
    host, port = sys.argv[1], int(sys.argv[2])
    listener = socket.create_server(("127.0.0.1", 0))
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    threading.Thread(target=accept, args=(listener, host, port), daemon=True).start()
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
