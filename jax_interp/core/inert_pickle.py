"""Pickles read as data. Nothing that a pickle names is imported, and nothing that it asks for is called.

A pickle is a program for a small stack machine. This reader runs the instructions that build numbers, strings, lists,
dictionaries and tuples. A class or function that the pickle names must be one of `builders`, which the caller gives;
every other name is refused, or kept as an `Inert` record. The instructions that only serve to make objects of any class
(INST, OBJ, EXT1 and others) are refused.
"""

from __future__ import annotations

import dataclasses
import pickletools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from jax_interp.core.errors import UserError

MAX_INSTRUCTIONS = 10_000_000
"""The number of instructions after which a pickle is refused. A tensor takes about 30, so no real file comes near."""


class PickleError(UserError):
    """A pickle that is damaged, or that needs more than numbers, strings and the known builders."""


@dataclasses.dataclass(frozen=True)
class Named:
    """A class or function that a pickle names, such as "torch.FloatStorage". It was not imported."""

    name: str


@dataclasses.dataclass
class Inert:
    """What a pickle stores of an object of an unknown class. Nothing of the class was run.

    Attributes:
      name: the class or function, with its module: "sae_training.config.RunnerConfig".
      arguments: what the function would have been called with.
      state: what the object would have been given: most often its attributes by name. None: nothing.
      items: what would have been appended to it, or set in it as (key, value).
    """

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = dataclasses.field(default_factory=list)


Builders = Mapping[str, Callable[..., Any]]
"""Functions by the names that pickles have for them. They get arguments out of a file, so they must check them."""

