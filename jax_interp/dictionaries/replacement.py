"""The replacement model: a model in which some values (say the outputs of its MLPs) are a dictionary's reconstructions.

    local = replacement(model, reads, writes, clt)         each written value is reconstructed from the values read
    local(tokens)                                          in this same run: later layers see the errors of earlier ones
    errors = measure_errors(model, reads, writes, clt)(tokens)
    exact = replacement(model, reads, writes, clt, errors=errors)       with error nodes (Ameisen et al. 2025):
    exact(tokens)                                          the output of the model, until something is edited
    edit(exact, at("blocks.2.ln2.normalized.latents", Zero(), feature=17))

Both are models: `read`, `edit`, `grad_at`, `jax.jit`, `jax.grad` and `remat=` work on them. Their values have the names
of the model's values. Below each address that is read there is `….latents` [batch pos feature]; below each address that
is written there is `….error`, if errors were given.

Cost: one forward pass, one dense encoding per source, and one dense matrix product for each pair of a source and a
target that it writes: S(S+1)/2 for a whole cross-layer transcoder.

Layout: transcoders of one layer each, of one shape, that read and write the same layers of a scanned model, stay in the
scan; their weights are stacked on each call. The sources of a cross-layer transcoder have decoders of different shapes,
which one scanned body cannot hold without doubling them. `replacement` unrolls the layers that it concerns instead,
once: this copies their weights, and compile time grows with their number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.forms.cross_layer import CrossLayer, Source, from_transcoders
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.surgery import CarryError, Each, Edit, ScopedEdit, Site, at, depth_of, edit, iter_segments, read, replan
from jax_interp.surgery.address import Address
from jax_interp.surgery.contract import Model
from jax_interp.surgery.taps import Wrapper, static


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Errors:
    """The reconstruction errors of a clean run, as `measure_errors` returns them.

    Attributes:
      values: the values of the clean run, by target.
      reconstructions: what the dictionary makes of the clean run, by target. Both are kept, not the difference alone,
        so that value + (ŷ - reconstruction) is the value to the bit wherever ŷ is the reconstruction.
    """

    values: tuple[Float[Array, "batch pos d_out"], ...]
    reconstructions: tuple[Float[Array, "batch pos d_out"], ...]

    def __getitem__(self, target: int) -> Float[Array, "batch pos d_out"]:
        """The error of one target."""
        return self.values[target] - self.reconstructions[target]


@jax.tree_util.register_dataclass
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
    """Whether written values stay as they are and their reconstructions are named, for `measure_errors`."""

    @property
    def stretch(self) -> tuple[str, str] | None:
        """If the edits stay in the body of a scan: the address of all values that are read, and of all written."""
        if not _scanned(self.model, self.reads) or not _are_alike(self.dictionary.sources):
            return None
        return _same_layers(self.reads, self.writes, depth_of(self.model))

    def __call__(self, *args: Any, taps: tuple = (), **kwargs: Any) -> Any:
        scope = f"replacement.{len(taps)}"  # of a nest of replacement models, each has names of its own
        edits = self._edits(scope) if self.stretch is None else self._stacked_edits(scope, *self.stretch)
        return edit(self.model, *edits)(*args, taps=taps, **kwargs)

    def _edits(self, scope: str) -> list[Edit | tuple[Edit, ...]]:
        """Two edits for each source."""
        edits: list[Edit | tuple[Edit, ...]] = []
        names = tuple(f"{scope}.{i}" for i in range(len(self.reads)))
        for i, (source, reads, writes) in enumerate(zip(self.dictionary.sources, self.reads, self.writes, strict=True)):
            error = None if self.errors is None else (self.errors.values[i], self.errors.reconstructions[i])
            # In this order a value that is both read and written is read as what its own source is to write anew
            # (weakly causal), and as what earlier sources made of it (strictly causal).
            edits.append(at(reads, _Encode(source, names[i])))
            edits.append(self._written(writes, _Write(self.dictionary, error, names[: i + 1], writes, self.measures)))
        return edits

    def _stacked_edits(self, scope: str, reads: str, writes: str) -> list[Edit | tuple[Edit, ...]]:
        """Two edits for all sources, with values per layer."""
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
    """The model with the values at `writes` replaced by the dictionary's reconstruction from the values at `reads`.

    Args:
      model: any model that keeps the surgery contract.
      reads: the address that each source reads, in the order of the layers.
      writes: the address that each source writes first, one for each source.
      dictionary: a cross-layer dictionary, or a list of transcoders of one layer each. It works on raw activations, as
        exported.
      errors: of a clean run on the same tokens. They are added to the reconstructions and are constants to gradients.
      where: at which tokens values are replaced; None: at all.

    Returns:
      A model. Gradients go through the dictionary.

    Raises:
      UserError: the addresses do not fit the dictionary; or, when the model is called, a value is written before one
        that it is made from is read.

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
    """The errors that `replacement` adds, from a clean run: `measure_errors(model, reads, writes, clt)(tokens)`.

    Args:
      model: as for `replacement`, and so are the others.
      reads: the address that each source reads.
      writes: the address that each source writes first.
      dictionary: a cross-layer dictionary, or a list of transcoders.

    Returns:
      A function of the model's arguments that returns `Errors`. It runs the model once, up to the last target.
    """
    measuring = _checked(
        Replacement(model, _as_cross_layer(dictionary), None, None, _names(reads), _names(writes), measures=True)
    )

    def run(*args: Any, **kwargs: Any) -> Errors:
        written = measuring.writes if measuring.stretch is None else measuring.stretch[1:]
        reconstructed = [f"{one}.reconstruction" for one in written]
        found = read(measuring, *written, *reconstructed, output=False)(*args, **kwargs)
        values, said = ([found[f"{one}{end}"] for one in measuring.writes] for end in ("", ".reconstruction"))
        return Errors(tuple(values), tuple(said))

    return run


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Encode(ScopedEdit):
    """Leaves the value as it is, names its latents and carries them to the targets."""

    source: Source
    name: str = static()

    def __call__(self, x: Array, site: Site) -> Array:
        z = self.source.encode(x)
        z = site("latents", z, " ".join((*site.axes[: z.ndim - 1], "feature")))
        site.carry(self.name, (z, None if self.source.W_skip is None else x))
        return x


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Write(ScopedEdit):
    """The reconstruction of the last of the sources `names`, with its error, in place of the value."""

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
        value, reconstruction = jax.lax.stop_gradient(self.error)
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
                    f"{self.address} is made before the value that source {i} reads: reads and writes go by layers, "
                    "each read no later than the value that its source writes first"
                ) from error
        latents, x = [z for z, _ in carried], carried[-1][1]
        return self.dictionary.write(len(latents) - 1, latents, x).reshape(y.shape).astype(y.dtype)


