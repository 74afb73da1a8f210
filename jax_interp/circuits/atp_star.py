"""`AtPStar`: attribution patching with corrections for its two known failures (Kramár et al. 2024, arXiv:2403.00745).

**QK fix.** The softmax of attention saturates, so its gradient says nothing about a query or key that changes which
token is attended to. For queries and keys, the pattern is computed with the patched query or key, and the estimate is
Σ (patched pattern - pattern) · ∂m/∂pattern.

**GradDrop.** A direct effect and an indirect effect through a later layer can cancel in the gradient, and not when the
value is really patched. The estimate is repeated with the gradient through the outputs of one layer set to zero, for
each of the L layers, and the magnitudes are averaged: Σ_l |estimate without layer l| / (L - 1). A unit of layer l has
the estimate 0 in pass l, hence L - 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_interp.circuits.attribution_methods import Method, differences, no_shift, shift_edits, summed
from jax_interp.circuits.contrast import Contrast, inputs_of, measure
from jax_interp.circuits.units import Nodes, NodeValue
from jax_interp.core.errors import UserError
from jax_interp.surgery import Add, Each, Edit, Replace, at, depth_of, edit, read, values_at
from jax_interp.surgery.address import Address
from jax_interp.surgery.contract import Model
from jax_interp.surgery.verbs import survey

QUERIES, KEYS = ("attn.q", "attn.rot_q"), ("attn.k", "attn.rot_k")


@dataclasses.dataclass(frozen=True)
class AtPStar(Method):
    """AtP*: gradients with the QK fix and GradDrop.

    It costs one backward pass for each layer, and two forward passes if there are queries and keys among the units.

    Args:
      qk_fix: recompute the softmax for units of `attn.q` and `attn.k`.
      grad_drop: average magnitudes over the passes without one layer. The estimates are then magnitudes. If False, they
        have the sign of the effect.
      outputs: the names of the values that a layer adds to the residual stream, for GradDrop. Those that the model does
        not have are left out.
    """

    qk_fix: bool = True
    grad_drop: bool = True
    outputs: tuple[str, ...] = ("attn_out", "mlp_out")

    @property
    def signed(self) -> bool:
        return not self.grad_drop

    def check(self, nodes: Nodes, depth: int) -> None:
        if self.grad_drop and depth < 2:
            raise UserError("GradDrop leaves out one layer after another, and this model has fewer than two layers: "
                            "use AtPStar(grad_drop=False)")  # fmt: skip
        for value in nodes.values:
            name = Address.parse(value.address).name
            if self.grad_drop and (value.layers is None or name.startswith("resid")):
                raise UserError(
                    f"GradDrop is for values inside a layer, which act through its outputs; {value.address!r} is part "
                    "of the residual stream: use AtPStar(grad_drop=False), or integrated gradients"
                )
            if self._recomputes(value) and value.cut[-1]:
                raise UserError(
                    f"the QK fix patches whole queries and keys, and the units at {value.address!r} are cut along "
                    "their features: leave feature out of per=, or use AtPStar(qk_fix=False)"
                )

    def estimate(
        self, model: Model, contrast: Contrast, nodes: Nodes, others: Mapping[str, Array]
    ) -> Float[Array, "prompt unit"]:
        linear = [value for value in nodes.values if not self._recomputes(value)]
        bent = [value for value in nodes.values if self._recomputes(value)]
        plain = Nodes(tuple(linear))
        deltas = differences(model, contrast, plain, others) if linear else {}
        changes = {value.address: _change_of_scores(model, contrast, value, others) for value in bent}

        def scores(dropped: Int[Array, ""] | None) -> Array:
            by_shift, by_pattern = self._gradients(model, contrast, plain, deltas, changes, dropped)
            parts = plain.split(by_shift) if linear else {}
            for value in bent:
                parts[value.address] = _pattern_effect(value, *changes[value.address], by_pattern[value.address])
            return nodes.join(parts)

        if not self.grad_drop:
            return scores(None)
        depth = depth_of(model)
        return summed(lambda layer: jnp.abs(scores(layer)), jnp.arange(depth)) / (depth - 1)

    def _recomputes(self, value: NodeValue) -> bool:
        return self.qk_fix and value.layers is not None and Address.parse(value.address).name in (*QUERIES, *KEYS)

    def _gradients(
        self,
        model: Model,
        contrast: Contrast,
        plain: Nodes,
        deltas: Mapping[str, Array],
        changes: Mapping[str, tuple[Array, Array]],
        dropped: Int[Array, ""] | None,
    ) -> tuple[Float[Array, "prompt unit"], dict[str, Array]]:
        """(Σ Δ · ∂m/∂value of the plain units, ∂m/∂pattern for each address of queries or keys), without the gradient
        through the outputs of layer `dropped`."""
        drops = [] if dropped is None else self._drops(model, contrast, dropped)

        def total(shift: Array, patterns: dict[str, Array]) -> Array:
            edits = shift_edits(plain, shift, deltas)
            edits += [_at_pattern(address, Add(added)) for address, added in patterns.items()]
            return jnp.sum(measure(edit(edit(model, *edits), *drops), contrast.clean, contrast))

        shift = no_shift(contrast, plain, deltas)
        patterns = {address: jnp.zeros_like(clean) for address, (clean, _) in changes.items()}
        return jax.grad(total, argnums=(0, 1))(shift, patterns)

    def _drops(self, model: Model, contrast: Contrast, layer: Int[Array, ""]) -> list[Edit]:
        named = survey(model)(contrast.clean, **inputs_of(model, contrast))
        have = {name.split(".", 2)[2] for name in named if name.startswith("blocks.")}
        names = [name for name in self.outputs if name in have]
        if not names:
            raise UserError(f"the blocks have none of the outputs {', '.join(self.outputs)}: give AtPStar(outputs=...)")
        return [at(f"blocks.{name}", jax.lax.stop_gradient, layer=layer) for name in names]  # type: ignore[misc]


def _change_of_scores(
    model: Model, contrast: Contrast, value: NodeValue, others: Mapping[str, Array]
) -> tuple[Float[Array, "*layer batch head pos key"], Float[Array, "*layer batch head pos key"]]:
    """(the scores of the run, the scores in each layer if all queries or keys of the layer alone are patched).

    All layers are patched in one run. The pattern of each layer stays that of the clean run, so that a layer's patch
    does not reach the next layer.
    """
    scores, pattern = (_beside(value.address, name) for name in ("attn_scores", "pattern"))
    inputs = inputs_of(model, contrast)
    clean = values_at(model, scores, pattern)(contrast.clean, **inputs)
    only = Nodes((value,))
    patched = edit(model, *only.edits(jnp.zeros(only.size), others))
    seen = read(edit(patched, _at_pattern(value.address, Replace(clean[pattern]))), scores)
    return clean[scores], seen(contrast.clean, **inputs)[1][scores]


def _pattern_effect(value: NodeValue, clean: Array, patched: Array, gradient: Array) -> Float[Array, "batch *units"]:
    """Σ (patched pattern - pattern) · ∂m/∂pattern for each unit of queries or keys."""
    head, pos = value.axes.index("kv_head" if "kv_head" in value.axes else "head") - 1, value.axes.index("pos") - 1
    is_query = Address.parse(value.address).name in QUERIES
    gradient = gradient.astype(clean.dtype)
    if is_query or not value.cut[pos]:
        effect = jnp.sum((jax.nn.softmax(patched) - jax.nn.softmax(clean)) * gradient, axis=-1)  # [..., head, query]
    else:
        effect = key_effects(clean, patched, gradient)  # [..., head, key]
    if not value.cut[pos]:
        effect = jnp.sum(effect, axis=-1, keepdims=True)
    if value.cut[head]:
        heads = value.sizes[[i for i, cut in enumerate(value.cut) if cut].index(head)]
        effect = jnp.sum(effect.reshape(*effect.shape[:-2], heads, -1, effect.shape[-1]), axis=-2)
    else:
        effect = jnp.sum(effect, axis=-2, keepdims=True)
    effect = jnp.moveaxis(effect, 0, 1) if value.has_layer_axis else effect  # [batch, (layer), head, pos]
    effect = jnp.swapaxes(effect, -1, -2) if pos < head else effect
    return effect.reshape(effect.shape[0], *value.unit_shape)


def key_effects(
    clean: Float[Array, "*more query key"],
    patched: Float[Array, "*more query key"],
    gradient: Float[Array, "*more query key"],
) -> Float[Array, "*more key"]:
    """The estimate for each key patched alone, summed over the queries.

    If only the score of key t changes, by d, the others keep their proportions. With M_t the mean of g over the other
    keys under the softmax of their scores, Σ_j Δp_j g_j = Δp_t (g_t - M_t), and p_t + Δp_t is the sigmoid of
    log p_t - log(1 - p_t) + d. No softmax for each key is needed. Only the largest p_t can be near 1, where 1 - p_t has
    no digits: there, the sum over the other keys is computed without it.
    """
    p, change = jax.nn.softmax(clean), patched - clean
    top = jax.nn.one_hot(jnp.argmax(clean, axis=-1), clean.shape[-1], dtype=bool)
    others = jnp.where(top, jnp.asarray(-jnp.inf, clean.dtype), clean)
    log_all = jax.nn.logsumexp(clean, axis=-1, keepdims=True)
    of_top = jax.nn.logsumexp(others, axis=-1, keepdims=True) - log_all
    mean_top = jnp.sum(jax.nn.softmax(others) * gradient, axis=-1, keepdims=True)
    below_half = jnp.where(top, jnp.zeros_like(p), p)
    mean = jnp.where(top, mean_top, (jnp.sum(p * gradient, -1, keepdims=True) - p * gradient) / (1 - below_half))
    log_rest = jnp.where(top, of_top, jnp.log1p(-below_half))
    far = jax.nn.sigmoid(clean - log_all - log_rest + change) - p
    small = jnp.clip(change, -1, 1)
    rise = p * jnp.expm1(small)  # near 0, the difference of two sigmoids has no digits
    change_of_p = jnp.where(jnp.abs(change) < 1, jnp.exp(log_rest) * rise / (1 + rise), far)
    return jnp.sum(change_of_p * (gradient - mean), axis=-2)


def _beside(address: str, name: str) -> str:
    """The address of another value of attention, in the same layers."""
    return str(Address(f"attn.{name}", Address.parse(address).layers))


def _at_pattern(address: str, fn: Add | Replace) -> Edit:
    address = _beside(address, "pattern")
    return at(address, fn if Address.parse(address).is_single else Each(fn))  # type: ignore[return-value]
