"""Components: a linear map as a sum of rank-one components and a rest Δ, each with a mask.

    W = sum_c V[:, c] U[c, :] + Δ          Δ = W - V U, so that nothing is lost while V and U are still wrong

`decompose(model, "blocks.*.mlp", C=512, key=key)` is model surgery: it returns the model with each selected matrix in
this form. The target's weights stay unchanged in `target`. V and U are in `components`, the part that is trained. Each
decomposed matrix has these named values below its address:

    input        what the matrix reads; for an embedding, token ids
    components   the inner activations x @ V, "... component"; a mask is an edit of them, `Scale(mask)`
    delta        the coefficient of Δ, one for each row; it is 1, and `Zero()` turns Δ off
    output       the output, bias included

Without an edit at `components` or `delta` the output equals the target's bit by bit. See Bushnaq, Braun & Sharkey 2025
(SPD, arXiv 2506.20790); Δ is from Bushnaq et al. 2026 (VPD).
"""

from __future__ import annotations

import dataclasses
import fnmatch
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, DTypeLike, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.core.short_repr import ShortRepr
from jax_interp.decomposition.matrices import check_tied, is_stacked, matrices, select_matrices, weight_of
from jax_interp.decomposition.probe import check_linear
from jax_interp.surgery import Site
from jax_interp.surgery.contract import Model
from jax_interp.surgery.select import replace, replace_each
from jax_interp.surgery.taps import static

