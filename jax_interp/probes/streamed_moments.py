"""Moments of activations at all sites from one pass over tokens. No activation is kept.

moments = stream_moments(model, "blocks.*.resid_post", stream, run="runs/moments")
fitted = moments.fit(LDA(shrinkage=(0.1,)))        also ridge, linear regression, mass-mean, PCA: exact
eraser = LEACE().from_moments(moments.of["blocks.3.resid_post"])

The forward pass and the sums are one compiled step. The state of a site is d² + 2 d² numbers, whatever the number of
tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.processes import to_host
from jax_interp.core.pytrees import register_dataclass
from jax_interp.models.sharding import rules_for
from jax_interp.probes.erasure.moments import Moments, moments_of
from jax_interp.probes.fit import FittedProbes
from jax_interp.probes.kind import Kind
from jax_interp.probes.rows_of_moments import fit_moments
from jax_interp.probes.text_reader import mesh_of_leaves, site_widths, wide_values
from jax_interp.probes.token_streams import TokenStream
from jax_interp.surgery import Model
from jax_interp.training import Log, Place, RunTarget, SaveTo, automatic_step, fit, placed
from jax_interp.training.placement import replicated

QUIET_LOG = Log(quiet=True)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class RunningMoments:
    """The moments of the rows so far, with little rounding error however many rows there are.

    Args:
      moments: the moments of x - shift.
      shift: the mean of the first batch. It is subtracted from all rows, so that a long mean does not cost digits.
      lost: what rounding took from `moments.xx` so far (Kahan's compensation).
    """

    moments: Moments
    shift: Float[Array, " d"]
    lost: Float[Array, "d d"]

    @staticmethod
    def empty(d: int, k: int) -> RunningMoments:
        """The moments of no rows of width d, with k columns of labels."""
        return RunningMoments(Moments.empty(d, k), jnp.zeros(d), jnp.zeros((d, d)))

    def add(self, x: Float[Array, "row d"], z: Float[Array, "row k"], used: Float[Array, " row"]) -> RunningMoments:
        """Add rows. A row with `used` 0 is left out, whatever it holds."""
        x = jnp.where((used > 0)[:, None], x, jnp.zeros_like(x))
        n = jnp.sum(used)
        mean = jnp.matmul(used, x, precision=jax.lax.Precision.HIGHEST) / jnp.maximum(n, 1)
        shift = jnp.where(self.moments.n == 0, mean, self.shift)
        before, batch = self.moments, moments_of(x - shift[None, :], z, used)
        after = dataclasses.replace(before, xx=jnp.zeros_like(before.xx)).merge(batch)  # xx: what the batch adds
        increment = after.xx - self.lost
        xx = before.xx + increment
        return RunningMoments(dataclasses.replace(after, xx=xx), shift, (xx - before.xx) - increment)

    def whole(self) -> Moments:
        """The moments of the rows themselves."""
        return dataclasses.replace(self.moments, mean_x=self.moments.mean_x + self.shift)


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedMoments:
    """The moments of a stream at some sites, and the probes that follow from them.

    Args:
      of: the moments of each site. The concept z has a column for each class but the first, or the real targets.
      classes: the names of the classes. (): real targets.
      rule: the name of the tokens.
    """

    of: Mapping[str, Moments]
    classes: tuple[str, ...]
    rule: str = "all"

    @property
    def rows(self) -> int:
        """The number of tokens with a label."""
        return round(float(next(iter(self.of.values())).n))

    def fit(self, kind: Kind, *, seeds: Sequence[int] = (0,)) -> FittedProbes:
        """The probes of a kind that depends on the rows only through their moments. They are those of all rows.

        Mass-mean, LDA with a given shrinkage, ridge and linear regression, and PCA are such kinds. Whether a kind is
        one is found out: it is fitted on two sets of rows that have these moments and nothing else in common.

        Raises:
          UserError: the kind depends on more than the moments, such as logistic regression (`stream_logistic`).
        """
        fitted = fit_moments(kind, self.of, self.classes, seeds=seeds)
        return dataclasses.replace(fitted, axes={**fitted.axes, "rule": (self.rule,)})


@dataclasses.dataclass(frozen=True)
class MomentsRun:
    """The stored config of a run. It can be resumed only with the same sites and stream."""

    sites: tuple[str, ...]
    classes: tuple[str, ...]
    first_batch: str
    """`TokenStream.digest`."""


def stream_moments(
    model: Model,
    at: str | Sequence[str],
    stream: TokenStream,
    *,
    run: RunTarget = None,
    place: Place = None,
    log: Log = QUIET_LOG,
) -> StreamedMoments:
    """Sum up the moments of a stream at all sites.

    Sums are centred and compensated (Chan, Golub & LeVeque 1979; Kahan 1965): their error is that of one batch in
    float32 and does not grow with the number of batches.

    Args:
      model: any model that names its values, with or without edits.
      at: addresses of values `[batch, pos, ...]`.
      stream: the tokens and their labels.
      run: where the sums are saved. If a run is killed, the same call goes on and gives the same bits.
      place: a mesh, as in `gather`. The rows of a batch are split over its row axes.
      log: what is shown.

    Raises:
      NonFinite: a value at a token with a label is not finite.
      UserError: a site has no position axis, no token has a label, or a class has none.
    """
    widths = sites_of_stream(model, at, stream)
    k = max(len(stream.classes) - 1, 1)
    step = partial(moments_step, tuple(widths), len(stream.classes))
    place = mesh_of_leaves(model) if place is None else place
    config = MomentsRun(tuple(widths), stream.classes, stream.digest)
    log = log.with_defaults(shown=("rows",), per_step={"tokens": stream.batch_at(0)[0].size}, title="moments")
    with placed(place, replicated) as there:
        model, batch_at = there.frozen(model, () if place is None else rules_for(model)), there.batches(stream.batch_at)
        state = there.state({name: RunningMoments.empty(d, k) for name, d in widths.items()})
        saving = SaveTo.of(run, config)
        end = fit(step, state, batch_at, steps=stream.steps, frozen=(model,), run=saving, log=log)
        found = to_host({name: running.whole() for name, running in end.items()})
    _check_labels(found[next(iter(widths))], stream.classes)
    return StreamedMoments(found, stream.classes, stream.rule)


def sites_of_stream(model: Model, at: str | Sequence[str], stream: TokenStream) -> dict[str, int]:
    """The width of each site, in order.

    Raises:
      UserError: there is no such value, the first batch is not what a stream has, or the model takes no mask.
    """
    tokens, mask, y = stream.batch_at(0)
    for what, part in (("mask", mask), ("labels", y)):
        if part is not None and part.shape != tokens.shape:
            raise UserError(f"the {what} of a batch have shape {part.shape}, and its tokens {tokens.shape}")
    if bool(stream.classes) != np.issubdtype(y.dtype, np.integer):
        needs = "numbers of classes, -1 for none" if stream.classes else "real numbers, NaN for none"
        raise UserError(f"the labels of the stream are {y.dtype}: give {needs}")
    if (check := getattr(model, "check_inputs", None)) is not None:
        check(np.asarray(tokens), mask=None if mask is None else np.asarray(mask))
    widths, takes_mask = site_widths(model, at, tokens.shape[1], mask is not None)
    if not takes_mask:
        raise UserError("the model takes no mask, and the stream has padding: give batches of one length, without mask")
    return widths


def used_and_columns(y: Array, classes: int) -> tuple[Float[Array, " row"], Float[Array, "row k"]]:
    """(1 for rows with a label, else 0; the columns of labels: each class but the first, or the real target)."""
    y = y.reshape(-1)
    if not classes:
        used = jnp.isfinite(y)
        return used.astype(jnp.float32), jnp.where(used, y, jnp.zeros_like(y)).astype(jnp.float32)[:, None]
    columns = y[:, None] == jnp.arange(1, classes, dtype=y.dtype)[None, :]
    # A number that names no class makes the sums NaN, and the loop names the step.
    used = jnp.where(y >= classes, jnp.nan, jnp.where(y >= 0, 1.0, 0.0))
    return used.astype(jnp.float32), columns.astype(jnp.float32)


@automatic_step
def moments_step(
    names: tuple[str, ...], classes: int, state: dict[str, RunningMoments], batch: tuple, model: Model
) -> tuple[dict[str, RunningMoments], dict[str, Array]]:
    """Read one batch and add it to the moments of all sites: a pure function, a step for `training.fit`.

    Args:
      names: the sites.
      classes: the number of classes; 0 for real targets.
      state: the moments of each site.
      batch: tokens, mask and labels, as in `TokenStream`.
      model: the model.
    """
    tokens, mask, y = batch
    used, z = used_and_columns(y, classes)
    values = wide_values(names, model, tokens, mask)
    after = {name: state[name].add(x.reshape(-1, x.shape[-1]), z, used) for name, x in zip(names, values, strict=True)}
    n = after[names[0]].moments.n
    total = jnp.sum(jnp.stack([jnp.trace(running.moments.xx) for running in after.values()]))
    return after, {"rows": n, "variance": total / jnp.maximum(n, 1)}


def _check_labels(moments: Moments, classes: tuple[str, ...]) -> None:
    if moments.n == 0:
        raise UserError("no token of the stream has a label")
    counts = moments.n * np.concatenate([[1 - moments.mean_z.sum()], moments.mean_z])
    if classes and (empty := [name for name, count in zip(classes, counts, strict=True) if count < 0.5]):
        raise UserError(f"no token of the stream has the class {empty[0]!r}")