def _as_cross_layer(dictionary: CrossLayer | Sequence[Dictionary]) -> CrossLayer:
    return dictionary if isinstance(dictionary, CrossLayer) else from_transcoders(dictionary)


def _names(addresses: str | Sequence[str]) -> tuple[str, ...]:
    return (addresses,) if isinstance(addresses, str) else tuple(addresses)


def _checked(local: Replacement) -> Replacement:
    """The replacement model, its addresses checked, with the layers that it concerns unrolled where that is needed."""
    n = len(local.dictionary.sources)
    if (len(local.reads), len(local.writes)) != (n, n):
        raise UserError(
            f"{len(local.reads)} addresses to read and {len(local.writes)} to write, for a dictionary of {n} sources: "
            "give one of each for every source, in the order of the layers"
        )
    for names in (local.reads, local.writes):
        several = [one for one in names if not Address.parse(one).is_single]
        twice = [one for one in names if names.count(one) > 1]
        if several or twice:
            raise UserError(
                f"{(several or twice)[0]!r} stands for several values or is there twice: name each value once, "
                "blocks.0.mlp_out, blocks.1.mlp_out, …"
            )
    if local.stretch is not None or not (scanned := _scanned(local.model, (*local.reads, *local.writes))):
        return local
    unrolled = {layer for s in iter_segments(local.model) if not s.stacked for layer in s.layers}
    return dataclasses.replace(local, model=replan(local.model, sorted(unrolled | scanned)))  # type: ignore[type-var]


def _scanned(model: Model, addresses: Sequence[str]) -> set[int]:
    """Which layers of the addresses are run by a scan."""
    depth = depth_of(model)
    wanted = {layer for one in addresses for layer in Address.parse(one).resolve(depth) or ()}
    return wanted & {layer for segment in iter_segments(model) if segment.stacked for layer in segment.layers}


def _are_alike(sources: Sequence[Source]) -> bool:
    """Whether the sources can be stacked: one structure, one shape, and one target each."""
    signatures = [(jax.tree.structure(s), [(a.shape, a.dtype) for a in jax.tree.leaves(s)]) for s in sources]
    return sources[0].W_dec.shape[1] == 1 and all(one == signatures[0] for one in signatures)


def _same_layers(reads: Sequence[str], writes: Sequence[str], depth: int) -> tuple[str, str] | None:
    """The reads as one address, and the writes, where each source writes the layer that it reads and the layers are
    evenly spaced; otherwise None."""
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