Init = Literal["normal", "unit"]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Components(ShortRepr):
    """The rank-one components of one matrix, `V[:, c] U[c, :]`; with a leading layer axis for a stacked entry."""

    V: Float[Array, "*layer d_in C"]
    U: Float[Array, "*layer C d_out"]

    @property
    def C(self) -> int:
        return self.V.shape[-1]

    @property
    def T(self) -> Components:
        """The components of the transposed matrix."""
        return Components(jnp.swapaxes(self.U, -1, -2), jnp.swapaxes(self.V, -1, -2))

    def product(self, like: Array | None = None) -> Float[Array, "*layer d_in d_out"]:
        """The sum of the components, V U.

        Args:
          like: an array whose sharding the product gets, on a mesh with explicit axes; None: replicated.
        """
        whole = None if spec_of(self.V) is None else jax.P(*[None] * self.V.ndim)
        out = whole if like is None else spec_of(like)
        return jnp.einsum("...ic,...co->...io", self.V, self.U, out_sharding=out)

    def inner(self, x: Array, dtype: DTypeLike | None = None) -> Float[Array, "*layer_and_rows C"]:
        """The inner activations x V.

        Args:
          x: what the matrix reads, `[..., d_in]`, or `[layer, ..., d_in]` where V has a layer axis. Token ids, which an
            embedding reads, give rows of V; ids outside the vocabulary give NaN, as they do in the target.
          dtype: the dtype of the result; None: the dtype of x.
        """
        rows, components = spec_of(x), (spec_of(self.V) or (None,))[-1]
        if jnp.issubdtype(x.dtype, jnp.integer):
            out = None if rows is None else jax.P(*rows, components)
            V = self.V if dtype is None else self.V.astype(dtype)
            return V.at[x].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False, out_sharding=out)
        out = None if rows is None else jax.P(*rows[:-1], components)
        each = "l...i,lic->l...c" if self.V.ndim == 3 else "...i,ic->...c"
        return jnp.einsum(each, x, self.V.astype(x.dtype), out_sharding=out)


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class DecomposedLinear(ShortRepr):
    """A decomposed linear map. It replaces a linear map (`weight` `[d_in, d_out]`, called as `linear(x, site, ...)`) or
    an embedding, whose `x` are token ids.

    The output is `m_Δ y + (m a - m_Δ a) U + (1 - m_Δ) b`, with a = x V, y the target's output and b the bias. This
    takes three matrix products. The output equals y exactly where both masks are 1. With Δ off, y is not used, so the
    output has no rounding errors from y.
    """

    linear: Any
    components: Components

    def __call__(self, x: Array, site: Site, *args: Any, **kwargs: Any) -> Array:
        is_index = jnp.issubdtype(x.dtype, jnp.integer)
        ndim = x.ndim + is_index
        rows = ("batch", "pos", *(f"axis{i}" for i in range(ndim - 3)))[: ndim - 1]
        axes = " ".join(rows)
        x = site("input", x, axes if is_index else f"{axes} d_in")
        y = self.linear(x, site, *args, **kwargs)
        if site.wants("components", "delta"):
            inner = self.components.inner(x, y.dtype)
            edited = site("components", inner, f"{axes} component")
            delta = site("delta", _row_of_ones(inner), f"{axes} one")
            change = _product(edited - delta * inner, self.components.U.astype(inner.dtype), like=y)
            y = delta * y + change
            y = y if self.bias is None else y + (jnp.ones_like(delta) - delta) * broadcast_bias(self.bias, y)
        return site("output", y, f"{axes} d_out")

    def attend(self, x: Array) -> Array:
        """A tied unembedding uses the target's weights."""
        return self.linear.attend(x)

    @property
    def weight(self) -> Any:
        return self.linear.weight

    @property
    def bias(self) -> Any:
        return getattr(self.linear, "bias", None)


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Decomposed(ShortRepr):
    """A model with some of its matrices decomposed, as `decompose` returns it. Call it like the original model.

    The attributes of the target (`config`, `blocks`) are also attributes of this model.

    target: the original model. To train the components, differentiate with respect to `components` alone.
    components: V and U by entry.
    tied: pairs (name, twin): the twin's matrix is the transpose of the other's, and shares its V and U.
    """

    target: Model
    components: dict[str, Components]
    tied: tuple[tuple[str, str], ...] = static(default=())

    @property
    def names(self) -> tuple[str, ...]:
        """The entries of the decomposed matrices, twins included, sorted as strings. This is the order in which a dict
        is returned by `jax.jit`."""
        return tuple(sorted([*self.components, *(twin for _, twin in self.tied)]))

    def of(self, name: str) -> Components:
        """The components of one matrix; for a twin, the transposed ones."""
        for one, twin in self.tied:
            if twin == name:
                return self.components[one].T
        return self.components[name]

    def weight(self, name: str) -> Float[Array, "*layer d_in d_out"]:
        """The target's weights of one matrix."""
        for one, twin in self.tied:
            if twin == name:
                return jnp.swapaxes(weight_of(self.target, one), -1, -2)
        return weight_of(self.target, name)

    def delta(self, name: str) -> Float[Array, "*layer d_in d_out"]:
        """The rest Δ = W - V U of one matrix, in float32."""
        weight = self.weight(name).astype(jnp.float32)
        return weight - self.of(name).product(like=weight).astype(jnp.float32)

    def with_parts(self) -> Model:
        """The target with `DecomposedLinear` in place of its matrices. `__call__` calls this model."""
        model: Any = self.target
        for name in self.names:
            parts = self.of(name)
            if is_stacked(name):
                model = replace_each(model, name, DecomposedLinear, parts)
            else:
                model = replace(model, name, lambda part, parts=parts: DecomposedLinear(part, parts))
        return model

    def __call__(self, *args: Any, taps: tuple = (), **kwargs: Any) -> Any:
        return self.with_parts()(*args, taps=taps, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("target", "components", "tied"):
            raise AttributeError(name)
        return getattr(self.target, name)


def decompose(
    model: Model,
    matrices: str | Sequence[str],
    *,
    C: int | Mapping[str, int],
    key: Key[Array, ""],
    tied: Sequence[tuple[str, str]] = (),
    init: Init = "normal",
) -> Decomposed:
    """The model with some of its matrices decomposed into `C` components each.

    Args:
      model: any model that keeps the surgery contract.
      matrices: one pattern of addresses, or several (see `matrices.select_matrices`).
      C: the number of components of every matrix; or a number for each pattern, where the first pattern that matches
        counts: `{"blocks.*.attn.*": 512, "*": 3072}`.
      key: random key of the initial V and U. The values depend on the key and the address of a matrix, not on whether
        the model's blocks are scanned or unrolled.
      tied: pairs (name, twin): the twin's matrix is the transpose of the other's, and shares its V and U.
      init: "normal": V ~ N(0, 1/√d_in), U ~ N(0, 1/√C). "unit" (SPD 2025): columns of V and rows of U have norm one,
        then U[c] is scaled by ⟨V[:, c] U[c], W⟩.

    Returns:
      The decomposed model. Without masks its output equals the model's bit by bit.

    Raises:
      UserError: a pattern selects no matrix, no pattern of C matches a matrix, a twin is not the transpose, or a part
        is not a linear map `x @ weight + bias` (see `probe.check_linear`).

    Example:
        parts = decompose(model, "blocks.*.mlp", C=512, key=jax.random.key(0))
        logits, acts = read(parts, "blocks.*.mlp.up.components")(tokens)
    """
    twins = {twin: one for one, twin in tied}
    if len(twins) != len(tied):
        raise UserError(f"tied={tuple(tied)}: a twin is named twice")
    names = [name for name in select_matrices(model, matrices) if name not in twins]
    for twin, one in twins.items():
        if one not in names:
            raise UserError(f"tied=({one!r}, {twin!r}): {one!r} is not decomposed; these are: {', '.join(names)}")
    check_tied(model, tied)
    check_linear(model, names, tied)
    pairs = {name: _initial(weight_of(model, name), _count(C, name), key, name, init) for name in names}
    return Decomposed(model, pairs, tuple((one, twin) for one, twin in tied))


def _count(C: int | Mapping[str, int], name: str) -> int:
    counts = {"*": C} if isinstance(C, int) else C
    for pattern, count in counts.items():
        if fnmatch.fnmatchcase(name, pattern):
            if count < 1:
                raise UserError(f"C={count} for {name!r}: a matrix has at least 1 component")
            return count
    raise UserError(f"C has no pattern that matches {name!r}: its patterns are {', '.join(counts)}")


def _initial(weight: Array, C: int, key: Array, name: str, init: Init) -> Components:
    stacked = is_stacked(name)
    name = name.removeprefix("blocks.*.")
    if not stacked and name.startswith("blocks."):
        _, layer, name = name.split(".", 2)
        return _draw(weight, C, _layer_key(key, name, int(layer)), init)
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    if not stacked:
        return _draw(weight, C, key, init)
    keys = jax.vmap(lambda layer: jax.random.fold_in(key, layer))(jnp.arange(weight.shape[0], dtype=jnp.uint32))
    return jax.vmap(lambda w, k: _draw(w, C, k, init))(weight, keys)


def _layer_key(key: Array, name: str, layer: int) -> Array:
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(name.encode())), layer)


