"""Addresses: names of the values of a model.

    embed, ln_final.normalized, logits        a value outside the blocks
    blocks.7.attn.z, blocks.-1.resid_post     a value of one block
    blocks.2:8.mlp.post, blocks.*.resid_post  the same value of several blocks
    blocks.resid_post                         a value of the block that `at(..., layer=)` chooses; the layer is data

The names are the TransformerLens names without `hook_`. The TransformerLens spelling is accepted too:
`blocks.3.attn.hook_z` is `blocks.3.attn.z`. An address means the same value whether the blocks are stacked or not.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from jax_interp.core.errors import UserError

_LAYERS = re.compile(r"\*|-?\d+|(-?\d+)?:(-?\d+)?(:[1-9]\d*)?")

type_of_addresses = "str or a (nested) list of str"
Spelled = TypeVar("Spelled")


class AddressError(UserError, LookupError):
    """An address names no value of the model, or a value that cannot be read or edited."""


@dataclasses.dataclass(frozen=True)
class Address:
    """A parsed address.

    Attributes:
      name: the name of the value, without the block.
      layers: the blocks, as the user wrote them: "7", "-1", "2:8", "*". None for a value outside the blocks; "" if the
        layer is data (`blocks.resid_post`).
    """

    name: str
    layers: str | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse an address. Raises `AddressError` if `text` is not a valid address."""
        if not isinstance(text, str):
            raise AddressError(f"an address is a {type_of_addresses}, not {type(text).__name__}: {text!r}")
        parts = [part.removeprefix("hook_") for part in text.strip().split(".")]
        if not all(parts):
            raise AddressError(f"{text!r} is not an address: write a name such as 'embed' or 'blocks.3.attn.z'")
        if parts[0] != "blocks":
            return cls(".".join(parts))
        if len(parts) == 1:
            raise AddressError("'blocks' names no value: write 'blocks.3.resid_post' or 'blocks.*.resid_post'")
        if not _LAYERS.fullmatch(parts[1]):
            if not re.fullmatch(r"[^\W\d]\w*", parts[1]):
                raise AddressError(
                    f"{text!r}: {parts[1]!r} is no block. Write a number, a range (blocks.2:5) or all (blocks.*). "
                    "For other sets of blocks, give a list of addresses"
                )
            return cls(".".join(parts[1:]), "")
        if len(parts) == 2:
            raise AddressError(f"{text!r} names a block but no value in it: write '{text}.resid_post', for example")
        return cls(".".join(parts[2:]), parts[1])

    def __str__(self) -> str:
        if self.layers is None:
            return self.name
        return ".".join(("blocks", *filter(None, (self.layers,)), self.name))

    @property
    def is_single(self) -> bool:
        """Whether the address names exactly one value. The array that is read then has no layer axis."""
        return self.layers is None or self.layers.lstrip("-").isdigit()

    def resolve(self, depth: int) -> tuple[int, ...] | None:
        """The layers of the address in a model of `depth` blocks, ascending; None for a value outside the blocks.

        Raises `AddressError` if the model has none of these layers.
        """
        if self.layers is None:
            return None
        if any(len(part) > 9 for part in self.layers.split(":")):
            raise AddressError(f"{f'{self}'[:40]!r}... names a layer with more than nine characters")
        every = range(depth)
        if self.layers in ("", "*"):
            layers = tuple(every)
        elif ":" in self.layers:
            layers = tuple(every[slice(*(int(part) if part else None for part in self.layers.split(":")))])
        else:
            layers = tuple(every[i] for i in [int(self.layers)] if -depth <= i < depth)
        if not layers:
            has = f"has blocks.0 to blocks.{depth - 1}" if depth else "has no blocks"
            raise AddressError(f"{str(self)!r} names no layer: this model {has}")
        return layers


def canonical(addresses: Spelled) -> Spelled:
    """Addresses in the package's own spelling: `blocks.3.attn.hook_z` becomes `blocks.3.attn.z`.

    Configs and files hold addresses in this spelling, so that two spellings of one value are equal.

    Args:
      addresses: an address, a tuple or list of them, or None.

    Returns:
      The same structure.

    Raises:
      AddressError: one of them is not a valid address.
    """
    given: Any = addresses
    if given is None:
        return addresses
    if isinstance(given, (tuple, list)):
        return type(given)(canonical(one) for one in given)  # type: ignore[return-value]
    return str(Address.parse(given))  # type: ignore[return-value]


def flatten(addresses: str | Iterable) -> Iterator[str]:
    """The addresses in a nested list of addresses."""
    if isinstance(addresses, str) or not isinstance(addresses, Iterable):
        yield addresses  # type: ignore[misc]  (`parse` refuses anything that is not a string)
    else:
        for address in addresses:
            yield from flatten(address)


def depth_in(names: Iterable[str]) -> int:
    """The number of blocks of a model, from the names that `sites` and `survey` return."""
    return 1 + max((int(name.split(".")[1]) for name in names if name.startswith("blocks.")), default=-1)


def suggest(asked: str, exist: Iterable[str]) -> str:
    """The end of an error message about the unknown name `asked`: the nearest names, and how to list all names."""
    exist = sorted(set(exist))
    tail = asked.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(asked, exist, n=3, cutoff=0.5)
    near = list(dict.fromkeys(near + [name for name in exist if name.rsplit(".", 1)[-1] == tail]))[:4]
    did_you_mean = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"{did_you_mean} `sites(model)(*args)` lists every name; here: {', '.join(exist) or 'none'}."