_LITERALS = frozenset(
    {
        *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT"),
        *("BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
        *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    }
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


def read_pickle(
    file: BinaryIO,
    where: str,
    builders: Builders,
    *,
    named: frozenset[str] = frozenset(),
    persistent: Callable[[Any], Any] | None = None,
    keep_unknown: bool = False,
) -> Any:
    """Read the pickle at the position of a file. The position is then behind it.

    Args:
      file: a file opened for reading bytes.
      where: what the pickle is, for messages.
      builders: what may be called. The result of a builder takes the place of the object.
      named: names that may stand in the pickle without being called. They become `Named`.
      persistent: a function of an object's persistent id, which gives the object. None: such ids are refused.
      keep_unknown: keep every other name as `Named`, and what is made with it as `Inert`, instead of refusing it.

    Returns:
      Numbers, strings, bytes, None, lists, tuples, dictionaries, results of builders, and `Named` and `Inert` records.
      Lists and dictionaries may be shared, and may contain themselves.

    Raises:
      PickleError: the pickle is damaged, or needs what is not allowed. The message says what stands there.
    """
    machine = _Machine(where, builders, named, persistent, keep_unknown)
    try:
        with warnings.catch_warnings():  # old texts with unknown escapes
            warnings.simplefilter("ignore")
            for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
                if count >= MAX_INSTRUCTIONS:
                    raise PickleError(f"{where} has more than {MAX_INSTRUCTIONS:,} instructions")
                if opcode.name == "STOP":
                    return machine.result()
                machine.step(opcode.name, argument)
    except UserError:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, MemoryError, EOFError) as error:
        raise PickleError(f"{where} is damaged: {' '.join(str(error).split())[:200]}") from error
    raise PickleError(f"{where} is cut short")


class _Machine:
    """The stack and the memo of a pickle that is read."""

    def __init__(
        self,
        where: str,
        builders: Builders,
        named: frozenset[str],
        persistent: Callable[[Any], Any] | None,
        keep_unknown: bool,
    ):
        self.where, self.builders, self.named = where, builders, named
        self.persistent, self.keep_unknown = persistent, keep_unknown
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}  # a dictionary: a pickle may ask for any number

    def result(self) -> Any:
        if len(self.stack) != 1 or self.stack[0] is _MARK:
            raise PickleError(f"{self.where} is damaged: it ends with {len(self.stack)} objects")
        return self.stack[0]

    def step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self.stack.append(_CONSTANTS.get(name, argument))
        elif name in ("PROTO", "FRAME"):
            return
        elif name in _TUPLES:
            self._pack(_TUPLES[name])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self._top()
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self._top()
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif handler := _HANDLERS.get(name):
            handler(self, argument)
        else:
            about = f" {argument!r}" if argument is not None else ""
            raise PickleError(
                f"{self.where} has the instruction {name}{about[:200]}, which files of tensors do not need"
            )

    def _top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise PickleError(f"{self.where} is damaged: it takes an object that is not there")
        return self.stack[-1]

    def _pop(self) -> Any:
        self._top()
        return self.stack.pop()

    def _pack(self, size: int) -> None:
        items = [self._pop() for _ in range(size)]
        self.stack.append(tuple(reversed(items)))

    def _since_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while at >= 0 and self.stack[at] is not _MARK:
            at -= 1
        if at < 0:
            raise PickleError(f"{self.where} is damaged: it takes objects from a mark that is not there")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def _set(self, pairs: list[Any]) -> None:
        target = self._top()
        if len(pairs) % 2:
            raise PickleError(f"{self.where} is damaged: a key has no value")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if isinstance(target, Inert):
                target.items.append((key, value))
            elif type(target) is not dict:
                raise PickleError(f"{self.where} sets an entry of a {type(target).__name__}")
            elif key is not None and type(key) not in (str, int, float, bool, bytes):
                raise PickleError(f"{self.where} has a key of type {type(key).__name__}; known are strings and numbers")
            else:
                target[key] = value

    def _append(self, values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Inert):
            target.items.extend(values)
        elif type(target) is list:
            target.extend(values)
        else:
            raise PickleError(f"{self.where} appends to a {type(target).__name__}")

    def _global(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise PickleError(f"{self.where} is damaged: the name of a class is not text")
        full = f"{module}.{name}"
        if full not in self.builders and full not in self.named and not self.keep_unknown:
            raise PickleError(f"{self.where} names {full[:200]!r}, which is no part of a file of tensors")
        self.stack.append(Named(full))

    def _call(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Named) or type(arguments) is not tuple:
            raise PickleError(f"{self.where} calls a {type(function).__name__}, which is no class or function")
        if function.name in self.builders:
            try:
                self.stack.append(self.builders[function.name](*arguments))
            except TypeError as error:  # another number of arguments
                raise PickleError(f"{self.where} calls {function.name} with other arguments: {error}") from error
        elif self.keep_unknown:
            self.stack.append(Inert(function.name, arguments))
        else:
            raise PickleError(f"{self.where} calls {function.name}, which is known only as a name")

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Inert):
            target.state = state
        elif not (type(target) is dict and type(state) is dict):  # of a dictionary: attributes, such as _metadata
            raise PickleError(f"{self.where} gives a state to a {type(target).__name__}")

    def _persistent(self) -> None:
        found = self._pop()
        if self.persistent is None:
            raise PickleError(f"{self.where} refers to an object outside it (a persistent id)")
        self.stack.append(self.persistent(found))

    def _pair(self) -> list[Any]:
        value, key = self._pop(), self._pop()
        return [key, value]

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._global(module, name)

    def _dict(self) -> None:
        pairs = self._since_mark()
        self.stack.append({})
        self._set(pairs)


_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda m, _: m.stack.append(_MARK),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "LIST": lambda m, _: m.stack.append(m._since_mark()),
    "TUPLE": lambda m, _: m.stack.append(tuple(m._since_mark())),
    "DICT": lambda m, _: m._dict(),
    "APPEND": lambda m, _: m._append([m._pop()]),
    "APPENDS": lambda m, _: m._append(m._since_mark()),
    "SETITEM": lambda m, _: m._set(m._pair()),
    "SETITEMS": lambda m, _: m._set(m._since_mark()),
    "GLOBAL": lambda m, argument: m._global(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m._stack_global(),
    "REDUCE": lambda m, _: m._call(),
    "NEWOBJ": lambda m, _: m._call(),
    "BUILD": lambda m, _: m._build(),
    "BINPERSID": lambda m, _: m._persistent(),
}
