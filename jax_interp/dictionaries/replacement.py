"""The replacement model: a model whose MLPs (or whatever is written) speak through a transcoder's latents.

    local = replacement(model, reads, writes, clt)         every written value is what the clt says, from what it reads
    local(tokens)                                          in this same run: errors feed each other
    errors = measure_errors(model, reads, writes, clt)(tokens)
    exact = replacement(model, reads, writes, clt, errors=errors)       with error nodes (Ameisen et al. 2025):
    exact(tokens)                                          what the model says, until something is edited
    edit(exact, at("blocks.2.ln2.normalized.latents", Zero(), feature=17))

Both are models like any other: `read`, `edit`, `grad_at`, `jax.jit` and `jax.grad` take them. Their values have the
model's names; below each address that is read there is `….latents` [batch pos feature], below each that is written,
where there are errors, `….error`.

Cost: one forward pass, with one dense encoding a source and one dense matrix product for each pair of a source and a
target it writes, S(S+1)/2 for a whole cross-layer transcoder. What is written in one block depends on what was read in
earlier ones, so these blocks cannot be scanned: they are unrolled once, which copies their weights, and compile time
grows with their number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import Array, Bool, Float

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.forms.cross_layer import CrossLayer, Source, from_transcoders
from jax_interp.dictionaries.forms.dictionary import Dictionary
from jax_interp.surgery import at, depth_of, edit, iter_segments, read, replan
from jax_interp.surgery.address import Address

STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Errors:
    """Of a clean run, by target: the values themselves, and what the dictionary says of each. Their difference is the
    error; both are kept so that value + (ŷ - said) is the value to the bit wherever ŷ is what was said."""

    values: tuple[Float[Array, "batch pos d_out"], ...]
    said: tuple[Float[Array, "batch pos d_out"], ...]

    def __getitem__(self, target: int) -> Float[Array, "batch pos d_out"]:
        """The error of one target."""
        return self.values[target] - self.said[target]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Replacement:
    """What `replacement` returns: a callable pytree that keeps the surgery contract. Arrays of it can be replaced
    (`dataclasses.replace(local, dictionary=other)`) without compiling again."""

    model: Any
    dictionary: CrossLayer
    errors: Errors | None
    where: Bool[Array, "batch pos"] | None
    reads: tuple[str, ...] = dataclasses.field(metadata=STATIC)
    writes: tuple[str, ...] = dataclasses.field(metadata=STATIC)
    measures: bool = dataclasses.field(default=False, metadata=STATIC)

    def __call__(self, *args: Any, taps: tuple = (), **kwargs: Any) -> Any:
        run, edits = _Run(), []
        for i, (source, reads, writes) in enumerate(zip(self.dictionary.sources, self.reads, self.writes, strict=True)):
            # In this order a value that is both read and written is read as what its own source is to write anew
            # (weakly causal), and as what earlier sources made of it (strictly causal).
            edits.append(at(reads, _Encode(source, i, run)))
            if self.measures:
                edits.append(at(writes, _Say(self.dictionary, i, writes, run)))
            else:
                error = None if self.errors is None else (self.errors.values[i], self.errors.said[i])
                edits.append(at(writes, _Write(self.dictionary, error, i, writes, run), where=self.where))
        try:
            return edit(self.model, *edits)(*args, taps=taps, **kwargs)
        except jax.errors.UnexpectedTracerError as error:
            raise UserError(
                "a replacement model hands latents from block to block, which blocks that are recomputed in the "
                "backward pass (remat) or compiled by themselves do not allow: call it without remat"
            ) from error


def replacement(
    model: Any,
    reads: Sequence[str],
    writes: Sequence[str],
    dictionary: CrossLayer | Sequence[Dictionary],
    *,
    errors: Errors | None = None,
    where: Bool[Array, "batch pos"] | None = None,
) -> Replacement:
    """`model` with each value of `writes` replaced, where `where` (None: everywhere), by what `dictionary` says from
    the values of `reads` in the same run, plus the errors of a clean run, if given.

    `dictionary` works on raw activations, as exported; transcoders of single layers are given as a list. Gradients go
    through the dictionary, errors are constants. Raises UserError where the addresses do not fit it, or, when called,
    where a value is written before one that it is made from is read.
    """
    return _checked(model, reads, writes, dictionary, errors=errors, where=where)


def measure_errors(
    model: Any, reads: Sequence[str], writes: Sequence[str], dictionary: CrossLayer | Sequence[Dictionary]
) -> Callable[..., Errors]:
    """`measure_errors(...)(tokens)`: the errors of a clean run. One forward pass, no further than the last target."""
    measuring = _checked(model, reads, writes, dictionary, measures=True)
    said = tuple(f"{one}.said" for one in measuring.writes)

    def run(*args: Any, **kwargs: Any) -> Errors:
        found = read(measuring, *measuring.writes, *said, output=False)(*args, **kwargs)
        return Errors(tuple(found[one] for one in measuring.writes), tuple(found[one] for one in said))

    return run


def _checked(model, reads, writes, dictionary, *, errors=None, where=None, measures=False) -> Replacement:
    reads, writes = ((one,) if isinstance(one, str) else tuple(one) for one in (reads, writes))
    dictionary = dictionary if isinstance(dictionary, CrossLayer) else from_transcoders(dictionary)
    n = len(dictionary.sources)
    if (len(reads), len(writes)) != (n, n):
        raise UserError(
            f"{len(reads)} addresses to read and {len(writes)} to write, for a dictionary of {n} sources: give one of "
            "each for every source, in the order of the layers"
        )
    for names in (reads, writes):
        several = [one for one in names if not Address.parse(one).is_single]
        twice = [one for one in names if names.count(one) > 1]
        if several or twice:
            raise UserError(
                f"{(several or twice)[0]!r} stands for several values or is there twice: name each value once, "
                "blocks.0.mlp_out, blocks.1.mlp_out, …"
            )
    return Replacement(_unrolled(model, (*reads, *writes)), dictionary, errors, where, reads, writes, measures)


def _unrolled(model: Any, addresses: Sequence[str]) -> Any:
    """The model with the layers of `addresses` as blocks of their own; itself where they are so already."""
    depth = depth_of(model)
    scanned = {layer for segment in iter_segments(model) if segment.stacked for layer in segment.layers}
    wanted = {layer for one in addresses for layer in Address.parse(one).resolve(depth) or ()}
    if not wanted & scanned:
        return model
    return replan(model, sorted(wanted | (set(range(depth)) - scanned)))


class _Run:
    """What one run has met so far: by source, the latents and the value read."""

    def __init__(self) -> None:
        self.latents: dict[int, Any] = {}
        self.values: dict[int, Any] = {}

    def say(self, dictionary: CrossLayer, target: int, address: str, like: Array) -> Array:
        if target not in self.latents:
            raise UserError(
                f"{address} is made before the value that source {target} reads: reads and writes go by layers, each "
                "read no later than the value that its source writes first"
            )
        latents = [self.latents[i] for i in range(target + 1)]
        return dictionary.write(target, latents, self.values[target]).reshape(like.shape).astype(like.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Encode:
    """Leaves the value as it is and keeps its latents, which have a name."""

    source: Source
    index: int = dataclasses.field(metadata=STATIC)
    run: _Run = dataclasses.field(metadata=STATIC)

    scoped = True

    def __call__(self, x: Array, site: Any) -> Array:
        z = self.source.encode(x)
        self.run.latents[self.index] = site("latents", z, " ".join((*site.axes[: z.ndim - 1], "feature")))
        self.run.values[self.index] = x
        return x


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Write:
    """What the dictionary says, in place of the value."""

    dictionary: CrossLayer
    error: tuple[Array, Array] | None
    target: int = dataclasses.field(metadata=STATIC)
    address: str = dataclasses.field(metadata=STATIC)
    run: _Run = dataclasses.field(metadata=STATIC)

    scoped = True

    def __call__(self, y: Array, site: Any) -> Array:
        y_hat = self.run.say(self.dictionary, self.target, self.address, y)
        if self.error is None:
            return y_hat
        value, said = jax.lax.stop_gradient(self.error)
        error = value - said
        edited = site("error", error, " ".join(site.axes))
        return value + (y_hat - said) + (edited - error)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Say:
    """Leaves the value as it is and names what the dictionary says of it."""

    dictionary: CrossLayer
    target: int = dataclasses.field(metadata=STATIC)
    address: str = dataclasses.field(metadata=STATIC)
    run: _Run = dataclasses.field(metadata=STATIC)

    scoped = True

    def __call__(self, y: Array, site: Any) -> Array:
        site("said", self.run.say(self.dictionary, self.target, self.address, y), " ".join(site.axes))
        return y
