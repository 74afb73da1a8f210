"""What differs between the methods that `decompose` trains: SPD and its successors, and APD before them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Method:
    """`settings` is the method's own part of the run's config.

    check(settings, inputs)                      raises UserError for what cannot be trained, before it is
    train(settings, config, inputs, run, log)    what is trained; `run` and `log` as in `training.fit`
    save(path, trained, settings)                and `load(path, model)` gives (trained, settings) back
    measure(settings, config, trained, inputs)   every figure, as JSON values; `figures` are those that the page needs
    page(result, records, name, trained, held_out, shown)   the page, from the figures and the metrics log
    """

    check: Callable[..., Any]
    train: Callable[..., Any]
    save: Callable[..., None]
    load: Callable[..., tuple[Any, Any]]
    measure: Callable[..., dict[str, Any]]
    figures: tuple[str, ...]
    page: Callable[..., str]
