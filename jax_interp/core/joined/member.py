"""The connection of one process to the hub of its run, and what the process does when the run ends elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from jax_interp.core.joined.hub import LOST
from jax_interp.core.joined.wire import Line
from jax_interp.core.terminal import print_text

VERDICT_SECONDS = 15.0  # the hub decides within this time; a process that hears nothing prints its own error
LINGER_SECONDS = 1.0  # process 0 stays so long after a verdict, so that the others receive it

_current: Member | None = None


class Ended(Exception):
    """The run ended because of another process. `code` is the exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def joined() -> Member | None:
    """The connection of this process, if it has joined others by `join_processes`."""
    return _current


class Member:
    """The connection of this process to the hub. A thread reads it, and ends the process if the run ends elsewhere."""

    def __init__(self, line: Line, index: int, count: int):
        self.index, self.count = index, count
        self._line = line
        self._lock = threading.Condition()
        self._verdict: dict[str, Any] | None = None
        self._bye = False
        self._ending = False  # the main thread reports an error of its own, and prints it when it has the verdict
        self._answers: dict[str, dict[str, Any]] = {}
        self._asked = 0
        self._checks = 0  # calls of `stops` that have returned
        self._frozen, self._stop_at, self._signum = False, None, None
        self._stop_sent = False
        self._describe: Callable[[], str] = lambda: ""  # before a training begins
        self._before_the_end: list[Callable[[], None]] = []

    def begin(self) -> None:
        """Start the thread."""
        global _current
        _current = self
        threading.Thread(target=self._read, name="connection to the hub of the processes", daemon=True).start()

    # What a run tells

    def stands(self, describe: Callable[[], str]) -> None:
        """From now on `describe()` says which step is safe and how to go on, if the run ends elsewhere."""
        self._describe = describe

    @contextlib.contextmanager
    def before_the_end(self, act: Callable[[], None]) -> Iterator[None]:
        """Within the block, `act()` is called if this process ends because the run hangs."""
        self._before_the_end.append(act)
        try:
            yield
        finally:
            self._before_the_end.remove(act)

    # Agreement

    def exchange(self, what: str, value: str) -> list[str]:
        """The values of all processes, in their order. Every process calls this in the same order."""
        self._asked += 1
        name = f"{self._asked} {what}"
        self._line.send(all=name, value=value)
        with self._lock:
            self._lock.wait_for(lambda: name in self._answers)
            return self._answers.pop(name)["values"]

    def stops(self, signum: int | None) -> int | None:
        """Whether the run stops here. Every process calls this equally often, for example after each step.

        Args:
          signum: the signal that asked this process to stop, if one did.

        Returns:
          The signal that asked a process to stop. None: the run goes on. All processes get the same answer to the same
          call, at most one call after the request.
        """
        if signum is not None and not self._stop_sent:
            self._stop_sent = True
            self._line.send(stop=signum)
        with self._lock:
            self._lock.wait_for(lambda: not self._frozen)
            self._checks += 1
            if self._stop_at is None or self._checks < self._stop_at:
                return None
            self._stop_at, self._stop_sent = None, False
            return self._signum

    # Ending

    def end(self, message: str, code: int, *, follows: bool, how: str = "failed") -> bool:
        """This process fails. Tell the others, and hear whether it is to print its message.

        Args:
          message: the error.
          code: the exit code.
          follows: the error is probably the consequence of the end of another process.
          how: "failed", or "stopped" if the run was asked to stop.

        Returns:
          True: print the message. False: another process prints the same message.

        Raises:
          Ended: another process was the cause.
        """
        with self._lock:
            self._ending = True
        self._line.send(end={"message": message, "code": code, "follows": follows, "how": how})
        with self._lock:
            self._lock.wait_for(lambda: self._verdict is not None, timeout=VERDICT_SECONDS)
            verdict = self._verdict
        if self.index == 0:
            time.sleep(LINGER_SECONDS)
        if verdict is None:
            return True
        if self.index not in verdict["who"]:
            raise Ended(self.explain(verdict), verdict["code"])
        return self.index == min(verdict["who"])

    def finish(self) -> None:
        """Wait until every process has come to its end."""
        self._line.send(done=True)
        with self._lock:
            self._lock.wait_for(lambda: self._bye)

    def hung(self, message: str) -> None:
        """This process waits for something that does not happen. The hub ends the run."""
        self._line.send(hung=message)

    def explain(self, verdict: dict[str, Any]) -> str:
        """What this process says about an end that happened elsewhere."""
        who = ", ".join(map(str, verdict["who"]))
        text = {
            "lost": f"process {who} of {self.count} ended without a word: it was killed, its memory was full, or its "
            "machine is gone",
            "hung": verdict["message"],
            "refused": verdict["message"],
        }.get(verdict["how"], f"process {who} of {self.count} stopped: {verdict['message']}")
        if verdict["how"] == "refused":
            return text
        return f"{text.rstrip('.')}. Process {self.index} ends too. {self._describe()}".rstrip()

    # The thread

    def _read(self) -> None:
        while True:
            messages = self._line.receive()
            if messages is None:
                if not self._bye:
                    self._decided({"how": "lost", "who": [0], "code": LOST, "message": ""})
                return
            for message in messages:
                self.take(message)

    def take(self, message: dict[str, Any]) -> None:
        if "ping" in message:
            self._line.send(pong=True)
        elif "verdict" in message:
            self._decided(message["verdict"])
        with self._lock:
            if "answer" in message:
                self._answers[message["answer"]] = message
            elif "freeze" in message:
                self._frozen = True
                self._line.send(at=self._checks)
            elif "stop_at" in message:
                self._stop_at, self._signum, self._frozen = message["stop_at"], message["signum"], False
            elif "bye" in message:
                self._bye = True
            self._lock.notify_all()

    def _decided(self, verdict: dict[str, Any]) -> None:
        with self._lock:
            if self._verdict is not None:
                return
            self._verdict = verdict
            self._lock.notify_all()
            if self._ending:  # the main thread prints and ends
                return
        if verdict["how"] == "hung":
            for act in self._before_the_end:
                with contextlib.suppress(Exception):
                    act()
        with contextlib.suppress(Exception):
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            if sys.stderr.isatty():
                os.write(2, b"\x1b[?25h\n")  # a progress bar has hidden the cursor
            print_text(f"jax-interp: {self.explain(verdict)}", file=sys.stderr)
        if self.index == 0:
            time.sleep(LINGER_SECONDS)
        os._exit(verdict["code"])
