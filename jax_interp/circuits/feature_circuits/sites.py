"""The values whose features are nodes: their dictionaries, in the order of the forward pass.

At each of these values x = output(x, f) + ε, with the latents f and the error ε of its dictionary. The latents are one
node each, the whole error is one node. Where f and ε change, the value changes by what the dictionary writes:

    Δx = output(x, f + Δf) - output(x, f) + Δε

`output` must be affine in the latents, which it is for every dictionary that decodes with a matrix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_interp.circuits.contrast import Contrast, run
from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.sparse_coder import EncoderDecoder, SparseCoder, as_sparse_coder
from jax_interp.surgery import Activations, Add, Each, Edit, Replace, at, edit, read
from jax_interp.surgery.address import Address, AddressError, depth_in, suggest
from jax_interp.surgery.contract import Model
from jax_interp.surgery.value_tokens import wide
from jax_interp.surgery.verbs import survey

Ablation = Literal["patch", "zero"]
"""patch: latents and errors become those of the corrupted prompt. zero: they become 0."""
ERROR = -1
"""The number that stands for the error in place of the number of a feature."""


Run = tuple[str, tuple[int, ...]]
"""An address of neighbouring layers of one name, and the numbers of their sites."""


class Change(NamedTuple):
    """What an ablation changes at one value."""

    latents: Float[Array, "prompt pos feature"]
    error: Float[Array, "prompt pos ..."]
    value: Float[Array, "prompt pos ..."]
    """The change of the whole value: that of all its features and its error together."""


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Sites:
    """Named values with a dictionary each. `feature_sites` makes it and checks it.

    Args:
      coders: the dictionary of each value.
      addresses: the address of each value, one layer each, in the order of the forward pass.
      runs: neighbouring layers of one name are read and edited together: (address, numbers of the values).
    """

    coders: tuple[SparseCoder, ...]
    addresses: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    runs: tuple[Run, ...] = dataclasses.field(metadata={"static": True})

    def __len__(self) -> int:
        return len(self.addresses)

    @property
    def reads(self) -> tuple[str, ...]:
        """The addresses to read."""
        return tuple(address for address, _ in self.runs)

    def values(self, activations: Activations) -> list[Array]:
        """The value of each site, from what was read at `reads`."""
        found: dict[int, Array] = {}
        for address, numbers in self.runs:
            rows = activations[address]
            found |= dict(zip(numbers, rows if len(numbers) > 1 else [rows], strict=True))
        return [found[i] for i in range(len(self))]

    def edits(self, fn: Callable[[Array], Any], values: Sequence[Array]) -> list[Edit]:
        """The edit `fn(value)` at each site, such as `Replace` of its entry of `values`."""
        edits: list[Any] = []
        for address, numbers in self.runs:
            if len(numbers) > 1:
                edits.append(at(address, Each(fn(jnp.stack([values[i] for i in numbers])))))
            else:
                edits.append(at(address, *(fn(values[i]) for i in numbers)))
        return edits


def feature_sites(model: Model, contrast: Contrast, dictionaries: Mapping[str, EncoderDecoder]) -> Sites:
    """Find the values of dictionaries in a model, and check that each dictionary fits its value.

    Args:
      model: a model, under surgery or not.
      contrast: its prompts give the shapes.
      dictionaries: address of one value -> a dictionary that reads and writes it.

    Raises:
      AddressError: an address names no value, or several.
      UserError: there is no dictionary, one does not reconstruct the value that it reads, its latents are not
        [prompt, pos, feature], or two addresses are the same value.
    """
    if not dictionaries:
        raise UserError("there is no dictionary: give a mapping from addresses to dictionaries")
    mask = {} if contrast.mask is None else {"mask": contrast.mask}
    named = survey(model)(contrast.clean, **mask)
    found: dict[str, SparseCoder] = {}
    for text, dictionary in dictionaries.items():
        address = _resolved(text, named)
        if address in found:
            raise UserError(f"{text!r}: the value {address!r} has two dictionaries: give one for each value")
        found[address] = as_sparse_coder(dictionary)
        _check(address, found[address], named[address])
    ordered = sorted(found, key=list(named).index)
    return Sites(tuple(found[address] for address in ordered), tuple(ordered), _runs(ordered))


def latents_of(coder: SparseCoder, x: Array) -> Float[Array, "prompt pos feature"]:
    """The latents of a value, in at least float32."""
    return wide(coder.encode(x))


def written(coder: SparseCoder, x: Array, latents: Array) -> Array:
    """The reconstruction from `latents`, with the shape of the value `x` and the dtype of `wide(x)`."""
    return coder.output(x, latents).reshape(x.shape).astype(wide(x).dtype)


def change(coder: SparseCoder, x: Array, other: Array | None, real: Array | None) -> Change:
    """What changes at one value: its latents and its error become those of `other`, or 0 if `other` is None.

    Args:
      coder: the dictionary.
      x: the value in the clean run.
      other: the value in the corrupted run.
      real: [prompt, pos], False for padding. Nothing changes there.
    """
    before = latents_of(coder, x)
    x_hat, x_wide = written(coder, x, before), wide(x)
    after = jnp.zeros_like(before) if other is None else latents_of(coder, other)
    moved = written(coder, x, after) - x_hat
    error = x_hat - x_wide if other is None else wide(other) - x_wide - moved
    found = Change(after - before, error, moved + error)
    if real is None:
        return found
    zero = lambda a: jnp.where(real.reshape(real.shape + (1,) * (a.ndim - 2)), a, jnp.zeros_like(a))
    return Change(*map(zero, found))


def pulled_back(coder: SparseCoder, x: Array, gradient: Array) -> Float[Array, "... prompt pos feature"]:
    """The gradient with respect to latents, from the gradient with respect to the value. The error stays fixed.

    `gradient` may have more leading axes than `x`.
    """
    latents = latents_of(coder, x)
    _, pull = jax.vjp(lambda z: written(coder, x, z), latents)
    one = lambda g: pull(g.astype(wide(x).dtype))[0]
    for _ in range(gradient.ndim - x.ndim):
        one = jax.vmap(one)
    return one(gradient)


def contracted(a: Array, b: Array) -> Float[Array, "... prompt pos"]:
    """Σ over all axes after (prompt, pos) of a · b. `a` may have more leading axes than `b`."""
    axes = b.ndim - 2
    flat_a, flat_b = a.reshape(*a.shape[: a.ndim - axes], -1), b.reshape(*b.shape[:2], -1)
    return jnp.einsum("...btd,btd->...bt", flat_a, flat_b, precision=jax.lax.Precision.HIGHEST)


def run_with_values(
    model: Model, tokens: Int[Array, "prompt pos"], contrast: Contrast, sites: Sites, edits: Sequence[Edit] = ()
) -> tuple[Array, list[Array]]:
    """(the logits that the metric reads, the values as they arrive at the sites, before `edits`)."""
    output: Any = run(edit(read(model, *sites.reads), *edits), tokens, contrast)
    logits, activations = output
    return logits, sites.values(activations)


def clean_run(
    model: Model, contrast: Contrast, sites: Sites
) -> tuple[Float[Array, " prompt"], list[Array], list[Array]]:
    """(metric, values, gradient of the metric with respect to each value), all of the clean prompts."""
    types = value_types(model, contrast, sites)

    def perturbed(deltas: list[Array]):
        logits, values = run_with_values(model, contrast.clean, contrast, sites, sites.edits(Add, deltas))
        of_prompt = contrast.metric(logits)
        return jnp.sum(of_prompt), (of_prompt, values)

    zeros = [jnp.zeros(t.shape, t.dtype) for t in types]
    (_, (of_prompt, values)), gradients = jax.value_and_grad(perturbed, has_aux=True)(zeros)
    return of_prompt, values, [wide(g) for g in gradients]


def corrupted_values(model: Model, contrast: Contrast, sites: Sites, ablation: Ablation) -> list[Array | None]:
    """The values of the corrupted run; None for each site if the ablation is to zero."""
    if ablation == "zero":
        return [None] * len(sites)
    return list(run_with_values(model, contrast.corrupted, contrast, sites)[1])


def value_types(model: Model, contrast: Contrast, sites: Sites) -> list[jax.ShapeDtypeStruct]:
    """The shapes and dtypes of the values. Nothing is computed."""
    return jax.eval_shape(lambda: run_with_values(model, contrast.clean, contrast, sites)[1])


def _resolved(text: str, named: Mapping[str, Any]) -> str:
    """The address with a number of the layer that counts from 0."""
    address = Address.parse(text)
    if not address.is_single:
        raise AddressError(f"{text!r} names several values: give one dictionary for each, with its own address")
    layers = address.resolve(depth_in(named))
    full = address.name if layers is None else f"blocks.{layers[0]}.{address.name}"
    if full not in named:
        raise AddressError(f"{text!r} names no value of this model.{suggest(full, named)}")
    return full


def _check(address: str, coder: SparseCoder, value: Any) -> None:
    if value.axes[:2] != ("batch", "pos"):
        raise UserError(f"{address!r} has the axes {' '.join(value.axes)}: features need a value [batch, pos, ...]")
    if coder.whole_text or not coder.is_autoencoder():
        raise UserError(
            f"{address!r}: a node is a latent of one token, and its dictionary reconstructs the value that it reads; "
            "this dictionary reads several tokens, or writes another value"
        )
    x = jax.ShapeDtypeStruct(value.shape, value.dtype)
    try:
        latents = jax.eval_shape(coder.encode, x)
        out = jax.eval_shape(coder.output, x, latents)
    except (TypeError, ValueError) as error:
        raise UserError(f"the dictionary at {address!r} cannot read its value {list(value.shape)}: {error}") from error
    if latents.ndim != 3 or out.size != x.size:
        raise UserError(
            f"the dictionary at {address!r} gives latents {list(latents.shape)} and an output {list(out.shape)} for "
            f"the value {list(x.shape)}: latents must be [batch, pos, feature], and the output as large as the value"
        )


def _runs(addresses: Sequence[str]) -> tuple[Run, ...]:
    """Neighbouring layers of one name, as one address with a range of layers."""
    parsed = [Address.parse(address) for address in addresses]
    runs: list[Run] = []
    for name in dict.fromkeys(p.name for p in parsed if p.layers is not None):
        layers = sorted((int(p.layers), i) for i, p in enumerate(parsed) if p.name == name and p.layers is not None)
        stretch: list[tuple[int, int]] = []
        for layer, i in [*layers, (-1, -1)]:
            if stretch and layer != stretch[-1][0] + 1:
                first, last = stretch[0][0], stretch[-1][0]
                span = str(first) if first == last else f"{first}:{last + 1}"
                runs.append((f"blocks.{span}.{name}", tuple(i for _, i in stretch)))
                stretch = []
            stretch.append((layer, i))
    outside = [(p.name, (i,)) for i, p in enumerate(parsed) if p.layers is None]
    return tuple(outside + runs)


def with_value(address: str, value: Array, layer: Int[Array, ""] | None = None) -> Edit:
    """The edit that puts `value` in place of the value of one site. A layer that is given as data replaces the layer
    of the address, so that one program serves all layers of a run."""
    place = address if layer is None else f"blocks.{Address.parse(address).name}"
    placed: Any = at(place, Replace(value), layer=layer)
    return placed


def layer_indices(address: str) -> Int[Array, " layer"]:
    """The layers of the address of a run, as an array."""
    first, _, last = (Address.parse(address).layers or "").partition(":")
    return jnp.arange(int(first), int(last) if last else int(first) + 1)
