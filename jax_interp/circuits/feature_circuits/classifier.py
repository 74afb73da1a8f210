"""`Classifier`: a linear probe on a named value, as a model whose logits are those of the two classes.

It keeps the surgery contract, so that the methods of this room explain a classifier as they explain a language model.
The probe reads the mean of a value over the tokens of a text.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Activations, Read, ScopedEdit, Site, at
from jax_interp.surgery.address import AddressError, canonical
from jax_interp.surgery.taps import Edit, IndexBounds, Survey, Wrapper, static
from jax_interp.surgery.value_tokens import wide

READ = "read_by_classifier"


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Named(ScopedEdit):
    """Give a value a second name. It is read there after all edits, and others may read the first name."""

    def __call__(self, x: Array, site: Site) -> Array:
        return site(READ, x, " ".join(site.axes))


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Classifier(Wrapper):
    """`classifier(tokens, mask=mask)` returns logits [text, 1, 2]. Class 1 minus class 0 is the score.

    Args:
      model: the model, under surgery or not.
      weight: w of the probe.
      bias: b of the probe. The score is w · (mean value) + b.
      address: the value that the probe reads, [batch, pos, d].
      first: the number of first real tokens of each text that the mean leaves out, such as 1 for BOS.
    """

    weight: Float[Array, " d"]
    bias: Float[Array, ""]
    address: str = static()
    first: int = static(default=0)

    def __call__(
        self,
        tokens: Int[Array, "text pos"],
        *,
        mask: Bool[Array, "text pos"] | None = None,
        taps: tuple = (),
        last_only: bool = False,
        **kwargs: Any,
    ) -> Any:
        kwargs |= {} if mask is None else {"mask": mask}
        if any(isinstance(tap, (Survey, IndexBounds)) for tap in taps):
            return self.model(tokens, taps=taps, **kwargs)
        name = f"{canonical(self.address)}.{READ}"
        edits = at(self.address, _Named())
        own = ((edits,) if isinstance(edits, Edit) else edits, Read(name))
        _, activations = self.model(tokens, taps=(*taps, *own[0], own[1]), **kwargs)
        pooled = mean_over_tokens(wide(activations[name]), mask, self.first)
        score = pooled @ self.weight.astype(pooled.dtype) + self.bias.astype(pooled.dtype)
        logits = jnp.stack([-score / 2, score / 2], axis=-1)[:, None, :]
        rest = {key: value for key, value in activations.items() if key != name}
        if not rest:
            return logits
        asked = Activations(rest, activations.depth)
        reads = [tap for tap in taps if isinstance(tap, Read)]
        return (logits, asked) if not reads or reads[-1].output else asked


def mean_over_tokens(
    x: Float[Array, "text pos d"], mask: Bool[Array, "text pos"] | None, first: int
) -> Float[Array, "text d"]:
    """The mean over the real tokens of each text, without the `first` of them. NaN if no token is left."""
    if x.ndim != 3:
        raise AddressError(f"a probe reads a value [text, pos, d]; this one has the shape {list(x.shape)}")
    real = jnp.ones(x.shape[:2], bool) if mask is None else mask
    counts = real & (jnp.cumsum(real, axis=1) > first)
    total = jnp.sum(jnp.where(counts[..., None], x, jnp.zeros_like(x)), axis=1)
    return total / jnp.sum(counts, axis=1)[:, None].astype(x.dtype)
