"""The form of SAEs, transcoders and crosscoders: encode a value into latents, decode the latents into a value.

    f = activation((x - b_dec) W_enc + b_enc),   ŷ = f W_dec + b_dec (+ x W_skip)

An SAE reconstructs the value that it reads. A transcoder reconstructs another value. A crosscoder reads and
reconstructs several values, side by side in the last axis. A cross-layer transcoder consists of several dictionaries
(cross_layer.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.activations import Activation
from jax_interp.dictionaries.codes import Code
from jax_interp.dictionaries.forms.form import (
    FORMS,
    Arrays,
    Description,
    Form,
    check_shapes,
    describe_activation,
    optional_shapes,
    read_activation,
)
from jax_interp.dictionaries.sparse_coder import SparseCoder
from jax_interp.training.placement import automatic_rows


@FORMS.register
@register_dataclass
@dataclasses.dataclass(frozen=True)
class Dictionary(SparseCoder, Form):
    """A sparse autoencoder, transcoder or crosscoder.

    `encode`, `decode` and `__call__` accept any leading axes and compute in the dtype of the weights. The result of
    `__call__` has the dtype of `x`. A value with a head axis, [*batch, head, d_head], is read as a value of width
    head * d_head. On a mesh the result has the leading axes of `x` with their shardings.

    Args:
      W_enc: the encoder.
      b_enc: the bias of the encoder.
      W_dec: the decoder. Each row is the direction of a feature.
      b_dec: the bias of the decoder.
      activation: decides which latents are on, and how strongly.
      W_skip: a linear map from the input to the output. It does not pass through the latents. None: there is no skip.
      centred: whether `b_dec` is subtracted from the input.
      write_sites: the number of values that it writes, side by side in the last axis.

    Raises:
      UserError: the shapes do not fit each other, as when a matrix is transposed.

    Example:
        edit(model, at("blocks.2.resid_post", Splice(dictionary)))
    """

    W_enc: Float[Array, "d_in feature"]
    b_enc: Float[Array, " feature"]
    W_dec: Float[Array, "feature d_out"]
    b_dec: Float[Array, " d_out"]
    activation: Activation
    W_skip: Float[Array, "d_in d_out"] | None = None
    centred: bool = dataclasses.field(default=True, metadata={"static": True})
    write_sites: int = dataclasses.field(default=1, metadata={"static": True})

    def __post_init__(self) -> None:
        check_weights(self)

    @property
    def n_features(self) -> int:
        return self.W_dec.shape[-2]

    @property
    def d(self) -> int:
        """The width of the value that it reads."""
        return self.W_enc.shape[-2]

    def linear(self, x: Float[Array, "row d_in"]) -> Float[Array, "row feature"]:
        """The product of the encoder with `x`, without the encoder's bias."""
        x = x.astype(self.W_enc.dtype)
        return (x - self.b_dec[None, :] if self.centred else x) @ self.W_enc

    def code(self, x: Float[Array, "row d_in"]) -> Code:
        """The latents at inference, in the form of code that is cheapest for this activation."""
        return self.activation.encode(self, x.astype(self.W_enc.dtype))

    def training_code(self, x: Float[Array, "row d_in"]) -> Code:
        """The latents in training. For BatchTopK they depend on the whole batch."""
        return self.activation.encode_batch(self, x)

    def reconstruct(self, code: Code, x: Float[Array, "row d_in"] | None = None) -> Float[Array, "row d_out"]:
        """The reconstruction from a code. The input `x` is needed only if the dictionary has a skip."""
        out = code.decode(self.W_dec) + self.b_dec[None, :]
        if self.W_skip is not None:
            if x is None:
                raise UserError("this dictionary has a skip from its input, so its reconstruction also needs x")
            out = out + x.astype(self.W_skip.dtype) @ self.W_skip
        return out

    @partial(automatic_rows, last=lambda dictionary: jax.typeof(dictionary.b_enc).sharding.spec[-1])
    def encode(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch feature"]:
        """The latents, dense."""
        x = heads_together(x, self.d)
        z = self.code(x.reshape(-1, x.shape[-1])).dense(self.n_features)
        return z.reshape(*x.shape[:-1], self.n_features)

    @automatic_rows
    def encode_some(
        self, x: Float[Array, "*batch d_in"], features: Int[Array, " chosen"]
    ) -> Float[Array, "*batch chosen"]:
        """Some of the latents. If each latent depends on its own pre-activation only, the others are not computed."""
        if not (self.activation.elementwise and self.activation.uses_encoder):
            return self.encode(x)[..., features]
        of_some = {}
        for name in self.activation.per_feature:
            each = getattr(self.activation, name)
            of_some[name] = each[features] if jnp.shape(each) == (self.n_features,) else each
        part = dataclasses.replace(
            self,
            W_enc=self.W_enc[:, features],
            b_enc=self.b_enc[features],
            W_dec=self.W_dec[features],
            activation=dataclasses.replace(self.activation, **of_some),
        )
        return part.encode(x)

    @automatic_rows
    def decode(self, z: Float[Array, "*batch feature"]) -> Float[Array, "*batch d_out"]:
        """Return `z W_dec + b_dec`: the reconstruction without the skip."""
        flat = z.reshape(-1, z.shape[-1]).astype(self.W_dec.dtype) @ self.W_dec + self.b_dec[None, :]
        return flat.reshape(*z.shape[:-1], flat.shape[-1])

    @automatic_rows
    def output(self, x: Float[Array, "*batch d_in"], z: Float[Array, "*batch feature"]) -> Float[Array, "*batch d_out"]:
        """The full output for the input `x` with latents `z`: `decode(z)`, plus the skip from `x` if there is one."""
        y_hat = self.decode(z)
        if self.W_skip is None:
            return y_hat
        return y_hat + heads_together(x, self.d).astype(self.W_skip.dtype) @ self.W_skip

    def directions(self) -> Float[Array, "feature d_out"]:
        return self.W_dec

    def is_autoencoder(self) -> bool:
        return self.W_enc.shape == self.W_dec.shape[::-1] and self.W_skip is None

    def decodes_alone(self) -> bool:
        return self.W_skip is None

    @automatic_rows
    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        shape, x = x.shape, heads_together(x, self.d)
        rows = x.reshape(-1, x.shape[-1])
        y = self.reconstruct(self.code(rows), rows).astype(x.dtype)
        by_head = x.shape != shape and y.shape[-1] == self.d  # the output has the shape of the input
        return y.reshape(shape if by_head else (*x.shape[:-1], y.shape[-1]))

    def describe(self) -> tuple[Description, Arrays]:
        settings, arrays = describe_activation(self.activation)
        weights = {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "W_skip": self.W_skip}
        description = {
            "d_in": self.d,
            "d_out": self.W_dec.shape[1],
            "n_features": self.n_features,
            "centred": self.centred,
            "write_sites": self.write_sites,
            "activation": settings,
        }
        arrays |= {name: a for name, a in weights.items() if a is not None}
        return description, arrays | {"b_dec": self.b_dec}

    @classmethod
    def from_description(cls, description: Mapping[str, Any], arrays: Arrays) -> Self:
        d_in, d_out, m = (description[name] for name in ("d_in", "d_out", "n_features"))
        shapes = {"W_enc": (d_in, m), "b_enc": (m,), "W_dec": (m, d_out), "b_dec": (d_out,)}
        check_shapes(arrays, shapes | optional_shapes(arrays, "", d_in, d_out, m))
        centred, sites = description["centred"], description["write_sites"]
        if type(centred) is not bool or type(sites) is not int or sites < 1 or d_out % sites:
            raise UserError(
                f"centred is {centred!r} and write_sites {sites!r}: true or false, and a divisor of {d_out}"
            )
        return cls(
            **{name: arrays[name] for name in shapes},
            activation=read_activation(description.get("activation"), arrays, m),
            W_skip=arrays.get("W_skip"),
            centred=centred,
            write_sites=sites,
        )


def heads_together(x: Float[Array, "..."], d: int) -> Float[Array, "*batch d_in"]:
    """`x` with the axes (head, d_head) merged, if only then its width is `d`. Raises UserError for another width."""
    if x.shape[-1] != d and x.ndim > 1 and x.shape[-2] * x.shape[-1] == d:
        return x.reshape(*x.shape[:-2], d)
    if x.shape[-1] != d:
        raise UserError(f"this dictionary reads values of width {d}, and got the shape {list(x.shape)}")
    return x


def check_weights(dictionary: Dictionary) -> None:
    """Raise UserError if the shapes of the weights do not fit each other.

    JAX also builds dictionaries of other leaves: stacked weights, axes, shardings. They are not checked.
    """
    W_enc, W_dec = getattr(dictionary.W_enc, "shape", ()), getattr(dictionary.W_dec, "shape", ())
    if len(W_enc) != 2 or len(W_dec) != 2:
        return
    (d_in, n_features), (rows, d_out) = W_enc, W_dec
    if n_features != rows:
        n = getattr(dictionary.b_enc, "shape", (None,))[-1]
        transposed = [name for name, fits in (("W_enc", d_in == n), ("W_dec", d_out == n)) if fits]
        hint = f"; {' and '.join(transposed)}.T fits the {n} entries of b_enc" if transposed else ""
        raise UserError(
            f"W_enc has shape {W_enc} and W_dec {W_dec}: W_enc is [d_in, feature] and W_dec is [feature, d_out]{hint}"
        )
    if dictionary.centred and d_in != d_out:
        raise UserError(
            f"a centred dictionary subtracts b_dec [{d_out}] from its input, which has width {d_in}: give centred=False"
        )
    if dictionary.write_sites < 1 or d_out % dictionary.write_sites:
        raise UserError(
            f"write_sites={dictionary.write_sites}: {d_out} columns of W_dec cannot be cut into equal parts"
        )
    fits: dict[str, tuple[Any, list[tuple[int, ...]]]] = {
        "b_enc": (dictionary.b_enc, [(n_features,)]),
        "b_dec": (dictionary.b_dec, [(d_out,)]),
        "W_skip": (dictionary.W_skip, [(d_in, d_out)]),
    }
    activation = dictionary.activation
    for name in getattr(activation, "per_feature", ()):
        fits[name] = getattr(activation, name), [(n_features,), (1,), ()]
    for name, (weights, shapes) in fits.items():
        found = getattr(weights, "shape", shapes[0])
        if found not in shapes:
            raise UserError(f"{name} should have shape {shapes[0]} for W_enc {W_enc} and W_dec {W_dec}, not {found}")


def check_one_width(written: Sequence[str], widths: Sequence[int]) -> None:
    """Raise UserError if the values that one dictionary writes differ in width. A decoder row has equal parts."""
    if len(set(widths)) > 1:
        each = ", ".join(f"{name} {width}" for name, width in zip(written, widths, strict=True))
        raise UserError(
            f"a dictionary writes values of one width, but the widths are {each}: give values of one width, or train "
            "one dictionary per width"
        )


def site_norms(dictionary: Dictionary) -> Float[Array, "feature site"]:
    """The norm of each feature's direction in each written value. The gradient of a norm of 0 is finite."""
    rows = dictionary.W_dec.reshape(dictionary.n_features, dictionary.write_sites, -1)
    square = jnp.sum(rows * rows, axis=-1)
    some = square > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, square, jnp.ones_like(square))), jnp.zeros_like(square))


