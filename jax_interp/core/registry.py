"""Registries: the variants of a base class. Each variant registers itself where it is defined.

    ACTIVATIONS = Registry("activation", Activation)          in the file of the Protocol or base class

    @ACTIVATIONS.register                                      in the variant's own file, and nowhere else
    @dataclasses.dataclass(frozen=True)
    class TopK(Activation): ...

    discover(__name__, __path__)                               in the folder's __init__: imports all its files

A config field whose type is the base class accepts every variant: `core.config_json` looks the variant up by its class
name. A variant in a user's own file is available as soon as this file is imported.
"""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any, Generic, TypeVar

from jax_interp.core.errors import UserError

Base = TypeVar("Base")
Variant = TypeVar("Variant", bound=type)

_ABSTRACT = "__isabstractmethod__"  # set by `abc.abstractmethod`, whatever the metaclass


class Registry(Generic[Base]):
    """The registered subclasses of `base`, by class name, in the order of registration.

    Args:
      what: the word for a variant in messages ("activation").
      base: the base class of all variants.
    """

    def __init__(self, what: str, base: type[Base]):
        self.what, self.base = what, base
        self._variants: dict[str, type[Base]] = {}
        _REGISTRIES[base] = self

    def register(self, variant: Variant) -> Variant:
        """Class decorator: add `variant`.

        Raises:
          TypeError: the class does not derive from the base class, leaves out a method that the base class marks with
            `abc.abstractmethod`, or has the name of another variant.
        """
        if not issubclass(variant, self.base):
            raise TypeError(f"{variant.__name__} does not derive from {self.base.__name__}, so it is no {self.what}")
        if missing := [name for name in dir(variant) if getattr(getattr(variant, name), _ABSTRACT, False)]:
            raise TypeError(f"the {self.what} {variant.__name__} must define {', '.join(missing)}")
        taken = self._variants.get(variant.__name__)
        if taken is not None and (taken.__module__, taken.__qualname__) != (variant.__module__, variant.__qualname__):
            raise TypeError(f"{self.what} {variant.__name__!r} is defined in {taken.__module__} already")
        self._variants[variant.__name__] = variant
        return variant

    def __getitem__(self, name: str) -> type[Base]:
        """The variant called `name`. If there is none, raises UserError with the nearest name."""
        if name in self._variants:
            return self._variants[name]
        near = difflib.get_close_matches(name, self._variants, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise UserError(f"no {self.what} {name!r}. {hint}There are {', '.join(self._variants)}")

    def __iter__(self) -> Iterator[type[Base]]:
        return iter(self._variants.values())

    def __len__(self) -> int:
        return len(self._variants)

    def names(self) -> tuple[str, ...]:
        """The class names of all variants."""
        return tuple(self._variants)


_REGISTRIES: dict[type, Registry[Any]] = {}


def registry_of(base: Any) -> Registry[Any] | None:
    """The registry of the variants of `base`; None if `base` has no registry."""
    return _REGISTRIES.get(base) if isinstance(base, type) else None


def discover(package: str, path: Iterable[str]) -> None:
    """Import every module of a package, so that its variants are registered.

    Args:
      package: the package's `__name__`.
      path: the package's `__path__`.
    """
    for module in pkgutil.iter_modules(path):
        import_module(f"{package}.{module.name}")
