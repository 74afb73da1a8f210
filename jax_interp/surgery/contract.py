"""The contract between surgery, models and edits.

**A model** is a callable pytree that gives names to the values inside it:

    class MyModel:                                    # an nnx.Module, a registered dataclass, any pytree
        def __call__(self, x, *, taps=()):
            site = Site.open(taps, self.blocks)       # a model without blocks: Site.open(taps)
            x = site("embed", self.embed(x))
            x = run_blocks(self.blocks, x, site)      # each block is called as block(x, site)
            return site.close(self.head(x))

`site(name, value)` names the value and returns it. If an edit acts on this name, it returns the edited value. `read`,
`edit`, `grad_at` and `sites` work on every model that does this.

**An edit** is a callable pytree, `fn(value) -> value`, that keeps the shape. Its leaves are data, so they can be swept
and differentiated. There are three kinds:

    plain     fn(value). A function, a `jax.tree_util.Partial`, a registered dataclass.
    token     fn(value, tokens). An instance of a subclass of `TokenEdit`. It knows which tokens the value belongs to:
              their absolute positions, and which of them are padding. Most built-in edits are of this kind.
    scoped    fn(value, site). An instance of a subclass of `ScopedEdit`. With the site it can name its own values and
              pass values to later edits.

**A carried value** is made by one scoped edit, `site.carry(name, value)`, and used by a later one,
`site.carried(name)`. It is data. It passes through scanned and unrolled blocks, `jax.checkpoint`, `jax.vmap` and
`jax.grad` as the residual stream does.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from jaxtyping import Array

if TYPE_CHECKING:
    from jax_interp.surgery.site import Site
    from jax_interp.surgery.value_tokens import ValueTokens


@runtime_checkable
class Model(Protocol):
    """A callable pytree that accepts `taps=`, opens a `Site` with them and returns `site.close(output)`."""

    def __call__(self, *args: Any, taps: tuple = (), **kwargs: Any) -> Any: ...


class LayeredModel(Model, Protocol):
    """A model with `blocks`: a list of segments. A segment is a block, or a `Stack` of blocks."""

    blocks: Any


@runtime_checkable
class LayeredConfig(Protocol):
    """A config with settings per layer (the kind of attention, for example). `arrange` calls `of_layers`."""

    def of_layers(self, layers: list[int]) -> Any: ...


class Block(Protocol):
    """One block. It returns `x`, or `(x, state)` if it is called with `state=` (a KV cache, for example)."""

    def __call__(self, x: Any, site: Site, *args: Any, **kwargs: Any) -> Any: ...


class Dictionary(Protocol):
    """A dictionary that `Splice` can use: it encodes a value into latents, and decodes latents into a value.

    A dictionary whose output also depends on its input derives from `surgery.sparse_coder.SparseCoder`.
    """

    def encode(self, x: Array, /) -> Array: ...

    def decode(self, latents: Array, /) -> Array: ...


class PlainEdit(Protocol):
    """An edit that needs only the value: a callable pytree. The result has the shape of the value."""

    def __call__(self, x: Array) -> Array: ...


class TokenEdit(abc.ABC):
    """Base class of edits that are called with the tokens of the value: `fn(value, tokens)`.

    An edit that compares rows or positions needs them, because padding is no data. An edit that has an array with a
    `pos` axis needs them too: in generation, a call has a part of the text only.

    A subclass is a frozen dataclass that is registered as a pytree.

    Example:
        @register_dataclass
        @dataclasses.dataclass(frozen=True)
        class TowardsMean(TokenEdit):
            strength: Float[Array, ""]

            def __call__(self, x, tokens):
                return x + self.strength * (tokens.mean_over_rows(x) - x)
    """

    @abc.abstractmethod
    def __call__(self, x: Array, tokens: ValueTokens) -> Array: ...


class ScopedEdit(abc.ABC):
    """Base class of edits that are called with a site: `fn(value, site)`.

    The site is the scope below the edited value. With the site the edit can
      - name its own values: `site("latents", z, axes)` at `blocks.3.mlp_in` is the value `blocks.3.mlp_in.latents`.
        A later `read` or `edit` around this model can address it;
      - find out where it acts: `site.axes` are the axes of the value, `site.layer` is the number of the block, and
        `site.tokens` are the tokens (see `TokenEdit`);
      - make a value for a later edit, `site.carry(name, value)`, and use such a value, `site.carried(name)`.

    A subclass is a frozen dataclass that is registered as a pytree.

    Example:
        @register_dataclass
        @dataclasses.dataclass(frozen=True)
        class Remember(ScopedEdit):
            def __call__(self, x, site):
                site.carry("remembered", x)
                return x

        @register_dataclass
        @dataclasses.dataclass(frozen=True)
        class AddRemembered(ScopedEdit):
            def __call__(self, x, site):
                return x + site.carried("remembered")

        edit(model, at("blocks.0.resid_post", Remember()), at("blocks.3.resid_post", AddRemembered()))
    """

    @abc.abstractmethod
    def __call__(self, x: Array, site: Site) -> Array: ...