def init_sae(
    key: Key[Array, ""],
    d: int,
    n_features: int,
    activation: Activation,
    b_dec: Float[Array, " d"] | None = None,
    *,
    row_norm: float = 1.0,
    encoder_scale: float = 1.0,
    centred: bool = True,
    sites: int = 1,
    dtype: DTypeLike = jnp.float32,
) -> Dictionary:
    """Initialise a sparse autoencoder or a crosscoder.

    Decoder rows are uniform on a sphere, and the encoder is a multiple of the transposed decoder. Row norm 1 is the
    choice of Gao et al. 2024, appendix A. Row norm 0.1 is the choice of Anthropic's April 2024 update.

    For the input `b_dec`, pre-activations are 0. If the dictionary is centred, `b_enc` is zero. Otherwise it cancels
    `b_dec`: with a zero `b_enc`, latents that point away from a long mean would start dead (arXiv:2605.31518).

    Args:
      key: the random key.
      d: the width of the value. For a crosscoder, the width of all values together.
      n_features: the number of latents.
      activation: the activation that the dictionary holds, as `Activation.init` returns it.
      b_dec: the decoder's bias. None: zero. The trainer gives the mean of its first activations.
      row_norm: the norm of decoder rows. For a crosscoder, the norm of each value's part of a row.
      encoder_scale: the encoder is the transposed decoder times this factor.
      centred: whether `b_dec` is subtracted from the input.
      sites: the number of values. It is above 1 for a crosscoder.
      dtype: the dtype of the weights.
    """
    rows = jax.random.normal(key, (n_features, sites, d // sites), dtype)
    rows = rows * (jnp.asarray(row_norm, dtype) / jnp.linalg.norm(rows, axis=-1, keepdims=True))
    W_dec = rows.reshape(n_features, d)
    b_dec = jnp.zeros((d,), dtype) if b_dec is None else b_dec.astype(dtype)
    W_enc = W_dec.T if encoder_scale == 1 else W_dec.T * jnp.asarray(encoder_scale, dtype)
    b_enc = jnp.zeros((n_features,), dtype) if centred else -(b_dec @ W_enc)
    return Dictionary(W_enc, b_enc, W_dec, b_dec, activation, centred=centred, write_sites=sites)


def init_transcoder(
    key: Key[Array, ""],
    d_in: int,
    d_out: int,
    n_features: int,
    activation: Activation,
    mean_in: Float[Array, " d_in"],
    mean_out: Float[Array, " d_out"],
    *,
    skip: bool = False,
    write_sites: int = 1,
    dtype: DTypeLike = jnp.float32,
) -> Dictionary:
    """Initialise a transcoder (Paulo et al. 2025, arXiv:2501.18823). At first it writes the mean output: its FVU is 1.

    Encoder columns are uniform on the unit sphere, `b_enc` cancels the mean input, the decoder is zero, and `b_dec` is
    the mean output.

    Args:
      key: the random key.
      d_in: the width of the value that it reads.
      d_out: the width of the value that it writes. If it writes several values, their widths added up.
      n_features: the number of latents.
      activation: the activation that the dictionary holds, as `Activation.init` returns it.
      mean_in: the mean input.
      mean_out: the mean output.
      skip: whether it has a linear map from the input to the output. The map starts at zero.
      write_sites: the number of values that it writes.
      dtype: the dtype of the weights.
    """
    W_enc = jax.random.normal(key, (d_in, n_features), dtype)
    W_enc = W_enc / jnp.linalg.norm(W_enc, axis=0, keepdims=True)
    return Dictionary(
        W_enc=W_enc,
        b_enc=-(mean_in.astype(dtype) @ W_enc),
        W_dec=jnp.zeros((n_features, d_out), dtype),
        b_dec=mean_out.astype(dtype),
        activation=activation,
        W_skip=jnp.zeros((d_in, d_out), dtype) if skip else None,
        centred=False,
        write_sites=write_sites,
    )
