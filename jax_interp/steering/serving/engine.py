"""The engine of a server: what is compiled once, and the host's side of a running batch.

    engine = engine_of(model, rows=8, slots=256)
    seats = empty_seats(engine)
    seats, event = seated(engine, seats, "a", request)       a request enters a free row: its first token
    seats, events = stepped(engine, seats, hurry=False)      some steps: tokens of all rows
    seats = without(engine, seats, {"a"})                    its row is free

Each function returns new seats. The arrays of the old ones are reused, so the old seats are of no use afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence, Set
from typing import Any, Literal

import jax
import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.models.generation.generated_values import has_reads
from jax_interp.models.generation.out_major import FEWEST_STEPS, stepping_model
from jax_interp.steering.serving.request import Request, check_request
from jax_interp.steering.serving.row_edits import ServedValue, served_values
from jax_interp.steering.serving.rows import (
    IMPOSSIBLE,
    NO_TOKEN,
    Rows,
    admit,
    advance,
    empty_rows,
    move,
    release,
    settings_of,
)
from jax_interp.surgery.contract import Model

VALUES = ("blocks.*.resid_post",)
MOST_STOPS = 8
"""The most stop tokens of a request."""
SHORTEST_BUCKET = 16

Ending = Literal["length", "stop", "error"]


@dataclasses.dataclass(frozen=True)
class Event:
    """One new token of a request, or its end.

    Attributes:
      id: the request.
      token: the new token; None if the request ends without one.
      ending: why the request ends with this event; None if it goes on.
      error: what was wrong, if the ending is "error".
    """

    id: Hashable
    token: int | None = None
    ending: Ending | None = None
    error: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Engine:
    """A model that serves requests. `engine_of` makes it.

    Attributes:
      model: runs the prompts.
      views: runs the steps, if that is another layout of the same weights (`stepping_model`).
      served: the values that requests can edit.
      rows: how many requests run together.
      slots: the most tokens of a text.
      n_edits: the most edits of a request at one value.
      steps: the most steps between two looks at the waiting requests.
    """

    model: Any
    views: Any
    served: tuple[ServedValue, ...]
    rows: int
    slots: int
    n_edits: int
    steps: int

    @property
    def buckets(self) -> tuple[int, ...]:
        """The lengths to which prompts are padded: one program for each."""
        lengths, n = [], SHORTEST_BUCKET
        while n < self.slots:
            lengths.append(n)
            n *= 2
        return (*lengths, self.slots)


def engine_of(
    model: Model,
    *,
    rows: int = 8,
    slots: int = 512,
    values: Sequence[str] = VALUES,
    n_edits: int = 1,
    steps: int = 8,
) -> Engine:
    """An engine for a model on one device.

    Args:
      model: a `Decoder`, with any edits. They act on all requests, before the edits of the request.
      rows: how many requests run together.
      slots: the most tokens of a text, prompt and new tokens together. Memory and attention grow with rows · slots.
      values: the addresses at which requests can have edits.
      n_edits: the most edits of one request at one value of one layer.
      steps: the most steps between two looks at the waiting requests.

    Raises:
      UserError: a number is not positive, the model has fewer learned positions, reads values, or is sharded.
      AddressError: the model has no such value.
    """
    for name, number in (("rows", rows), ("slots", slots), ("n_edits", n_edits), ("steps", steps)):
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 1:
            raise UserError(f"{name}={number!r} must be a whole number of at least 1")
    config = model.config  # type: ignore[attr-defined]
    if config.positions == "learned" and slots > config.n_ctx:
        raise UserError(f"slots={slots}: this model has learned {config.n_ctx} positions (n_ctx)")
    if has_reads(model):
        raise UserError("a server gives tokens only: take the model without read(...)")
    if any(len(leaf.devices()) > 1 for leaf in jax.tree.leaves(model) if isinstance(leaf, jax.Array)):
        raise UserError("the weights are on several devices, and a server runs on one: load the model without a mesh")
    served = served_values(model, values)
    return Engine(
        model, stepping_model(model, int(rows), FEWEST_STEPS), served, int(rows), int(slots), int(n_edits), int(steps)
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Seat:
    """A request in its row: how many tokens of its text are in the cache."""

    id: Hashable
    filled: int
    stop: frozenset[int]


@dataclasses.dataclass(frozen=True, eq=False)
class Seats:
    """The rows and who sits in them."""

    state: Rows
    length: int
    """The number of filled slots."""
    taken: dict[int, Seat]
    """The seats by row."""

    @property
    def longest(self) -> int:
        """The tokens of the longest text in the cache."""
        return max((seat.filled for seat in self.taken.values()), default=0)


def empty_seats(engine: Engine) -> Seats:
    """A batch without requests."""
    stepping = engine.model if engine.views is None else engine.views
    settings = settings_of(Request([0], 1), engine.served, engine.n_edits, MOST_STOPS)
    return Seats(empty_rows(stepping, settings, engine.rows, engine.slots), 0, {})


def check(engine: Engine, request: Request) -> None:
    """Check a request against the model and the server.

    Raises:
      UserError: the server cannot take it. The message says why.
    """
    check_request(request, engine.model.config, engine.slots)
    if len(request.stop) > MOST_STOPS:
        raise UserError(f"{len(request.stop)} stop tokens: a request has at most {MOST_STOPS}")
    settings_of(request, engine.served, engine.n_edits, MOST_STOPS)


def seated(engine: Engine, seats: Seats, id: Hashable, request: Request) -> tuple[Seats, Event]:
    """A checked request in a free row. Also returns the event of its first new token.

    Args:
      engine: the engine.
      seats: the batch, with a free row.
      id: the name of the request in events.
      request: the request, which `check` has accepted.
    """
    row = next(row for row in range(engine.rows) if row not in seats.taken)
    n, state, length = len(request.tokens), seats.state, seats.length
    if n > length or not seats.taken:
        state, length = move(state, np.int32(n)), n
    bucket = next(size for size in engine.buckets if size >= n)
    tokens, mask = np.zeros((1, bucket), np.int32), np.zeros((1, bucket), bool)
    tokens[0, bucket - n :], mask[0, bucket - n :] = list(request.tokens), True
    settings = settings_of(request, engine.served, engine.n_edits, MOST_STOPS)
    state, first = admit(engine.model, engine.views, engine.served, state, np.int32(row), tokens, mask, settings)
    seat = Seat(id, n, frozenset(request.stop))
    token = int(first)
    ending: Ending | None = _ending(seat, token, live=request.n_new > 1)
    taken = seats.taken if ending else {**seats.taken, row: seat}
    return Seats(state, length, taken), _event(seat, token, ending)


def stepped(engine: Engine, seats: Seats, *, hurry: bool) -> tuple[Seats, list[Event]]:
    """Some steps of all rows.

    Args:
      engine: the engine.
      seats: the batch.
      hurry: whether to return as soon as a row is free.

    Returns:
      The batch and the events of all new tokens, step by step.
    """
    if not seats.taken:
        return seats, []
    state, length = seats.state, seats.length
    if length == engine.slots:
        state, length = move(state, np.int32(seats.longest)), seats.longest
    stepping = engine.model if engine.views is None else engine.views
    state, out, live, n = jax.block_until_ready(
        advance(stepping, engine.served, state, engine.steps, np.asarray(hurry))
    )
    n = int(n)
    return _after(seats, state, length + n, np.asarray(out)[:n], np.asarray(live))


def _after(seats: Seats, state: Rows, length: int, out: np.ndarray, live: np.ndarray) -> tuple[Seats, list[Event]]:
    """The seats and the events after some steps."""
    counts = (out != NO_TOKEN).sum(axis=0)
    events = []
    for i, column in enumerate(out):
        for row, seat in seats.taken.items():
            if (token := int(column[row])) != NO_TOKEN:
                more = bool(live[row]) or i + 1 < counts[row]
                events.append(_event(seat, token, None if more else _ending(seat, token, live=False)))
    taken = {
        row: dataclasses.replace(seat, filled=seat.filled + int(counts[row]))
        for row, seat in seats.taken.items()
        if live[row]
    }
    return Seats(state, length, taken), events


def without(engine: Engine, seats: Seats, ids: Set[Hashable]) -> Seats:
    """The batch without some requests. Their rows are free."""
    taken = {row: seat for row, seat in seats.taken.items() if seat.id not in ids}
    if len(taken) == len(seats.taken):
        return seats
    keep = np.asarray([row in taken for row in range(engine.rows)])
    return Seats(release(seats.state, keep), seats.length, taken)


def warm_up(engine: Engine) -> None:
    """Compile every program that the engine can need."""
    seats = empty_seats(engine)
    for bucket in engine.buckets:
        prompt = [0] * bucket
        seats, _ = seated(engine, seats, "warm-up", Request(prompt, 1))
    if engine.slots > 1:
        seats, _ = seated(engine, seats, "warm-up", Request([0], 2))
        if seats.taken:
            seats, _ = stepped(engine, seats, hurry=True)
    release(seats.state, np.zeros(engine.rows, bool))


def _ending(seat: Seat, token: int, *, live: bool) -> Ending | None:
    """Why a text ends with this token; None if it goes on."""
    if token == IMPOSSIBLE:
        return "error"
    return "stop" if token in seat.stop else None if live else "length"


def _event(seat: Seat, token: int, ending: Ending | None) -> Event:
    if ending == "error":
        return Event(seat.id, None, ending, "the logits became NaN, or minus infinity for every token")
    return Event(seat.id, token, ending)
