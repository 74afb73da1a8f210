"""`serve`: many requests with their own edits, by continuous batching.

Waiting requests enter rows that become free, in the order in which they came. A request that the server cannot take is
refused alone, and the others go on.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence

from jax_interp.core.errors import UserError
from jax_interp.steering.serving.engine import (
    VALUES,
    Ending,
    Engine,
    Event,
    check,
    empty_seats,
    engine_of,
    seated,
    stepped,
)
from jax_interp.steering.serving.request import Request
from jax_interp.surgery.contract import Model


@dataclasses.dataclass(frozen=True)
class Served:
    """The result of one request."""

    tokens: tuple[int, ...]
    """The new tokens, the stop token included."""
    ending: Ending
    error: str | None = None
    """What was wrong, if the ending is "error"."""


def serve(
    model: Model,
    requests: Sequence[Request],
    *,
    rows: int = 8,
    slots: int | None = None,
    values: Sequence[str] = VALUES,
    n_edits: int = 1,
    steps: int = 8,
) -> list[Served]:
    """Continue many prompts, each with its own edits and its own sampling.

    Args:
      model: a `Decoder`, with any edits.
      requests: the requests.
      rows: how many requests run together.
      slots: the most tokens of a text. None: what the longest request needs.
      values: the addresses at which requests can have edits.
      n_edits: the most edits of one request at one value of one layer.
      steps: the most steps between two looks at the waiting requests.

    Returns:
      One result for each request, in this order. A request that cannot be served has an error.

    Raises:
      UserError: the settings are not valid for this model.

    Example:
        edit = RequestEdit("blocks.3.resid_post", vector, "rotate", 0.5)
        results = serve(model, [Request(prompt, 20, (edit,)) for prompt in prompts])
    """
    if slots is None:
        config = model.config  # type: ignore[attr-defined]
        most = config.n_ctx if config.positions == "learned" else None
        slots = max((_needed(request) for request in requests), default=1)
        slots = slots if most is None else min(slots, most)
    engine = engine_of(model, rows=rows, slots=slots, values=values, n_edits=n_edits, steps=steps)
    tokens: list[list[int]] = [[] for _ in requests]
    results: dict[int, Served] = {}
    for event in serve_events(engine, requests):
        assert isinstance(event.id, int)
        if event.token is not None:
            tokens[event.id].append(event.token)
        if event.ending is not None:
            results[event.id] = Served(tuple(tokens[event.id]), event.ending, event.error)
    return [results[i] for i in range(len(requests))]


def serve_events(engine: Engine, requests: Sequence[Request]) -> Iterator[Event]:
    """The events of many requests, as they happen: each new token, and each end. The id is the number of the request.

    Args:
      engine: the engine.
      requests: the requests.
    """
    waiting, seats = deque(enumerate(requests)), empty_seats(engine)
    while waiting or seats.taken:
        while waiting and len(seats.taken) < engine.rows:
            id, request = waiting.popleft()
            try:
                check(engine, request)
            except UserError as error:
                yield Event(id, None, "error", str(error))
                continue
            seats, event = seated(engine, seats, id, request)
            yield event
        seats, events = stepped(engine, seats, hurry=bool(waiting))
        yield from events


def _needed(request: Request) -> int:
    """The slots that a request needs; 1 if it is not valid, which is found later."""
    try:
        return max(1, len(request.tokens) + int(request.n_new) - 1)
    except (TypeError, ValueError, OverflowError):
        return 1
