"""`jax-interp serve MODEL`: answer completion requests over HTTP, each with its own edits."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.core.errors import UserError
from jax_interp.core.terminal import print_text

SLOTS = 512


@dataclass(frozen=True)
class Serve:
    """Answer requests as OpenAI-compatible servers do: POST /v1/completions, GET /v1/models, GET /health.

    A request can have the field "edits": [{"layer": 3, "vector": [...] or "NAME", "operator": "add", "strength": 2}].
    Requests with different edits run together. Ctrl-C ends the server.
    """

    model: tyro.conf.Positional[str]
    """A model of the package, a Hugging Face directory, or a name on the Hugging Face hub."""
    vectors: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME=FILE ...]")] = ()
    """Steering vectors that requests can name: NAME=FILE, a .safetensors file or a GGUF control vector."""
    values: tuple[str, ...] = ("blocks.*.resid_post",)
    """The addresses at which requests can have edits."""
    host: str = "127.0.0.1"
    """The address to listen on. Anyone who can reach it can use the model: there are no passwords."""
    port: int = 8000
    """The port. 0 takes a free one."""
    rows: int = 8
    """How many requests run together."""
    slots: int | None = None
    """The most tokens of a text, prompt and new tokens together. None: 512, or the learned positions if fewer."""
    n_edits: int = 1
    """The most edits of one request at one value of one layer."""
    steps: int = 4
    """The most tokens between two looks at the waiting requests. Tokens are streamed in groups of this size."""
    max_tokens: int = 1024
    """The most new tokens of a request."""
    body_bytes: int = 2**20
    """The largest body of a request."""
    seconds: float = 120.0
    """The longest time of a request, waiting included."""
    waiting: int = 64
    """The most requests that wait. The next one gets the status 429."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of the model."""

    def __post_init__(self) -> None:
        for name in ("rows", "n_edits", "steps", "max_tokens", "body_bytes", "waiting"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if self.slots is not None and self.slots < 1:
            raise UserError(f"slots={self.slots} must be at least 1")
        if not 0 < self.seconds < float("inf"):
            raise UserError(f"seconds={self.seconds} must be a positive number")
        if not 0 <= self.port < 2**16:
            raise UserError(f"port={self.port} must be from 0 to {2**16 - 1}")


def run(argv: Sequence[str]) -> int:
    """Run `jax-interp serve` with these arguments. Returns the exit code."""
    options = parse(Serve, argv, command="serve")
    if missing := [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]:
        raise UserError(f"serve needs {' and '.join(missing)}: pip install 'jax_interp[serve]'")
    files = _named_files(options.vectors)

    from jax_interp.models import load
    from jax_interp.steering.applying import load_vectors
    from jax_interp.steering.serving import engine_of, warm_up
    from jax_interp.steering.serving.http.app import Front
    from jax_interp.steering.serving.http.server import bound_socket, run_server
    from jax_interp.steering.serving.http.wire import Limits
    from jax_interp.steering.serving.worker import Worker

    vectors = {name: load_vectors(file).vector for name, file in files.items()}
    with bound_socket(options.host, options.port) as listening:
        model, tokenizer = load(options.model, dtype=options.dtype)
        most = model.config.n_ctx if model.config.positions == "learned" else SLOTS
        slots = min(SLOTS, most) if options.slots is None else options.slots
        engine = engine_of(model, rows=options.rows, slots=slots, values=options.values,
                           n_edits=options.n_edits, steps=options.steps)  # fmt: skip
        warm_up(engine)
        limits = Limits(options.body_bytes, options.max_tokens, slots, seconds=options.seconds,
                        waiting=options.waiting)  # fmt: skip
        front = Front(Worker(engine, options.waiting), options.model, tokenizer, vectors, limits)
        host = f"[{options.host}]" if ":" in options.host else options.host
        url = f"http://{host}:{listening.getsockname()[1]}/v1"
        with contextlib.suppress(KeyboardInterrupt):  # the usual end
            run_server(front, listening, lambda: print_text(f"{options.model} is served at {url}; Ctrl-C ends it"))
    return 0


def _named_files(given: Sequence[str]) -> dict[str, Path]:
    """The files of the vectors by name."""
    files: dict[str, Path] = {}
    for one in given:
        name, equals, file = one.partition("=")
        if not (name and equals and file):
            raise UserError(f"--vectors takes NAME=FILE, such as calm=calm.safetensors, got {one!r}")
        if name in files:
            raise UserError(f"--vectors has the name {name!r} twice")
        files[name] = Path(file)
    return files
