"""Addresses: names of the values of a model.

    embed, ln_final.normalized, logits        a value outside the blocks
    blocks.7.attn.z, blocks.-1.resid_post     a value of one block
    blocks.2:8.mlp.post, blocks.*.resid_post  the same value of several blocks
    blocks.resid_post                         the value of the block in `at(..., layer=)`; the layer is data

Names are those of TransformerLens without `hook_`, and its own spelling is accepted: `blocks.3.attn.hook_z` is
`blocks.3.attn.z`. An address means the same in every layout of the blocks.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator

from jax_interp.core.errors import UserError

_LAYERS = re.compile(r"\*|-?\d+|(-?\d+)?:(-?\d+)?(:[1-9]\d*)?")

type_of_addresses = "str or a (nested) list of str"


class AddressError(UserError, LookupError):
    """An address names nothing, or no value that can be read or edited."""


@dataclasses.dataclass(frozen=True)
class Address:
    """A parsed address.

    Attributes:
      name: the name of the value, without the block.
      layers: which blocks, as written: "7", "-1", "2:8", "*". None outside the blocks, "" if the layer is data
        (`blocks.resid_post`).
    """

    name: str
    layers: str | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse an address. Raises `AddressError` if `text` cannot be one."""
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
                    f"{text!r}: {parts[1]!r} is no block. Write a number, a range (blocks.2:5) or all (blocks.*); "
                    "for any others a list of addresses, one for each"
                )
            return cls(".".join(parts[1:]), "")
        if len(parts) == 2:
            raise AddressError(f"{text!r} names a block and no value of it: write '{text}.resid_post', for example")
        return cls(".".join(parts[2:]), parts[1])

    def __str__(self) -> str:
        if self.layers is None:
            return self.name
        return ".".join(("blocks", *filter(None, (self.layers,)), self.name))

    @property
    def is_single(self) -> bool:
        """Whether it names exactly one value. A reading of it has no layer axis then."""
        return self.layers is None or self.layers.lstrip("-").isdigit()

    def resolve(self, depth: int) -> tuple[int, ...] | None:
        """The layers that it means in a model of `depth` blocks, ascending; None outside the blocks.

        Raises `AddressError` if it means none.
        """
        if self.layers is None:
            return None
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


def flatten(addresses: str | Iterable) -> Iterator[str]:
    """The addresses in a nested list of them: a list of addresses is an address."""
    if isinstance(addresses, str) or not isinstance(addresses, Iterable):
        yield addresses  # type: ignore[misc]  (what is not a string is refused by `parse`, with its value)
    else:
        for address in addresses:
            yield from flatten(address)


def depth_in(names: Iterable[str]) -> int:
    """The number of blocks of a model, from the names that `sites` and `survey` return."""
    return 1 + max((int(name.split(".")[1]) for name in names if name.startswith("blocks.")), default=-1)


def suggest(asked: str, exist: Iterable[str]) -> str:
    """The end of an error message about `asked`: the nearest names that exist, and how to list them all."""
    exist = sorted(set(exist))
    tail = asked.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(asked, exist, n=3, cutoff=0.5)
    near = list(dict.fromkeys(near + [name for name in exist if name.rsplit(".", 1)[-1] == tail]))[:4]
    did_you_mean = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"{did_you_mean} `sites(model)(*args)` lists every name; here: {', '.join(exist) or 'none'}."
