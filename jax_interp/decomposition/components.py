"""Components: a linear map as a sum of rank-one parts and what they leave over, each with a mask.

    W = sum_c V[:, c] U[c, :] + Δ          Δ = W - V U, so that nothing is lost while V and U are still wrong

`decompose(model, "blocks.*.mlp", C=512, key=key)` is model surgery: the model with each chosen matrix in this form. The
target's weights stay in it as they are, in `target`; V and U are in `components`, the part that is trained. Each
decomposed matrix names, below its own address,

    input        what the matrix reads, of an embedding indices
    components   the inner activations x @ V, "... component": a mask is an edit of them, `Scale(mask)`
    delta        the coefficient of Δ, one for each row, 1 as it is: `Zero()` leaves Δ out
    output       what comes out, bias and all

With no edit at `components` or `delta` the output is the target's own, to the bit. Bushnaq, Braun & Sharkey 2025
(arXiv 2506.20790); Δ as in Bushnaq et al. 2026.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.decomposition.matrices import check_tied, chosen, is_stacked, matrices, weight_of
from jax_interp.surgery import Site
from jax_interp.surgery.select import replace, replace_each
from jax_interp.surgery.taps import static

Init = Literal["normal", "unit"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Components:
    """The rank-one parts of one matrix, `V[:, c] U[c, :]`; of it in every layer where there is a layer axis."""

    V: Float[Array, "*layer d_in C"]
    U: Float[Array, "*layer C d_out"]

    @property
    def C(self) -> int:
        return self.V.shape[-1]

    @property
    def T(self) -> Components:
        """Those of the transposed matrix."""
        return Components(jnp.swapaxes(self.U, -1, -2), jnp.swapaxes(self.V, -1, -2))

    def product(self, like: Array | None = None) -> Float[Array, "*layer d_in d_out"]:
        """The sum of the parts, split over a mesh with explicit axes as `like` is; without it, whole."""
        whole = None if spec_of(self.V) is None else jax.P(*[None] * self.V.ndim)
        out = whole if like is None else spec_of(like)
        return jnp.einsum("...ic,...co->...io", self.V, self.U, out_sharding=out)

    def inner(self, x: Array, dtype: Any = None) -> Float[Array, "*layer_and_rows C"]:
        """The inner activations x V of what the matrix reads, in this dtype or that of x; of `[layer, ..., d_in]` where
        V has a layer axis. Of indices, which an embedding reads, rows of V: NaN outside, as the target's are."""
        rows, components = spec_of(x), (spec_of(self.V) or (None,))[-1]
        if jnp.issubdtype(x.dtype, jnp.integer):
            out = None if rows is None else jax.P(*rows, components)
            V = self.V if dtype is None else self.V.astype(dtype)
            return V.at[x].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False, out_sharding=out)
        out = None if rows is None else jax.P(*rows[:-1], components)
        each = "l...i,lic->l...c" if self.V.ndim == 3 else "...i,ic->...c"
        return jnp.einsum(each, x, self.V.astype(x.dtype), out_sharding=out)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class DecomposedLinear:
    """What stands in the place of a linear map (`weight` `[d_in, d_out]`, called as `linear(x, site, ...)`), or of an
    embedding, whose `x` are indices of rows.

    `m_Δ y + (m a - m_Δ a) U + (1 - m_Δ) b`, with a = x V and b the bias: three products, and exactly y where both masks
    are 1. With Δ off nothing of y is in it, so that rounding is that of the components and not of the target's output.
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
            y = y if self.bias is None else y + (jnp.ones_like(delta) - delta) * over(self.bias, y)
        return site("output", y, f"{axes} d_out")

    def attend(self, x: Array) -> Array:
        """A tied unembedding stays the target's."""
        return self.linear.attend(x)

    @property
    def weight(self) -> Any:
        return self.linear.weight

    @property
    def bias(self) -> Any:
        return getattr(self.linear, "bias", None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Decomposed:
    """A model with some of its matrices taken apart. Called like the model; made by `decompose`.

    `target` is frozen by whoever trains `components` alone: gradients are asked for with respect to those. An entry of
    `tied` (name, twin) says that the twin's matrix is the transpose of the other's and so are its components: one pair
    of V and U. Attributes of the target (`config`, `blocks`) are reachable.
    """

    target: Any
    components: dict[str, Components]
    tied: tuple[tuple[str, str], ...] = static(default=())

    @property
    def names(self) -> tuple[str, ...]:
        """The decomposed matrices, twins of tied ones included, sorted as strings: the order in which a pytree's dict
        comes out of `jax.jit`, whatever order it was made in."""
        return tuple(sorted([*self.components, *(twin for _, twin in self.tied)]))

    def of(self, name: str) -> Components:
        """The components of one entry, transposed for a twin."""
        for one, twin in self.tied:
            if twin == name:
                return self.components[one].T
        return self.components[name]

    def weight(self, name: str) -> Float[Array, "*layer d_in d_out"]:
        """The target's matrix."""
        for one, twin in self.tied:
            if twin == name:
                return jnp.swapaxes(weight_of(self.target, one), -1, -2)
        return weight_of(self.target, name)

    def delta(self, name: str) -> Float[Array, "*layer d_in d_out"]:
        """What the components leave over, W - V U, in float32."""
        weight = self.weight(name).astype(jnp.float32)
        return weight - self.of(name).product(like=weight).astype(jnp.float32)

    def with_parts(self) -> Any:
        """The target with its matrices replaced by `DecomposedLinear`: what is called."""
        model = self.target
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
    model: Any,
    matrices: str | Sequence[str],
    *,
    C: int | Mapping[str, int],
    key: Key[Array, ""],
    tied: Sequence[tuple[str, str]] = (),
    init: Init = "normal",
) -> Decomposed:
    """The model with the matrices that `matrices` means (see `matrices.chosen`) decomposed into `C` components each.

    C: one number, or patterns with theirs, the first match counting: `{"blocks.*.attn.*": 512, "*": 3072}`.
    tied: pairs (name, twin): the twin's matrix is the transpose of the other's, and shares its V and U.
      Raises UserError where it is not.
    init: "normal": V ~ N(0, 1/√d_in), U ~ N(0, 1/√C). "unit" (SPD 2025): columns of V and rows of U of norm one, then
      U[c] scaled by ⟨V[:, c] U[c], W⟩. A layer's draw depends on the key and its address, not on the model's layout.
    """
    twins = {twin: one for one, twin in tied}
    names = [name for name in chosen(model, matrices) if name not in twins]
    for twin, one in twins.items():
        if one not in names:
            raise UserError(f"tied=({one!r}, {twin!r}): {one!r} is none of the decomposed {', '.join(names)}")
    check_tied(model, tied)
    pairs = {name: _initial(weight_of(model, name), _count(C, name), key, name, init) for name in names}
    return Decomposed(model, pairs, tuple((one, twin) for one, twin in tied))


