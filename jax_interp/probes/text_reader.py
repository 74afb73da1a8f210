"""`TextReader`: runs a model on labelled texts in batches of similar length, and computes something of each batch.

`gather` and what finds steering vectors read texts with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.models.sharding import rules_for
from jax_interp.probes.host_memory import check_fits
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.length_batches import LengthBatch, length_batches
from jax_interp.surgery import Address, Model, depth_of, values_at
from jax_interp.surgery.address import canonical, flatten
from jax_interp.training.meshes import row_shards
from jax_interp.training.placement import automatic, placed

OnBatch = Callable[[int, int], None]
"""Called with (examples done, examples) after each batch."""
QUIET: OnBatch = lambda done, total: None


def single_sites(model: Model, data: LabelledTokens, at: str | Sequence[str]) -> tuple[str, ...]:
    """The addresses of single layers that these addresses name, in order.

    Raises:
      UserError: there is no such value, or it is not `[batch, pos, ...]`.
    """
    return tuple(site_widths(model, at, data.tokens.shape[1], not data.mask.all())[0])


def site_widths(model: Model, at: str | Sequence[str], length: int, masked: bool) -> tuple[dict[str, int], bool]:
    """(the width of each site that these addresses name, in order; whether the model takes a mask).

    Args:
      model: the model.
      at: the addresses.
      length: the number of positions.
      masked: whether there is padding.

    Raises:
      UserError: there is no such value, or it is not `[batch, pos, ...]`.
    """
    names: list[str] = []
    for text in flatten(at):
        address = Address.parse(canonical(text))
        layers = None if address.is_single else address.resolve(depth_of(model))
        names += [str(address)] if layers is None else [f"blocks.{layer}.{address.name}" for layer in layers]
    if not (found := tuple(dict.fromkeys(names))):
        raise UserError("give at least one address")
    takes_mask = True
    try:
        values = _abstract_values(found, model, length, masked)
    except TypeError as error:  # of Python, for a keyword that a function does not have
        if "unexpected keyword argument 'mask'" not in str(error):
            raise
        values, takes_mask = _abstract_values(found, model, length, False), False
    shorter = _abstract_values(found, model, length - 1, False) if length > 1 else values
    for name, value, less in zip(found, values, shorter, strict=True):
        if value.shape[:2] != (1, length) or value.ndim < 3 or less.shape[2:] != value.shape[2:]:
            raise UserError(
                f"{name} has shape {value.shape} for tokens {(1, length)}: a probe reads one vector of a fixed width "
                "for each token"
            )
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise UserError(f"{name} is {value.dtype}: a probe reads real numbers")
    return {name: int(np.prod(x.shape[2:])) for name, x in zip(found, values, strict=True)}, takes_mask


def _abstract_values(names: tuple[str, ...], model: Model, length: int, masked: bool) -> list[jax.ShapeDtypeStruct]:
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, length), jnp.bool_) if masked else None
    # Without shardings, which would have to be resolved where no mesh is active.
    shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "dtype") else leaf
    return _values.eval_shape(names, jax.tree.map(shape, model), tokens, mask)


@partial(jax.jit, static_argnums=0)
@automatic
def _values(names: tuple[str, ...], model: Model, tokens: Array, mask: Array | None) -> list[Array]:
    """The values of single layers as they are. It is not run: JAX keeps the shapes that it has found once."""
    found = values_at(model, *names)(tokens, **({} if mask is None else {"mask": mask}))
    return [found[name] for name in names]


@dataclasses.dataclass(frozen=True, eq=False)
class TextReader:
    """A model and examples, and how they are read. `TextReader.of` makes it.

    Args:
      model: the model.
      data: the examples.
      widths: the width of each site, by address.
      some: the batches.
      masked: whether the model gets a mask.
      place: the mesh. None: one device.
    """

    model: Model
    data: LabelledTokens
    widths: dict[str, int]
    some: list[LengthBatch]
    masked: bool
    place: Mesh | None

    @classmethod
    def of(
        cls, model: Model, data: LabelledTokens, at: str | Sequence[str], batch: int, place: Mesh | None
    ) -> TextReader:
        """A reader of these sites. Args and Raises as in `gather`."""
        if not len(data):
            raise UserError(f"{data.name} has no example")
        widths, takes_mask = site_widths(model, at, data.tokens.shape[1], not data.mask.all())
        masked = takes_mask and not data.mask.all()
        if not takes_mask and not data.mask[:, 0].all():
            raise UserError(
                f"the model takes no mask, and {data.name} is padded on the left: pad on the right, or give the model "
                "the argument `mask`"
            )
        if (check := getattr(model, "check_inputs", None)) is not None:
            check(data.tokens, mask=data.mask)
        place = mesh_of_leaves(model) if place is None else place
        ways = 1 if place is None else row_shards(place)
        some = length_batches(data.mask, batch, multiple=ways, exact=not takes_mask)
        return cls(model, data, widths, some, masked, place)

    def check_memory(self, vectors: int, what: str, fewer: str) -> None:
        """Raise UserError if as many vectors of each site do not fit into memory.

        Args:
          vectors: the number of vectors at each site.
          what: what they are.
          fewer: what the caller can give less of.
        """
        check_fits(
            4 * vectors * sum(self.widths.values()),
            f"the activations of {len(self.widths)} sites × {what}",
            f"read fewer sites, {fewer}, or fit probes on a stream (`stream_moments`, `stream_logistic`)",
        )

    def batches(
        self, function: Callable[..., Any], of_tokens: np.ndarray, *of_examples: np.ndarray, on_batch: OnBatch = QUIET
    ) -> Iterator[tuple[LengthBatch, Any]]:
        """What `function(sites, model, tokens, mask, of_tokens, *of_examples)` computes of each batch.

        The last rows of a batch may be copies, so that all batches of one length have one shape. Their `of_tokens` and
        `of_examples` are 0.

        Args:
          function: the function, compiled.
          of_tokens: `[example, ..., pos]`; it is cut as the tokens are.
          of_examples: arrays `[example, ...]`.
          on_batch: as in `gather`.
        """
        done, names = 0, tuple(self.widths)
        with placed(self.place, rules_for) as there:
            model = there.frozen(self.model, () if self.place is None else rules_for(self.model))
            batch_at = there.batches(lambda number: self._inputs(self.some[number], of_tokens, of_examples))
            for number, some in enumerate(self.some):
                yield some, function(names, model, *batch_at(number))
                done += len(some.rows)
                on_batch(done, len(self.data))

    def _inputs(self, some: LengthBatch, of_tokens: np.ndarray, of_examples: tuple[np.ndarray, ...]) -> tuple[Any, ...]:
        mask = self.data.mask[some.filled, : some.length] if self.masked else None
        chosen = [of_tokens[some.filled][..., : some.length], *(array[some.filled] for array in of_examples)]
        for array in chosen:
            array[len(some.rows) :] = 0
        return self.data.tokens[some.filled, : some.length], mask, *chosen


def mesh_of_leaves(tree: Any) -> Mesh | None:
    """The mesh that the leaves of a pytree are on. None if they are on one device."""
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) and sharding.mesh.size > 1:
            return sharding.mesh
    return None


def wide_values(names: tuple[str, ...], model: Model, tokens: Array, mask: Array | None) -> list[Array]:
    """The values of single layers as `[batch, pos, width]` in float32, from one forward pass."""
    inputs = {} if mask is None else {"mask": mask}
    found = values_at(model, *names)(tokens, **inputs)
    return [upcast(found[name]).astype(jnp.float32).reshape(*tokens.shape, -1) for name in names]
