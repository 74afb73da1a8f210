"""A cross-layer dictionary: each source reads one value and writes its own target and later ones.

    a^l = activation_l(x^l W_enc^l + b_enc^l)            ŷ^t = Σ_{l ≤ t} a^l W_dec^{l→t} + b_dec^t (+ x^t W_skip^t)

Its name depends on what it reads and writes:

    cross-layer transcoder       reads the input of each MLP; writes the output of that MLP and of later MLPs
                                 (Ameisen et al. 2025)
    weakly causal crosscoder     reads each value; writes that value and later values (Lindsey et al. 2024)
    strictly causal crosscoder   reads each value but the last; writes only later values
    per-layer transcoders        a cross-layer transcoder with a window of one target

A single source is a `Dictionary` with several write sites, so activations, losses and scaling work as for any
`Dictionary`. S sources of m features and width d have S(S+1)/2 decoders and m·d·(S + S(S+1)/2) weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.activations import Activation
from jax_interp.dictionaries.codes import Code
from jax_interp.dictionaries.forms.dictionary import Dictionary, site_norms
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


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Source:
    """One source of a cross-layer dictionary.

    Args:
      W_enc: the encoder.
      b_enc: the bias of the encoder.
      W_dec: the decoders. For source l, `W_dec[:, j]` writes target l + j.
      activation: decides which latents are on, and how strongly.
      W_skip: a linear map from the input to target l; None: there is none.
    """

    W_enc: Float[Array, "d_in feature"]
    b_enc: Float[Array, " feature"]
    W_dec: Float[Array, "feature target d_out"]
    activation: Activation
    W_skip: Float[Array, "d_in d_out"] | None = None

    @property
    def dictionary(self) -> Dictionary:
        """The source as a `Dictionary` that writes its targets side by side, without biases and without the skip."""
        W = self.W_dec.reshape(self.W_dec.shape[0], -1)
        none = jnp.zeros((W.shape[1],), W.dtype)
        return Dictionary(
            self.W_enc, self.b_enc, W, none, self.activation, centred=False, write_sites=self.W_dec.shape[1]
        )

    def with_dictionary(self, changed: Dictionary) -> Source:
        """This source with the weights of `changed`, a changed copy of its `dictionary`."""
        W_dec = changed.W_dec.reshape(self.W_dec.shape)
        return dataclasses.replace(
            self, W_enc=changed.W_enc, b_enc=changed.b_enc, W_dec=W_dec, activation=changed.activation
        )

    def encode(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch feature"]:
        return self.dictionary.encode(x)


@FORMS.register
@register_dataclass
@dataclasses.dataclass(frozen=True)
class CrossLayer(Form):
    """A cross-layer dictionary: one source for each target.

    `encode` and `decode` accept any axes between the first and the last. They compute in the dtype of the weights. The
    result of `__call__` has the dtype of `x`.

    Args:
      sources: one source per layer, in the order of the layers.
      b_dec: the bias of each target.
    """

    sources: tuple[Source, ...]
    b_dec: Float[Array, "target d_out"]

    @property
    def n_features(self) -> int:
        """The number of latents of each source."""
        return self.sources[0].W_dec.shape[0]

    def encode(self, x: Float[Array, "source *batch d_in"]) -> Float[Array, "source *batch feature"]:
        """The latents, dense."""
        return jnp.stack([source.encode(x[i]) for i, source in enumerate(self.sources)])

    def decode(self, z: Float[Array, "source *batch feature"]) -> Float[Array, "target *batch d_out"]:
        """The reconstruction of all targets from the latents, without the skips."""
        return jnp.stack([self.write(t, z) for t in range(len(self.b_dec))])

    def __call__(self, x: Float[Array, "source *batch d_in"]) -> Float[Array, "target *batch d_out"]:
        z = self.encode(x)
        return jnp.stack([self.write(t, z, x[t]) for t in range(len(self.b_dec))]).astype(x.dtype)

    def write(
        self,
        target: int,
        z: Sequence[Float[Array, "*batch feature"]] | Float[Array, "source *batch feature"],
        x: Float[Array, "*batch d_in"] | None = None,
    ) -> Float[Array, "*batch d_out"]:
        """The reconstruction of one target.

        Args:
          target: the index of the target.
          z: the latents of each source. Sources after the target are not used.
          x: the value that the source of the same index reads, for the skip. None: the skip is left out.
        """
        flat = [z[i].reshape(-1, z[i].shape[-1]).astype(self.b_dec.dtype) for i in range(target + 1)]
        out = jnp.broadcast_to(self.b_dec[target], (flat[0].shape[0], self.b_dec.shape[1]))
        for i, source in enumerate(self.sources[: target + 1]):
            if target - i < source.W_dec.shape[1]:
                out = out + flat[i] @ source.W_dec[:, target - i]
        skip = self.sources[target].W_skip
        if skip is not None and x is not None:
            out = out + x.reshape(-1, x.shape[-1]).astype(skip.dtype) @ skip
        return out.reshape(*z[target].shape[:-1], out.shape[-1])

    def describe(self) -> tuple[Description, Arrays]:
        activations, arrays = [], {}
        for i, source in enumerate(self.sources):
            settings, own = describe_activation(source.activation)
            weights = {"W_enc": source.W_enc, "b_enc": source.b_enc, "W_dec": source.W_dec, "W_skip": source.W_skip}
            own |= {name: a for name, a in weights.items() if a is not None}
            arrays |= {f"sources.{i}.{name}": a for name, a in own.items()}
            activations.append(settings)
        description = {
            "d_in": self.sources[0].W_enc.shape[0],
            "d_out": self.b_dec.shape[1],
            "n_features": self.n_features,
            "targets": [source.W_dec.shape[1] for source in self.sources],
            "activation": activations,
        }
        return description, arrays | {"b_dec": self.b_dec}

    @classmethod
    def from_description(cls, description: Mapping[str, Any], arrays: Arrays) -> Self:
        targets, activations = description["targets"], description["activation"]
        check_shapes(arrays, {"b_dec": (len(targets), description["d_out"])})
        sources = [
            _read_source(description, settings, written, arrays, f"sources.{i}.")
            for i, (written, settings) in enumerate(zip(targets, activations, strict=True))
        ]
        return cls(tuple(sources), arrays["b_dec"])

    def reconstruct(
        self, codes: Sequence[Code], x: Sequence[Float[Array, "row d_in"]]
    ) -> list[Float[Array, "row d_out"]]:
        """The reconstruction of each target from sparse codes. Each source needs one sparse product."""
        d, rows = self.b_dec.shape[1], x[0].shape[0]
        out = [jnp.broadcast_to(bias, (rows, d)) for bias in self.b_dec]
        for i, (source, code) in enumerate(zip(self.sources, codes, strict=True)):
            written = code.decode(source.dictionary.W_dec)
            for j in range(source.W_dec.shape[1]):
                out[i + j] = out[i + j] + written[:, j * d : (j + 1) * d]
            if source.W_skip is not None:
                out[i] = out[i] + x[i] @ source.W_skip
        return out


def _read_source(description: Mapping[str, Any], settings: Any, written: int, arrays: Arrays, prefix: str) -> Source:
    """The source whose arrays have names that begin with `prefix`. It writes `written` targets."""
    d_in, d_out, m = (description[name] for name in ("d_in", "d_out", "n_features"))
    shapes = {"W_enc": (d_in, m), "b_enc": (m,), "W_dec": (m, written, d_out)}
    named = {prefix + name: shape for name, shape in shapes.items()}
    check_shapes(arrays, named | optional_shapes(arrays, prefix, d_in, d_out, m))
    own = {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
    weights = {name: own[name] for name in shapes}
    return Source(**weights, activation=read_activation(settings, own, m), W_skip=own.get("W_skip"))


def n_targets(n_sources: int, source: int, window: int | None = None) -> int:
    """The number of targets that a source writes: its own and all later ones, but at most `window`."""
    later = n_sources - source
    return later if window is None else min(window, later)


def decoder_norms(dictionary: CrossLayer) -> Float[Array, "source feature target"]:
    """The norm of each decoder row W_dec^{l→t}_i. It is 0 if source l does not write target t."""
    n = len(dictionary.b_dec)
    parts = [site_norms(source.dictionary) for source in dictionary.sources]
    return jnp.stack([jnp.pad(p, ((0, 0), (i, n - i - p.shape[1]))) for i, p in enumerate(parts)])


def from_transcoders(dictionaries: Sequence[Dictionary]) -> CrossLayer:
    """Join single-layer transcoders, in the order of the layers, into one cross-layer dictionary with a window of 1.

    Raises UserError if one of them is not a transcoder, or if they write values of different widths.
    """
    if others := sorted({type(one).__name__ for one in dictionaries if not isinstance(one, Dictionary)}):
        raise UserError(f"only dictionaries of the form Dictionary can be joined, not {' and '.join(others)}")
    if any(one.centred or one.write_sites != 1 for one in dictionaries):
        raise UserError("only transcoders can be joined: dictionaries that are not centred and write one value")
    if len({one.W_dec.shape[-1] for one in dictionaries}) != 1:
        raise UserError(
            f"the transcoders write values of different widths: {[one.W_dec.shape[-1] for one in dictionaries]}"
        )
    sources = [Source(one.W_enc, one.b_enc, one.W_dec[:, None], one.activation, one.W_skip) for one in dictionaries]
    return CrossLayer(tuple(sources), jnp.stack([one.b_dec for one in dictionaries]))
