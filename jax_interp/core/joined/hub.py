"""A thread of process 0 that every process of a run is connected to. It finds out how the run ends.

It waits until all processes have joined, and compares what they say about themselves. Afterwards it notices which
process ended, and tells the others. It also compares values, passes values of process 0 on, and finds the step after
which all processes stop.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jax_interp.core.joined.wire import GREETING, Line

PING_SECONDS = 5.0
SAME_ERROR_SECONDS = 3.0  # processes that fail together report within this time, and then one of them prints
CAUSE_SECONDS = 10.0  # a collective fails after another process has ended: its end should be known by then
ANSWER_SECONDS = 5.0  # a process that runs answers a question within this time

LOST, REFUSED, FAILED, HUNG = 75, 2, 1, 76


@dataclass
class _Member:
    line: Line
    index: int | None = None
    about: dict[str, Any] = field(default_factory=dict)
    done: bool = False
    heard: float = field(default_factory=time.monotonic)


class Hub(threading.Thread):
    """The hub of one run.

    Args:
      listener: the socket that the processes connect to.
      count: how many processes there are.
      join_seconds: how long to wait until all have joined.
      silent_seconds: a process that says nothing for so long is not running.
      start: called when all have joined. It returns what they need to go on.
    """

    def __init__(
        self, listener: socket.socket, count: int, join_seconds: float, silent_seconds: float,
        start: Callable[[], dict[str, Any]],
    ):  # fmt: skip
        super().__init__(name="hub of the processes", daemon=True)
        self.listener, self.count, self.start_run = listener, count, start
        self.silent_seconds = silent_seconds
        self.join_seconds = join_seconds
        self.join_by = time.monotonic() + join_seconds
        self.members: dict[socket.socket, _Member] = {}
        self.running = False
        self.verdict: dict[str, Any] | None = None
        self.reports: dict[int, dict[str, Any]] = {}
        self.decide_at: float | None = None
        self.asked: tuple[float, int, str] | None = None
        self.next_ping = 0.0
        self.values: dict[str, dict[int, str]] = {}
        self.stop: dict[str, Any] | None = None

    def run(self) -> None:
        """Serve until the process ends."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.listener, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select(timeout=0.2):
                    if key.fileobj is self.listener:
                        with contextlib.suppress(OSError):
                            connection, _ = self.listener.accept()
                            self._greet(connection)
                            selector.register(connection, selectors.EVENT_READ)
                    else:
                        self._read(key.fileobj, selector)  # type: ignore[arg-type]  (only sockets are registered)
                self._look_at_the_clock()

    def _greet(self, connection: socket.socket) -> None:
        member = _Member(Line(connection))
        self.members[connection] = member
        member.line.send(**GREETING)

    def _read(self, connection: socket.socket, selector: selectors.BaseSelector) -> None:
        member = self.members[connection]
        messages = member.line.receive(1.0)
        if messages is None:
            selector.unregister(connection)
            del self.members[connection]
            member.line.close()
            self._left(member)
            return
        member.heard = time.monotonic()
        for message in messages:
            for name, handle in _HANDLERS.items():
                if name in message:
                    handle(self, member, message)

    def _joined(self) -> dict[int, _Member]:
        return {member.index: member for member in self.members.values() if member.index is not None}

    def _send_all(self, **message: Any) -> None:
        for _, member in sorted(self._joined().items(), reverse=True):  # process 0 last: its end is the end of the hub
            member.line.send(**message)

    # Joining

    def _join(self, member: _Member, message: dict[str, Any]) -> None:
        about, known = message["join"], self._joined()
        index, count = about["index"], about["count"]
        if self.running or self.verdict:
            why = "this run has all its processes already: choose another port for another run"
            member.line.send(verdict={"how": "refused", "who": [index], "code": REFUSED, "message": why})
            return
        member.index, member.about = index, about
        if count != self.count:
            self._refuse(
                f"process 0 was started with --processes {self.count}, process {index} on {about['host']} with "
                f"--processes {count}: give the same number everywhere"
            )
        elif index in known:
            member.index = None
            other = known[index].about
            self._refuse(
                f"two processes have the number {index} ({_place(other)} and {_place(about)}): number the processes "
                f"from 0 to {self.count - 1}, or choose another port if they belong to two runs",
                also=member,
            )
        elif different := self._difference():
            self._refuse(different)
        elif len(self._joined()) == self.count:
            self.running = True
            self._send_all(go=self.start_run())

    def _difference(self) -> str | None:
        """How a process differs from process 0. None: not at all, as far as they have joined."""
        known = self._joined()
        if 0 not in known:
            return None
        first = known[0].about["facts"]
        for index, member in sorted(known.items()):
            mine = member.about["facts"]
            for name in sorted(first.keys() | mine.keys()):
                if first.get(name) != mine.get(name):
                    return (
                        f"process {index} on {member.about['host']} differs from process 0: {name} is "
                        f"{mine.get(name, 'missing')} there, and {first.get(name, 'missing')} in process 0. Start the "
                        "same command with the same files and packages in every process"
                    )
        return None

    def _refuse(self, message: str, also: _Member | None = None) -> None:
        self._judge("refused", [], REFUSED, message)
        if also is not None:
            also.line.send(verdict=self.verdict)

    # Ending

    def _judge(self, how: str, who: list[int], code: int, message: str) -> None:
        """The run ends. The first verdict counts."""
        if self.verdict is None:
            self.verdict = {"how": how, "who": who, "code": code, "message": message}
            self._send_all(verdict=self.verdict)

    def _left(self, member: _Member) -> None:
        if member.index is None or member.done or member.index in self.reports:
            return
        if self.running:
            self._judge("lost", [member.index], LOST, "")
        else:
            text = f"process {member.index} ({_place(member.about)}) left before all processes had joined"
            self._refuse(text)

    def _end(self, member: _Member, message: dict[str, Any]) -> None:
        if member.index is None:
            return
        self.reports[member.index] = message["end"]
        if self.verdict is not None:
            member.line.send(verdict=self.verdict)
            return
        now = time.monotonic()
        wait = now + (CAUSE_SECONDS if message["end"]["follows"] else SAME_ERROR_SECONDS)
        self.decide_at = wait if self.decide_at is None else min(self.decide_at, wait)
        causes = [report for report in self.reports.values() if not report["follows"]]
        if len(causes) == self.count:
            self._decide()

    def _decide(self) -> None:
        causes = {i: report for i, report in self.reports.items() if not report["follows"]} or self.reports
        first = causes[min(causes)]
        same = sorted(i for i, report in causes.items() if report == first)
        self._judge(first["how"], same, first["code"], first["message"])

    def _done(self, member: _Member, message: dict[str, Any]) -> None:
        member.done = True
        known = self._joined()
        if len(known) == self.count and all(other.done for other in known.values()):
            self._send_all(bye=True)

    def _hung(self, member: _Member, message: dict[str, Any]) -> None:
        """A process waits for a step that does not end. The processes that do not answer now are the likely cause."""
        if self.verdict is None and self.asked is None and member.index is not None:
            self.asked = (time.monotonic(), member.index, message["hung"])
            self._send_all(ping=True)

    def _name_the_silent(self, asked: float, by: int, message: str) -> None:
        silent = [str(index) for index, member in sorted(self._joined().items()) if member.heard < asked]
        why = f"; process {', '.join(silent)} does not answer: it was stopped, or its machine is overloaded"
        self._judge("hung", [by], HUNG, message + (why if silent else ""))

    # Agreement

    def _all(self, member: _Member, message: dict[str, Any]) -> None:
        """Collect a value of all processes, and answer when all have sent theirs."""
        name = message["all"]
        found = self.values.setdefault(name, {})
        found[member.index or 0] = message["value"]
        if len(found) == self.count:
            del self.values[name]
            self._send_all(answer=name, values=[found[index] for index in range(self.count)])

    def _stop(self, member: _Member, message: dict[str, Any]) -> None:
        """A process was asked to stop. All of them say how far they are, and wait for the answer."""
        if self.stop is None:
            self.stop = {"signum": message["stop"], "reached": {}}
            self._send_all(freeze=True)

    def _at(self, member: _Member, message: dict[str, Any]) -> None:
        if self.stop is None or member.index is None:
            return
        reached = self.stop["reached"]
        reached[member.index] = message["at"]
        if len(reached) == self.count:
            self._send_all(stop_at=max(reached.values()) + 1, signum=self.stop["signum"])
            self.stop = None

    def _look_at_the_clock(self) -> None:
        now, known = time.monotonic(), self._joined()
        if not self.running and self.verdict is None and now > self.join_by:
            missing = ", ".join(str(i) for i in range(self.count) if i not in known)
            self._refuse(
                f"{len(known)} of {self.count} processes joined within {self.join_seconds:.0f} s; missing: {missing}. "
                "Start the same command there, with the same --coordinator and --processes"
            )
        if self.decide_at is not None and now > self.decide_at:
            self.decide_at = None
            self._decide()
        if self.asked is not None and now > self.asked[0] + ANSWER_SECONDS:
            self._name_the_silent(*self.asked)
            self.asked = None
        if self.running and now > self.next_ping:
            self.next_ping = now + PING_SECONDS
            self._send_all(ping=True)
        for index, member in known.items():
            if self.running and not member.done and now - member.heard > self.silent_seconds:
                said = f"process {index} has not answered for {self.silent_seconds:.0f} s: it was stopped, or its "
                self._judge("hung", [index], HUNG, said + "machine is overloaded")


_HANDLERS: dict[str, Callable[[Hub, _Member, dict[str, Any]], None]] = {
    "join": Hub._join,
    "end": Hub._end,
    "done": Hub._done,
    "hung": Hub._hung,
    "all": Hub._all,
    "stop": Hub._stop,
    "at": Hub._at,
}


def _place(about: dict[str, Any]) -> str:
    return f"process id {about['pid']} on {about['host']}"
