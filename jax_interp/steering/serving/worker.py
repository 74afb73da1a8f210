"""`Worker`: one thread that runs the engine for requests that arrive at any time."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable

from jax_interp.core.errors import UserError
from jax_interp.steering.serving.engine import Engine, Event, Seats, check, empty_seats, seated, stepped, without
from jax_interp.steering.serving.request import Request

Listener = Callable[[Event], None]


class Busy(UserError):
    """Too many requests are waiting."""


class Stopped(UserError):
    """The server has stopped, or its engine has failed."""


class Worker:
    """A thread that runs the engine. All methods can be called from any thread.

    Args:
      engine: the engine.
      most_waiting: the most requests that wait for a row.
    """

    def __init__(self, engine: Engine, most_waiting: int):
        self.engine, self.most_waiting = engine, most_waiting
        self._ids = itertools.count()
        self._changed = threading.Condition()
        self._waiting: deque[tuple[int, Request]] = deque()
        self._listeners: dict[int, Listener] = {}
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="jax-interp engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread. Requests that run or wait end with an error."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def is_running(self) -> bool:
        """Whether requests are served."""
        return self._thread.is_alive() and not self._stopped

    def submit(self, request: Request, listener: Listener) -> int:
        """Let a request wait for a row. Returns its id.

        Args:
          request: the request.
          listener: called with each event of the request, in the thread of the engine. It must return at once.

        Raises:
          UserError: the server cannot take this request.
          Busy: too many requests are waiting.
          Stopped: the server does not run.
        """
        check(self.engine, request)
        with self._changed:
            if not self.is_running:
                raise Stopped("the server does not run any more")
            if len(self._waiting) >= self.most_waiting:
                raise Busy(f"{len(self._waiting)} requests are waiting already: try again later")
            id = next(self._ids)
            self._waiting.append((id, request))
            self._listeners[id] = listener
            self._changed.notify()
            return id

    def cancel(self, id: int) -> None:
        """Forget a request. Its row becomes free. Nothing happens if it has ended."""
        with self._changed:
            self._listeners.pop(id, None)
            self._waiting = deque(one for one in self._waiting if one[0] != id)
            self._changed.notify()

    def _run(self) -> None:
        why = "the server was stopped"
        try:
            seats = empty_seats(self.engine)
            while self._wait(seats):
                seats = self._turn(seats)
        except Exception as error:
            why = f"the engine failed: {type(error).__name__}"
            raise
        finally:
            with self._changed:
                self._stopped = True
                listeners, self._listeners = self._listeners, {}
                self._waiting.clear()
            for id, listener in listeners.items():
                listener(Event(id, None, "error", why))

    def _wait(self, seats: Seats) -> bool:
        """Wait until there is something to do. False: the thread must end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._waiting or seats.taken)
            return not self._stopped

    def _turn(self, seats: Seats) -> Seats:
        """Free the rows of forgotten requests, fill free rows, and take some steps."""
        with self._changed:
            gone = {seat.id for seat in seats.taken.values()} - self._listeners.keys()
        seats = without(self.engine, seats, gone)
        while len(seats.taken) < self.engine.rows:
            with self._changed:
                if not self._waiting:
                    break
                id, request = self._waiting.popleft()
            seats, event = seated(self.engine, seats, id, request)
            self._tell(event)
        seats, events = stepped(self.engine, seats, hurry=bool(self._waiting))
        for event in events:
            self._tell(event)
        return seats

    def _tell(self, event: Event) -> None:
        assert isinstance(event.id, int)
        with self._changed:
            listener = self._listeners.get(event.id)
            if event.ending is not None:
                self._listeners.pop(event.id, None)
        if listener is not None:
            listener(event)
