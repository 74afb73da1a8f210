"""Rematerialisation by name: which values of the blocks the backward pass keeps, and which it recomputes.

    small = remat(model)                                        keeps only the inputs of the blocks
    small = remat(model, save=("attn.z", "mlp.post"))           keeps these values too
    small = remat(model, save=("attn.z",), offload=("mlp.post",))   keeps `mlp.post` in the memory of the host
    jax.grad(lambda model: loss(remat(model)))                  the gradients are those of the model

The names are those that `read` uses, without the layer: `site` names each value for JAX's checkpoint policies.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery.contract import Model
from jax_interp.surgery.taps import Edit, Survey, Wrapper, static


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Remat(Wrapper):
    """A model whose backward pass recomputes the values of its blocks. `remat` makes it."""

    save: tuple[str, ...] = static()
    offload: tuple[str, ...] = static()

    def __call__(self, *args: Any, taps: tuple = (), **kwargs: Any) -> Any:
        if not any(isinstance(tap, Survey) for tap in taps):
            self._check_names(args, tuple(tap for tap in taps if isinstance(tap, Edit)), kwargs)
        return self.model(*args, taps=taps, **({"remat": self._policy()} | kwargs))

    def _policy(self) -> Callable[..., Any]:
        policies = jax.checkpoint_policies
        if not self.offload:
            return policies.save_only_these_names(*self.save)
        return policies.save_and_offload_only_these_names(
            names_which_can_be_saved=list(self.save),
            names_which_can_be_offloaded=list(self.offload),
            offload_src="device",
            offload_dst="pinned_host",
        )

    def _check_names(self, args: tuple, edits: tuple, kwargs: dict[str, Any]) -> None:
        """Raise UserError for a name that no value of the blocks has."""
        if not (self.save or self.offload):
            return
        found: list[str] = []

        def look(model: Model, args: tuple) -> None:
            found.extend(model(*args, taps=(*edits, Survey()), **kwargs))

        jax.eval_shape(look, self.model, args)
        names = list(dict.fromkeys(name.split(".", 2)[2] for name in found if name.startswith("blocks.")))
        for name in (*self.save, *self.offload):
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"; did you mean {near[0]}?" if near else "."
                raise UserError(
                    f"remat: no value in the blocks is named {name!r}{hint} The names are {', '.join(names)}"
                )


def remat(model: Model, save: Sequence[str] = (), offload: Sequence[str] = ()) -> Remat:
    """A model that needs less memory for its gradient: its backward pass recomputes what was not kept.

    Outputs, readings and gradients are those of `model`. Without a gradient nothing changes.

    Args:
      model: a model that takes `remat=`, such as a decoder, under surgery or not.
      save: names of values in the blocks that are kept, such as "resid_mid" or "mlp.post". (): only the inputs of the
        blocks are kept.
      offload: names of values that are kept in the memory of the host (`pinned_host`), and copied back for the backward
        pass.

    Raises:
      UserError: the model does not take `remat=`, a name is in both lists, or the devices cannot reach `pinned_host`.
        When the model is called: a name is not in its blocks.

    Example:
        loss, gradient = jax.value_and_grad(lambda m: next_token_loss(remat(m, save=("mlp.post",)), tokens))(model)
    """
    if isinstance(save, str) or isinstance(offload, str):
        raise UserError(f"remat: give the names as a tuple, as in save=({save or offload!r},)")
    inner = model
    while isinstance(inner, Wrapper):
        inner = inner.model
    if "remat" not in inspect.signature(type(inner).__call__).parameters:
        raise UserError(
            f"{type(inner).__name__} does not take remat=. Give its __call__ the argument remat=None, and pass it to "
            "run_blocks(..., remat=remat)"
        )
    if both := set(save) & set(offload):
        raise UserError(f"remat: {min(both)!r} is in save and in offload: a value is kept in one place")
    if offload and not any(memory.kind == "pinned_host" for memory in jax.local_devices()[0].addressable_memories()):
        raise UserError(f"remat: {jax.local_devices()[0].platform} devices have no pinned_host memory: use save= only")
    return Remat(model, tuple(save), tuple(offload))
