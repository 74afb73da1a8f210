"""Serving: requests with their own edits, many in one compiled program, while rows come and go."""

from jax_interp.steering.serving.engine import Engine, Event, engine_of, warm_up
from jax_interp.steering.serving.request import Request, RequestEdit
from jax_interp.steering.serving.row_edits import RowEdits, edit_rows
from jax_interp.steering.serving.serve import Served, serve, serve_events

__all__ = [
    "Engine",
    "Event",
    "Request",
    "RequestEdit",
    "RowEdits",
    "Served",
    "edit_rows",
    "engine_of",
    "serve",
    "serve_events",
    "warm_up",
]
