"""jax_interp: open a model up, by name, with ordinary JAX.

The values inside a model have names. `read` and `edit` take a model and return a model that also returns, or changes,
its named values; the result is a callable pytree like any other, and goes through `jit`, `grad`, `vmap` and a
checkpoint.

    from jax_interp import Add, at, call, edit, load, read

    model, tokenizer = load("stdlib-small")
    steered = edit(model, at("blocks.3.resid_post", Add(vector)))
    logits, acts = call(read(steered, "blocks.*.resid_post"), tokens)

The main names are found here, each loaded from its room when it is first asked for, so that importing the package
stays cheap; everything else is imported from its room (`jax_interp.surgery`, `jax_interp.models`, ...).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.errors import UserError
    from .core.pytrees import register_dataclass
    from .models import generate, load
    from .surgery import (
        Activations,
        Add,
        Clamp,
        Each,
        Freeze,
        Mean,
        Noise,
        ProjectOut,
        Replace,
        Resample,
        Rotate,
        Scale,
        Site,
        Splice,
        Stack,
        Zero,
        at,
        call,
        edit,
        grad_at,
        read,
        replan,
        sites,
    )
    from .views import plot

__version__ = "0.1.0"

__all__ = [
    "Activations",
    "Add",
    "Clamp",
    "Each",
    "Freeze",
    "Mean",
    "Noise",
    "ProjectOut",
    "Replace",
    "Resample",
    "Rotate",
    "Scale",
    "Site",
    "Splice",
    "Stack",
    "UserError",
    "Zero",
    "at",
    "call",
    "edit",
    "generate",
    "grad_at",
    "load",
    "plot",
    "read",
    "register_dataclass",
    "replan",
    "sites",
]
# Every other name lives in surgery.
_ELSEWHERE = {"UserError": "core.errors", "generate": "models", "load": "models", "register_dataclass": "core.pytrees"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'jax_interp' has no attribute {name!r}; it exports {', '.join(__all__)}")
    if name == "plot":
        value = import_module(".views.plot", __name__)
    else:
        value = getattr(import_module(f".{_ELSEWHERE.get(name, 'surgery')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
