"""The HTTP interface: `POST /v1/completions`, `GET /v1/models`, `GET /health`, as in OpenAI-compatible servers.

An error is JSON, {"error": {"message": ..., "type": ...}}, with a status from 400 on.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from jax_interp.core.errors import UserError
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.models.generation.completion import completion_of, stable_prefix
from jax_interp.steering.serving.engine import Event
from jax_interp.steering.serving.http.wire import Asked, Limits, parse_body
from jax_interp.steering.serving.worker import Busy, Stopped, Worker
from jax_interp.steering.vector import SteeringVector

POLL_S = 0.25
"""How often it is looked whether the client of a request without streaming has gone away."""


@dataclasses.dataclass(frozen=True, eq=False)
class Front:
    """What the interface needs: the worker, the names, and the limits."""

    worker: Worker
    name: str
    """The name of the model in answers."""
    tokenizer: Tokenizer | None
    vectors: Mapping[str, SteeringVector]
    limits: Limits = dataclasses.field(default_factory=Limits)


class Refused(Exception):
    """A request that gets an error as its answer."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


def app_of(front: Front) -> Starlette:
    """The ASGI application. It starts the worker when it starts, and stops it at its end."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        front.worker.start()
        yield
        await asyncio.to_thread(front.worker.stop)

    async def completions(request: Request) -> Response:
        try:
            return await _completions(front, request)
        except Refused as refused:
            return _error(refused.status, refused.message)

    async def models(_: Request) -> Response:
        one = {"id": front.name, "object": "model", "owned_by": "jax-interp", "vectors": sorted(front.vectors)}
        return JSONResponse({"object": "list", "data": [one]})

    async def health(_: Request) -> Response:
        running = front.worker.is_running
        return JSONResponse({"status": "ok" if running else "stopped"}, status_code=200 if running else 503)

    async def known(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _error(error.status_code, error.detail)

    async def unknown(_: Request, error: Exception) -> Response:
        return _error(500, f"the server failed: {type(error).__name__}")

    routes = [
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/health", health, methods=["GET"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: known, Exception: unknown})


async def _completions(front: Front, request: Request) -> Response:
    deadline = asyncio.get_running_loop().time() + front.limits.seconds
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise Refused(415, "the content-type of the body must be application/json")
    try:
        async with asyncio.timeout_at(deadline):
            body = await _body(request, front.limits.body_bytes)
    except TimeoutError:
        raise Refused(408, f"the body did not arrive within {front.limits.seconds:g} seconds") from None
    try:
        asked = await asyncio.to_thread(parse_body, body, front.tokenizer, front.vectors, front.limits)
    except UserError as error:
        raise Refused(400, str(error)) from None
    if asked.model not in (None, front.name):
        raise Refused(404, f"there is no model {asked.model[:80]!r}: this server has {front.name!r}")
    running = await _submitted(front, asked)
    if asked.stream:
        return _Stream(_streamed(front, running, deadline), lambda: front.worker.cancel(running.id))
    return await _whole(front, running, deadline, request)


async def _body(request: Request, most: int) -> bytes:
    parts, n = [], 0
    try:
        async for part in request.stream():
            n += len(part)
            if n > most:
                raise Refused(413, f"the body has more than {most:,} bytes")
            parts.append(part)
    except ClientDisconnect:
        raise Refused(400, "the client went away") from None
    return b"".join(parts)


@dataclasses.dataclass(frozen=True, eq=False)
class _Running:
    """A request that waits or runs."""

    asked: Asked
    id: int
    events: asyncio.Queue[Event]
    name: str = dataclasses.field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))


async def _submitted(front: Front, asked: Asked) -> _Running:
    loop, events = asyncio.get_running_loop(), asyncio.Queue()

    def listener(event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended with the server
            loop.call_soon_threadsafe(events.put_nowait, event)

    try:
        id = await asyncio.to_thread(front.worker.submit, asked.request, listener)
    except Busy as error:
        raise Refused(429, str(error)) from None
    except Stopped as error:
        raise Refused(503, str(error)) from None
    except UserError as error:
        raise Refused(400, str(error)) from None
    return _Running(asked, id, events)


@dataclasses.dataclass(frozen=True)
class _Part:
    """The text so far."""

    text: str
    tokens: tuple[int, ...]
    ending: str | None


async def _parts(front: Front, running: _Running, deadline: float) -> AsyncIterator[_Part]:
    """The text after each new token. The last part has an ending."""
    tokens: list[int] = []
    while True:
        left = deadline - asyncio.get_running_loop().time()
        try:
            event = await asyncio.wait_for(running.events.get(), max(left, 0.0))
        except TimeoutError:
            raise Refused(408, f"the request took more than {front.limits.seconds:g} seconds") from None
        if event.ending == "error":
            raise Refused(422 if front.worker.is_running else 503, event.error or "the request failed")
        assert event.token is not None
        tokens.append(event.token)
        part = _part(front, running.asked, tokens, event.ending)
        yield part
        if part.ending is not None:
            return


def _part(front: Front, asked: Asked, tokens: list[int], ending: str | None) -> _Part:
    if front.tokenizer is None:
        return _Part("", tuple(tokens), ending)
    done = completion_of(front.tokenizer, asked.request.tokens, tokens, list(asked.request.stop), asked.stop)
    if done.stopped_by is not None:
        return _Part(done.text, tuple(done.tokens), "stop")
    text = done.text if ending else stable_prefix(done.text, asked.stop)
    return _Part(text, tuple(tokens), ending)


async def _whole(front: Front, running: _Running, deadline: float, request: Request) -> Response:
    """The answer in one piece. The request is forgotten if its client goes away."""

    async def last() -> _Part:
        return [part async for part in _parts(front, running, deadline)][-1]

    task = asyncio.ensure_future(last())
    try:
        while not task.done():
            await asyncio.wait([task], timeout=POLL_S)
            if not task.done() and await request.is_disconnected():
                raise Refused(400, "the client went away")
        part = task.result()
    finally:
        task.cancel()
        front.worker.cancel(running.id)
    answer = _answer(front, running, part.text, part.tokens, part.ending)
    n, new = len(running.asked.request.tokens), len(part.tokens)
    answer["usage"] = {"prompt_tokens": n, "completion_tokens": new, "total_tokens": n + new}
    return JSONResponse(answer)


class _Stream(StreamingResponse):
    """A stream of events that says when it ends, also if its client goes away before the first event."""

    def __init__(self, events: AsyncIterator[str], ended: Callable[[], None]):
        super().__init__(events, media_type="text/event-stream")
        self.ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.ended()


async def _streamed(front: Front, running: _Running, deadline: float) -> AsyncIterator[str]:
    """Server-sent events: the text in parts, as soon as a part cannot change any more."""
    n_text = n_tokens = 0
    try:
        async for part in _parts(front, running, deadline):
            text, tokens = part.text[n_text:], part.tokens[n_tokens:]
            yield _data(_answer(front, running, text, tokens, part.ending))
            n_text, n_tokens = max(n_text, len(part.text)), len(part.tokens)
    except Refused as refused:
        yield _data(_described(refused.status, refused.message))
    yield "data: [DONE]\n\n"


def _answer(front: Front, running: _Running, text: str, tokens: tuple[int, ...], ending: str | None) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "tokens": list(tokens), "logprobs": None, "finish_reason": ending}
    return {
        "id": running.name,
        "object": "text_completion",
        "created": running.created,
        "model": front.name,
        "seed": running.asked.request.seed,
        "choices": [choice],
    }


def _data(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _described(status: int, message: str) -> dict[str, Any]:
    kinds = {404: "not_found_error", 408: "timeout_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "code": status}}


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse(_described(status, message), status_code=status)
