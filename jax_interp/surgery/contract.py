"""The contract between surgery, models and edits.

**A model** is a callable pytree that gives names to the values inside it:

    class MyModel:                                    # an nnx.Module, a registered dataclass, any pytree
        def __call__(self, x, *, taps=()):
            site = Site.open(taps, self.blocks)       # a model without blocks: Site.open(taps)
            x = site("embed", self.embed(x))
            x = run_blocks(self.blocks, x, site)      # each block is called as block(x, site)
            return site.close(self.head(x))

`site(name, value)` gives the value its name and returns it; where an edit acts, it returns the edited value. `read`,
`edit`, `grad_at` and `sites` work on every model that does this.

**An edit** is a callable pytree, `fn(value) -> value` of the same shape. Its leaves are data, so they can be swept and
differentiated. There are two kinds:

    plain     fn(value). A function, a `jax.tree_util.Partial`, a registered dataclass.
    scoped    fn(value, site), of a class that derives from `ScopedEdit`. The site lets it name values of its own and
              hand values to later edits.

**A carried value** is made by one scoped edit and used by a later one: `site.carry(name, value)` and
`site.carried(name)`. It is data. It goes through scanned and unrolled blocks, `jax.checkpoint`, `jax.vmap` and
`jax.grad` like the residual stream does.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from jaxtyping import Array

if TYPE_CHECKING:
    from jax_interp.surgery.site import Site


@runtime_checkable
class Model(Protocol):
    """A callable pytree that accepts `taps=`, opens a `Site` with them and returns `site.close(output)`."""

    def __call__(self, *args: Any, taps: tuple = (), **kwargs: Any) -> Any: ...


class LayeredModel(Model, Protocol):
    """A model with `blocks`: a list of segments, each a block or a `Stack` of them."""

    blocks: Any


@runtime_checkable
class LayeredConfig(Protocol):
    """A config with settings per layer (the kind of attention): `arrange` asks it for those of other layers."""

    def of_layers(self, layers: list[int]) -> Any: ...


class Block(Protocol):
    """One block. If it is called with `state=` (a KV cache, for example) it returns `(x, state)`, otherwise `x`."""

    def __call__(self, x: Any, site: Site, *args: Any, **kwargs: Any) -> Any: ...


class Dictionary(Protocol):
    """What `Splice` puts in place of a value: it encodes the value into latents and decodes latents."""

    def encode(self, x: Array, /) -> Array: ...

    def decode(self, latents: Array, /) -> Array: ...


class PlainEdit(Protocol):
    """An edit that needs the value alone: a callable pytree. The result has the shape of the value."""

    def __call__(self, x: Array) -> Array: ...


class ScopedEdit(abc.ABC):
    """Base class of the edits that are called with a site: `fn(value, site)`.

    The site is the scope below the edited value. With it the edit can
      - name values of its own: `site("latents", z, axes)` at `blocks.3.mlp_in` is the value `blocks.3.mlp_in.latents`.
        Surgeries outside this one can read and edit it;
      - know where it is: `site.axes` are the axes of the value, `site.layer` is the number of the block;
      - make a value that a later edit uses, `site.carry(name, value)`, and use one, `site.carried(name)`.

    Derive a frozen dataclass from it and register that as a pytree.

    Example:
        @jax.tree_util.register_dataclass
        @dataclasses.dataclass(frozen=True)
        class Remember(ScopedEdit):
            def __call__(self, x, site):
                site.carry("remembered", x)
                return x

        @jax.tree_util.register_dataclass
        @dataclasses.dataclass(frozen=True)
        class AddRemembered(ScopedEdit):
            def __call__(self, x, site):
                return x + site.carried("remembered")

        edit(model, at("blocks.0.resid_post", Remember()), at("blocks.3.resid_post", AddRemembered()))
    """

    @abc.abstractmethod
    def __call__(self, x: Array, site: Site) -> Array: ...
