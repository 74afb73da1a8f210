"""The whole contract between surgery and a model: what a callable pytree must do to take part.

    class MyModel:                                    # an nnx.Module, a registered dataclass, any pytree
        def __call__(self, x, *, taps=()):
            site = Site.open(taps, self.blocks)       # no blocks? Site.open(taps)
            x = site("embed", self.embed(x))
            x = run_blocks(self.blocks, x, site)      # each block is called as block(x, site)
            return site.close(self.head(x))

`site(name, value)` gives the value its name and returns it, edited where an edit says so. That is all:
`read`, `edit`, `grad_at` and `sites` work on whatever keeps this.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Model(Protocol):
    """A callable pytree that accepts `taps=`, opens a `Site` with them and returns `site.close(output)`."""

    def __call__(self, *args: Any, taps: tuple = (), **kwargs: Any) -> Any: ...


class Block(Protocol):
    """One block. With `state=` (a KV cache, say) it returns `(x, state)`, otherwise `x`."""

    def __call__(self, x: Any, site: Any, *args: Any, **kwargs: Any) -> Any: ...


class Dictionary(Protocol):
    """What `Splice` puts in place of a value: anything that encodes it into latents and decodes them."""

    def encode(self, x: Any) -> Any: ...

    def decode(self, latents: Any) -> Any: ...
