"""SIGINT and SIGTERM as stop requests: the run finishes its step, saves, and stops."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from jax_interp.core.joined import joined


class Interrupted(Exception):
    """The run stopped because of a signal, after saving its state. `exit_code` is 128 + signal, as in a shell."""

    def __init__(self, step: int, steps: int, signum: int, directory: Path | None):
        how = f"saved in {directory}; run the same command again to go on from there" if directory else "not saved"
        super().__init__(f"stopped after step {step} of {steps}, {how}")
        self.step, self.signum, self.exit_code = step, signum, 128 + signum


class StopRequest:
    """Whether a signal has asked the run to stop, and which signal."""

    signum: int | None = None

    def agreed(self, exchange: bool) -> bool:
        """Whether to stop now. All processes of a run call this equally often, and stop at the same call.

        Processes that have joined by `join_processes` agree without a collective, at the next call after a signal.

        Args:
          exchange: processes that have joined by `jax.distributed.initialize` alone exchange their requests now, by a
            collective. It is the same in every process.
        """
        member = joined()
        if member is not None:
            agreed = member.stops(self.signum)
            self.signum = self.signum if agreed is None else agreed
            return agreed is not None
        asked = self.signum is not None
        if jax.process_count() == 1:
            return asked
        from jax.experimental import multihost_utils

        return exchange and bool(np.any(multihost_utils.process_allgather(np.asarray(asked))))


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within the block the first SIGINT or SIGTERM only sets a stop request. A second signal has its usual effect.

    Python handles signals in the main thread only. In another thread the request is never set.
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
        # Not by print: the signal may come while a line is being printed, and a print within a print raises.
        os.write(2, b"stopping after this step; press Ctrl-C again to stop now without saving\n")

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.getsignal(number) or signal.SIG_DFL
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
