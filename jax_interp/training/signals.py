"""SIGINT and SIGTERM as a request: finish the step, save, stop."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator


class StopRequest:
    """Whether a signal has asked the run to stop, and which one."""

    signum: int | None = None

    def __bool__(self) -> bool:
        return self.signum is not None


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within the block the first SIGINT or SIGTERM is noted instead of raised; a second one acts at once.

    Signals reach Python's main thread only: elsewhere the request is simply never set.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {}

    def note(signum: int, frame: object) -> None:
        request.signum = signum
        for number, handler in previous.items():
            signal.signal(number, handler)
        print("stopping after this step; once more to stop at once, without saving", file=sys.stderr)

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.getsignal(number) or signal.SIG_DFL
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
