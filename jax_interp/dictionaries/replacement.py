"""The replacement model: a dictionary's reconstructions take the place of some values (for example, all MLP outputs).

    local = replacement(model, reads, writes, clt)
    local(tokens)
    errors = measure_errors(model, reads, writes, clt)(tokens)
    exact = replacement(model, reads, writes, clt, errors=errors)
    exact(tokens)                                          # equals model(tokens)
    edit(exact, at("blocks.2.ln2.normalized.latents", Zero(), feature=17))

The dictionary reads its inputs in the same run in which it writes, so later layers see the errors of earlier layers.
With `errors` (error nodes, Ameisen et al. 2025), the output is that of the model until something is edited.

`local` and `exact` are models: `read`, `edit`, `grad_at`, `jax.jit`, `jax.grad` and `remat=` work on them. Their values
have the names of the model's values. Each address that is read also has `….latents` [batch pos feature]. Each address
that is written also has `….error`, if errors were given.

Cost: one forward pass, one dense encoding per source, and one dense matrix product for each pair of a source and a
target that it writes: S(S+1)/2 for a whole cross-layer transcoder.

Layout: single-layer transcoders stay in the scan of a scanned model, if they have one shape and each one reads and
writes the same layer. Their weights are stacked on each call. The sources of a cross-layer transcoder have decoders of
different shapes, and one scanned body could hold these only with padding that doubles their size. `replacement`
therefore unrolls the layers that are read or written. This copies the weights of these layers once, and compile time
grows with the number of layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.forms.cross_layer import CrossLayer, Source, from_transcoders
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.surgery import (
    CarryError,
    Each,
    Edit,
    ScopedEdit,
    Site,
    at,
    canonical,
    depth_of,
    edit,
    iter_segments,
    replan,
    values_at,
)
from jax_interp.surgery.address import Address
from jax_interp.surgery.contract import Model
from jax_interp.surgery.taps import Wrapper, static
from jax_interp.surgery.value_tokens import wide


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Errors:
    """The reconstruction errors of a clean run, as `measure_errors` returns them.

    Attributes:
      values: the values of the clean run, by target.
      reconstructions: the dictionary's reconstructions in the clean run, by target. Values and reconstructions are
        both kept, so that value + (ŷ - reconstruction) equals the value bit for bit wherever ŷ is the reconstruction.
    """

    values: tuple[Float[Array, "batch pos d_out"], ...]
    reconstructions: tuple[Float[Array, "batch pos d_out"], ...]

    def __getitem__(self, target: int) -> Float[Array, "batch pos d_out"]:
        """The error of one target."""
        return wide(self.values[target]) - wide(self.reconstructions[target])


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Replacement(Wrapper):
    """The model that `replacement` returns: a callable pytree that keeps the surgery contract.

    Its arrays are data: `dataclasses.replace(local, dictionary=other)` does not compile again.
    """

    dictionary: CrossLayer
    errors: Errors | None
    where: Bool[Array, "batch pos"] | None
    reads: tuple[str, ...] = static()
    writes: tuple[str, ...] = static()
    measures: bool = static(default=False)
    """If True, values are not replaced, and their reconstructions get a name. `measure_errors` uses this."""

    @property
    def stretch(self) -> tuple[str, str] | None:
        """(address of all values read, address of all values written) if the edits stay inside a scan, else None."""
        if not _scanned(self.model, self.reads) or not _are_alike(self.dictionary.sources):
            return None
        return _same_layers(self.reads, self.writes, depth_of(self.model))

    def __call__(self, *args: Any, taps: tuple = (), **kwargs: Any) -> Any:
        scope = f"replacement.{len(taps)}"  # nested replacement models have different names
        edits = self._edits(scope) if self.stretch is None else self._stacked_edits(scope, *self.stretch)
        return edit(self.model, *edits)(*args, taps=taps, **kwargs)

    def _edits(self, scope: str) -> list[Edit | tuple[Edit, ...]]:
        """Two edits for each source."""
        edits: list[Edit | tuple[Edit, ...]] = []
        names = tuple(f"{scope}.{i}" for i in range(len(self.reads)))
        for i, (source, reads, writes) in enumerate(zip(self.dictionary.sources, self.reads, self.writes, strict=True)):
            error = None if self.errors is None else (self.errors.values[i], self.errors.reconstructions[i])
            # The order matters where a value is both read and written. A weakly causal source reads the value before it
            # is replaced. A strictly causal source reads the value after earlier sources have replaced it.
            edits.append(at(reads, _Encode(source, names[i])))
            edits.append(self._written(writes, _Write(self.dictionary, error, names[: i + 1], writes, self.measures)))
        return edits

    def _stacked_edits(self, scope: str, reads: str, writes: str) -> list[Edit | tuple[Edit, ...]]:
        """Two edits for all sources together. Their arrays have an axis for the layer."""
        source = jax.tree.map(lambda *leaves: jnp.stack(leaves), *self.dictionary.sources)
        alone = CrossLayer((source,), self.dictionary.b_dec[:, None])
        error = None if self.errors is None else (jnp.stack(self.errors.values), jnp.stack(self.errors.reconstructions))
        write = _Write(alone, error, (scope,), writes, self.measures)
        return [at(reads, Each(_Encode(source, scope))), self._written(writes, Each(write))]

    def _written(self, address: str, fn: ScopedEdit | Each) -> Edit | tuple[Edit, ...]:
        return at(address, fn, where=None if self.measures else self.where)


def replacement(
    model: Model,
    reads: Sequence[str],
    writes: Sequence[str],
    dictionary: CrossLayer | Sequence[Dictionary],
    *,
    errors: Errors | None = None,
    where: Bool[Array, "batch pos"] | None = None,
) -> Replacement:
    """Replace the values at `writes` by what the dictionary reconstructs from the values at `reads`.

    Args:
      model: any model that keeps the surgery contract.
      reads: the address that each source reads, in the order of the layers.
      writes: the address that each source writes first, one for each source.
      dictionary: a cross-layer dictionary, or a list of transcoders of one layer each. It works on raw activations, as
        exported.
      errors: the errors of a clean run on the same tokens. They are added to the reconstructions. No gradient flows
        through them.
      where: the tokens at which values are replaced. None: all tokens.

    Returns:
      A model. Gradients go through the dictionary.

    Raises:
      UserError: the addresses do not fit the dictionary. The returned model raises it too, if a value is written before
        a value that its reconstruction depends on is read.

    Example:
        reads = [f"blocks.{i}.ln2.normalized" for i in range(4)]
        writes = [f"blocks.{i}.mlp_out" for i in range(4)]
        local = replacement(model, reads, writes, clt)
        logits, acts = call(read(local, "blocks.0.ln2.normalized.latents"), tokens)
    """
    return _checked(Replacement(model, _as_cross_layer(dictionary), errors, where, _names(reads), _names(writes)))


def measure_errors(
    model: Model, reads: Sequence[str], writes: Sequence[str], dictionary: CrossLayer | Sequence[Dictionary]
) -> Callable[..., Errors]:
    """Measure the errors that `replacement` adds. They come from a clean run.

    Args:
      model: any model that keeps the surgery contract.
      reads: the address that each source reads.
      writes: the address that each source writes first.
      dictionary: a cross-layer dictionary, or a list of transcoders.

    Returns:
      A function of the model's arguments that returns `Errors`. It runs the model once, up to the last target.

    Example:
        errors = measure_errors(model, reads, writes, clt)(tokens)
    """
    measuring = _checked(
        Replacement(model, _as_cross_layer(dictionary), None, None, _names(reads), _names(writes), measures=True)
    )

    def run(*args: Any, **kwargs: Any) -> Errors:
        written = measuring.writes if measuring.stretch is None else measuring.stretch[1:]
        reconstructed = [f"{one}.reconstruction" for one in written]
        found = values_at(measuring, *written, *reconstructed)(*args, **kwargs)
        values, reconstructions = (
            [found[f"{one}{end}"] for one in measuring.writes] for end in ("", ".reconstruction")
        )
        return Errors(tuple(values), tuple(reconstructions))

    return run


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Encode(ScopedEdit):
    """Encode the value, name the latents and carry them to the targets. The value itself does not change."""

    source: Source
    name: str = static()

    def __call__(self, x: Array, site: Site) -> Array:
        z = self.source.encode(x)
        z = site("latents", z, " ".join((*site.axes[: z.ndim - 1], "feature")))
        site.carry(self.name, (z, None if self.source.W_skip is None else x))
        return x


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Write(ScopedEdit):
    """Replace the value by its reconstruction from the sources `names`, plus the error of the clean run if given."""

    dictionary: CrossLayer
    error: tuple[Array, Array] | None
    names: tuple[str, ...] = static()
    address: str = static()
    measures: bool = static()

    def __call__(self, y: Array, site: Site) -> Array:
        y_hat = self._reconstruction(y, site)
        if self.measures:
            site("reconstruction", y_hat, " ".join(site.axes))
            return y
        if self.error is None:
            return y_hat
        # In 16 bits the rounding of a large error would remain where the error is ablated.
        value, reconstruction = (wide(part) for part in jax.lax.stop_gradient(self.error))
        error = value - reconstruction
        edited = site("error", error, " ".join(site.axes))
        return value + (y_hat - reconstruction) + (edited - error)

    def _reconstruction(self, y: Array, site: Site) -> Array:
        carried = []
        for i, name in enumerate(self.names):
            try:
                carried.append(site.carried(name))
            except CarryError as error:
                raise UserError(
                    f"{self.address} is made before the value that source {i} reads: give reads and writes in the "
                    "order of the layers; each source must read no later than it writes"
                ) from error
        latents, x = [z for z, _ in carried], carried[-1][1]
        return self.dictionary.write(len(latents) - 1, latents, x).reshape(y.shape).astype(wide(y).dtype)


def _as_cross_layer(dictionary: CrossLayer | Sequence[Dictionary]) -> CrossLayer:
    return dictionary if isinstance(dictionary, CrossLayer) else from_transcoders(dictionary)


def _names(addresses: str | Sequence[str]) -> tuple[str, ...]:
    return canonical((addresses,) if isinstance(addresses, str) else tuple(addresses))


def _checked(local: Replacement) -> Replacement:
    """Check the addresses of a replacement model, and unroll the layers that it reads or writes if needed."""
    n = len(local.dictionary.sources)
    if (len(local.reads), len(local.writes)) != (n, n):
        raise UserError(
            f"{len(local.reads)} addresses to read and {len(local.writes)} to write, for a dictionary of {n} sources: "
            "give one address to read and one to write for every source, in the order of the layers"
        )
    for names in (local.reads, local.writes):
        several = [one for one in names if not Address.parse(one).is_single]
        twice = [one for one in names if names.count(one) > 1]
        if several or twice:
            raise UserError(
                f"{(several or twice)[0]!r} names several values or is there twice: name each value once, as in "
                "blocks.0.mlp_out, blocks.1.mlp_out, …"
            )
    if local.stretch is not None or not (scanned := _scanned(local.model, (*local.reads, *local.writes))):
        return local
    unrolled = {layer for s in iter_segments(local.model) if not s.stacked for layer in s.layers}
    return dataclasses.replace(local, model=replan(local.model, sorted(unrolled | scanned)))  # type: ignore[type-var]


def _scanned(model: Model, addresses: Sequence[str]) -> set[int]:
    """The layers of the addresses that run inside a scan."""
    depth = depth_of(model)
    wanted = {layer for one in addresses for layer in Address.parse(one).resolve(depth) or ()}
    return wanted & {layer for segment in iter_segments(model) if segment.stacked for layer in segment.layers}


def _are_alike(sources: Sequence[Source]) -> bool:
    """Whether the sources can be stacked: one structure, one shape, and one target each."""
    signatures = [(jax.tree.structure(s), [(a.shape, a.dtype) for a in jax.tree.leaves(s)]) for s in sources]
    return sources[0].W_dec.shape[1] == 1 and all(one == signatures[0] for one in signatures)


def _same_layers(reads: Sequence[str], writes: Sequence[str], depth: int) -> tuple[str, str] | None:
    """(one address for all reads, one address for all writes). None unless each source writes the layer that it reads,
    and the layers are evenly spaced."""
    parsed = [[Address.parse(one) for one in names] for names in (reads, writes)]
    layers, written = ([one.resolve(depth) for one in addresses] for addresses in parsed)
    if layers != written or None in layers or any(len({one.name for one in addresses}) > 1 for addresses in parsed):
        return None
    numbers = [one[0] for one in layers if one]
    step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    if step < 1 or numbers != list(range(numbers[0], numbers[-1] + 1, step)):
        return None
    rows = f"blocks.{numbers[0]}:{numbers[-1] + 1}" + ("" if step == 1 else f":{step}")
    return f"{rows}.{parsed[0][0].name}", f"{rows}.{parsed[1][0].name}"
