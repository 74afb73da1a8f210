"""Values that are not finite: the error of a run, and the check of a state before it is saved."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jax_interp.core.leaves import PyTree, flatten, is_key
from jax_interp.core.processes import to_host
from jax_interp.training import checkpoint
from jax_interp.training.runs import Run


class NonFinite(RuntimeError):
    """A metric or a leaf of the state became NaN or infinite. `step` is the step, `quantity` the name of the value."""

    def __init__(self, step: int, quantity: str, value: str, advice: str):
        super().__init__(f"step {step}: {quantity} is {value}. {advice}")
        self.step, self.quantity, self.value, self.advice = step, quantity, value, advice

    def after(self, before: str) -> NonFinite:
        """The same error, with a sentence before the advice."""
        return NonFinite(self.step, self.quantity, self.value, before + self.advice)


_nan_flags = jax.jit(lambda flat: {name: jnp.isnan(x).any() for name, x in flat.items()})


def check_state(k: int, state: PyTree, run: Run) -> None:
    """Raise NonFinite if the state contains NaN. The metrics of this step may not show it yet."""
    flat = {name: x for name, x in flatten(state).items() if not is_key(x) and jnp.issubdtype(x.dtype, jnp.inexact)}
    bad = [name for name, flag in to_host(_nan_flags(flat)).items() if flag]
    if bad:
        raise NonFinite(k, "state " + ", ".join(bad[:5]), "NaN", what_to_do(run))


def what_to_do(run: Run | None, before_any_update: bool = False) -> str:
    """What the user can do about a value that is not finite."""
    if before_any_update:  # the metrics of step 1 are those of the initial state
        return "The state had not been updated yet, so look at the model's weights, the first batch and the loss"
    good = checkpoint.latest(run.checkpoints) if run else None
    if run is None or good is None:
        return "Nothing was saved; lower the learning rate or look at the batch of that step"
    return (
        f"The checkpoint of step {good} in {run.directory} is from before it; lower the learning rate or look at "
        "the batch"
    )