def _draw(weight: Float[Array, "d_in d_out"], C: int, key: Array, init: Init) -> Components:
    d_in, d_out = weight.shape
    first, second = jax.random.split(key)
    V, U = jax.random.normal(first, (d_in, C), jnp.float32), jax.random.normal(second, (C, d_out), jnp.float32)
    if init == "normal":
        return Components(V / d_in**0.5, U / C**0.5)
    V = V / jnp.linalg.norm(V, axis=0, keepdims=True)
    U = U / jnp.linalg.norm(U, axis=1, keepdims=True)
    return Components(V, U * jnp.einsum("ic,co,io->c", V, U, weight.astype(jnp.float32))[:, None])


def broadcast_bias(bias: Any, y: Array) -> Array:
    """The bias with as many axes as `y` and its dtype, so that the two can be added."""
    return jnp.expand_dims(bias[...], range(y.ndim - bias.ndim)).astype(y.dtype)


def spec_of(x: Array) -> PartitionSpec | None:
    """The partition spec in a value's type, on a mesh with explicit axes; None elsewhere."""
    sharding = jax.typeof(x).sharding
    return sharding.spec if not sharding.mesh.empty and sharding.mesh.are_all_axes_explicit else None


def _row_of_ones(x: Array) -> Array:
    """The number 1 for each row, sharded like the rows."""
    spec = spec_of(x)
    return jnp.ones((*x.shape[:-1], 1), x.dtype, out_sharding=None if spec is None else jax.P(*spec[:-1], None))


def _product(x: Array, weight: Array, like: Array) -> Array:
    return jnp.einsum("...i,io->...o", x, weight, out_sharding=spec_of(like))


__all__ = ["Components", "Decomposed", "DecomposedLinear", "Init", "decompose", "matrices"]