def _count(C: int | Mapping[str, int], name: str) -> int:
    counts = {"*": C} if isinstance(C, int) else C
    for pattern, count in counts.items():
        if fnmatch.fnmatchcase(name, pattern):
            if count < 1:
                raise UserError(f"C={count} for {name!r}: a matrix has at least 1 component")
            return count
    raise UserError(f"C says nothing for {name!r}: its patterns are {', '.join(counts)}")


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


def over(bias: Any, y: Array) -> Array:
    """A bias as something to add to the last axes of `y`: of as many axes, and of its dtype."""
    return jnp.expand_dims(bias[...], range(y.ndim - bias.ndim)).astype(y.dtype)


def spec_of(x: Array) -> Any:
    """The sharding that a value's type carries; None where types carry none."""
    sharding = jax.typeof(x).sharding
    return sharding.spec if not sharding.mesh.empty and sharding.mesh.are_all_axes_explicit else None


def _row_of_ones(x: Array) -> Array:
    """One for each row, sharded as the rows are."""
    spec = spec_of(x)
    return jnp.ones((*x.shape[:-1], 1), x.dtype, out_sharding=None if spec is None else jax.P(*spec[:-1], None))


def _product(x: Array, weight: Array, like: Array) -> Array:
    return jnp.einsum("...i,io->...o", x, weight, out_sharding=spec_of(like))


__all__ = ["Components", "Decomposed", "DecomposedLinear", "Init", "decompose", "matrices"]
