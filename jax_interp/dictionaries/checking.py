"""The self-test of a loaded dictionary: what its weights show by themselves, and what a few batches of its model show.

    check_weights(saved)                             findings: a name, a message, and whether it is an error
    check_dictionary(saved, model, batches)          L0 and FVU beside what the release states, and findings

`load_dictionary` runs the first part. Published files differ in orientation, in the units of thresholds and in what is
subtracted from the input, and a wrong guess often gives numbers that look possible. A finding names the fault that it
would be a sign of.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.leaves import check_finite
from jax_interp.data.harvest import later_positions, values
from jax_interp.dictionaries.activations.jumprelu import Jump
from jax_interp.dictionaries.evaluation.downstream import address_tuple
from jax_interp.dictionaries.evaluation.evaluate import Batches, evaluate_rows
from jax_interp.dictionaries.formats.folding import exact_row_norms
from jax_interp.dictionaries.formats.norm_weight import read_normalized
from jax_interp.dictionaries.forms import Dictionary, Normalised, Temporal
from jax_interp.dictionaries.forms.cross_layer import CrossLayer
from jax_interp.dictionaries.forms.side_by_side import SideBySide
from jax_interp.dictionaries.storage import AnyDictionary, Saved
from jax_interp.surgery import Model

SAMPLE = 2048
"""Features whose encoder and decoder directions are compared."""
AGREE, DISAGREE = 0.2, 0.05
"""Trained SAEs have a mean cosine of encoder and decoder directions above the first, shuffled ones below the second."""
ROWS = 4096
"""Rows that are encoded at a time."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something in a dictionary that is wrong, or is a sign of a wrong reading of its files."""

    name: str
    """What is concerned: "orientation", "decoder norms", "thresholds", "bias", "L0", "FVU"."""
    message: str
    is_error: bool = False
    """Whether it cannot be right. `load_dictionary` then refuses the dictionary."""


def check_weights(saved: Saved) -> tuple[Finding, ...]:
    """What the weights of a dictionary show by themselves.

    Args:
      saved: the dictionary, with the addresses that it reads and writes.

    Raises:
      UserError: a weight is NaN or infinite.
    """
    dictionary = saved.dictionary
    check_finite([leaf for leaf in jax.tree.leaves(dictionary) if leaf.ndim < 2], "the dictionary")
    if isinstance(dictionary, CrossLayer):
        parts = {f"source {i}: ": source.dictionary for i, source in enumerate(dictionary.sources)}
        return tuple(
            dataclasses.replace(found, message=before + found.message)
            for before, part in parts.items()
            for found in (*_norms(part), *_thresholds(part))
        )
    if isinstance(dictionary, Normalised):
        dictionary = dictionary.dictionary
    if not isinstance(dictionary, Dictionary):
        return ()
    same_value = saved.writes is None or saved.writes == saved.address
    autoencoder = same_value and dictionary.W_enc.shape[0] == dictionary.W_dec.shape[1]
    return (
        *(_orientation(dictionary) if autoencoder else ()),
        *_norms(dictionary),
        *_thresholds(dictionary),
        *_bias(dictionary),
    )


def report_findings(findings: tuple[Finding, ...], what: str) -> None:
    """Warn about findings. Raises UserError with the first one that is an error."""
    for found in findings:
        if found.is_error:
            raise UserError(f"{what} fails the self-test ({found.name}): {found.message}; check=False loads it anyway")
    for found in findings:
        warnings.warn(f"{what}, {found.name}: {found.message}", stacklevel=3)


def _orientation(dictionary: Dictionary) -> Iterator[Finding]:
    """Encoder and decoder directions of one feature agree in trained SAEs."""
    given = float(_agreement(dictionary.W_enc, dictionary.W_dec))
    square = dictionary.n_features == dictionary.d
    turned = float(_agreement(dictionary.W_enc, dictionary.W_dec.T)) if square else 0.0
    if turned > AGREE > DISAGREE + max(0.0, given):
        yield Finding(
            "orientation",
            f"the mean cosine of encoder and decoder directions is {given:.2f}, and {turned:.2f} if one of the two "
            "matrices is transposed",
            is_error=True,
        )
    elif square and _spread(dictionary.W_dec.T) < 1e-2 < 5e-2 < _spread(dictionary.W_dec):
        yield Finding(
            "orientation",
            "the columns of the decoder have equal norms and its rows do not, so both matrices look transposed",
            is_error=True,
        )
    elif given < DISAGREE:
        yield Finding(
            "orientation",
            f"the mean cosine of encoder and decoder directions is {given:.2f}; that of a trained SAE is above "
            f"{AGREE}. Untrained or shuffled weights look like this",
        )


@jax.jit
def _agreement(W_enc: Float[Array, "d feature"], W_dec: Float[Array, "feature d"]) -> Float[Array, ""]:
    """The mean cosine of W_enc[:, i] and W_dec[i], over some features i that are evenly spaced."""
    step = max(1, len(W_dec) // SAMPLE)  # slices, because a gather would copy the matrix
    a, b = W_enc[:, ::step].T.astype(jnp.float32), W_dec[::step].astype(jnp.float32)
    size = jnp.sqrt(jnp.sum(a * a, axis=1) * jnp.sum(b * b, axis=1))
    return jnp.mean(jnp.sum(a * b, axis=1) / jnp.maximum(size, jnp.float32(1e-30)))


def _spread(W: Float[Array, "row d"]) -> float:
    """The standard deviation of the norms of rows, in parts of their mean."""
    norms = np.asarray(exact_row_norms(W))
    return float(norms.std() / max(norms.mean(), 1e-30))


def _norms(dictionary: Dictionary) -> Iterator[Finding]:
    norms = np.asarray(exact_row_norms(dictionary.W_dec))
    middle = float(np.median(norms))
    if (zero := int((norms == 0).sum())) > len(norms) / 2:
        yield Finding("decoder norms", f"{zero:,} of {len(norms):,} decoder rows are zero: they write nothing")
    elif not 1e-3 < middle < 1e3:
        yield Finding("decoder norms", f"the median norm of decoder rows is {middle:.2g}; about 1 is usual")


def _thresholds(dictionary: Dictionary) -> Iterator[Finding]:
    if not isinstance(dictionary.activation, Jump):
        return
    below = int(np.asarray(below_zero(dictionary.activation)).sum())
    if n := np.size(dictionary.activation.log_threshold) if below else 0:
        how_many = "every threshold" if below == n else f"{below:,} of {n:,} thresholds"
        yield Finding(
            "thresholds",
            f"{how_many} of the JumpReLU {'is' if below == n else 'are'} 0 or below, where it is a plain ReLU. Files "
            "with logarithms of thresholds, or with thresholds that were never set, look like this",
        )


def below_zero(activation: Jump) -> Array:
    """Where a threshold of a file was 0 or below (`Jump.of`)."""
    log = activation.log_threshold
    return log <= jnp.log(jnp.finfo(log.dtype).tiny) + jnp.asarray(1e-3, log.dtype)


def _bias(dictionary: Dictionary) -> Iterator[Finding]:
    """A file for a dictionary that is not centred may hold b_enc - b_dec W_enc as b_enc."""
    if not dictionary.centred:
        return
    folded = -np.asarray(dictionary.b_dec @ dictionary.W_enc, np.float64)
    b_enc = np.asarray(dictionary.b_enc, np.float64)
    size = np.linalg.norm(folded)
    if size > 1e-6 and np.linalg.norm(b_enc - folded) < 0.05 * size:
        yield Finding("bias", "b_enc is -b_dec W_enc, and b_dec is subtracted from the input too: it may count twice")


@dataclasses.dataclass(frozen=True)
class Check:
    """The result of `check_dictionary`."""

    tokens: int
    """Tokens that were measured."""
    l0: float
    """Mean number of latents that are on."""
    fvu: float
    """Fraction of variance unexplained. 1 is no better than the mean."""
    dead: int
    """Latents that were on for no token."""
    stated: Mapping[str, float]
    """What the release states: "l0", "variance_explained"."""
    fvu_transposed: Mapping[str, float]
    """If there are as many features as dimensions: FVU with a matrix transposed, by its name. The files are read right
    if all are higher than `fvu`."""
    findings: tuple[Finding, ...]
    """What the weights and the figures show."""


def check_dictionary(saved: Saved, model: Model, batches: Batches, *, skip_first: int = 1) -> Check:
    """Measure a dictionary on a few batches of its model, beside what its release states.

    Args:
      saved: what `load_dictionary` returned.
      model: the model that it was trained for.
      batches: pairs of tokens [seq, pos] and a mask `keep` [seq, pos]. A thousand tokens are enough.
      skip_first: first positions to leave out. Most SAEs are not trained on the first one, whose activations can be
        thirty times as long as all others.

    Returns:
      L0, FVU and dead latents, with the figures of the release. Findings say where they contradict each other.

    Raises:
      UserError: the files do not say which value the dictionary reads, the model has other widths, or no token is kept.

    Example:
        check = check_dictionary(saved, model, [(tokens, keep)])
        check.l0, check.stated.get("l0"), check.fvu, check.findings
    """
    if saved.normalized is not None:
        saved = read_normalized(saved, model)
    dictionary: Any = saved.dictionary
    reads = address_tuple(saved.reads())
    writes = reads if saved.writes is None else address_tuple(saved.writes)
    x, y = _kept_rows(model, reads, writes, batches, skip_first)
    d_in, d_out = widths_of(dictionary)
    if (x.shape[1], y.shape[1]) != (d_in, d_out):
        raise UserError(
            f"the dictionary reads {d_in} and writes {d_out} numbers; {', '.join(reads)} of this model has "
            f"{x.shape[1]} and {', '.join(writes)} {y.shape[1]}: it is for {saved.model or 'another model'}"
        )
    figures = evaluate_rows(_one(dictionary), _pieces(x), _pieces(y))
    turned = {}
    if isinstance(dictionary, Dictionary) and d_in == d_out == dictionary.n_features:
        for names in (("W_enc",), ("W_dec",), ("W_enc", "W_dec")):
            other = dataclasses.replace(dictionary, **{name: getattr(dictionary, name).T for name in names})
            turned[" and ".join(names)] = evaluate_rows(other, _pieces(x), _pieces(y)).reconstruction.fvu
    l0, fvu = figures.reconstruction.l0, figures.reconstruction.fvu
    found = (*check_weights(saved), *_contradictions(l0, fvu, saved.stated, turned))
    return Check(len(x), l0, fvu, figures.density.dead, dict(saved.stated), turned, found)


def _contradictions(
    l0: float, fvu: float, stated: Mapping[str, float], turned: Mapping[str, float]
) -> Iterator[Finding]:
    wanted = stated.get("l0")
    if wanted and not wanted / 2 <= l0 <= wanted * 2:
        message = (
            f"L0 is {l0:.1f} on this text, and the release states {wanted:.1f}: is this the value that it was trained "
            "on, with the model's own weights (not centred, norms not folded)?"
        )
        yield Finding("L0", message)
    explained = stated.get("variance_explained")
    if explained is not None and 1 - fvu < explained - 0.2:
        yield Finding("FVU", f"it explains {1 - fvu:.2f} of the variance, and the release states {explained:.2f}")
    elif not fvu < 1:
        yield Finding("FVU", f"FVU is {fvu:.2f}: the reconstruction is no better than the mean of the activations")
    best = min(turned, key=turned.__getitem__, default=None)
    if best is not None and turned[best] < fvu:
        message = f"FVU is {fvu:.3f}, and {turned[best]:.3f} with {best} transposed: it is read the wrong way"
        yield Finding("orientation", message, is_error=True)


def _kept_rows(
    model: Model, reads: tuple[str, ...], writes: tuple[str, ...], batches: Batches, skip_first: int
) -> tuple[np.ndarray, np.ndarray]:
    """The rows that it reads and those that it should write, at the tokens that are kept."""
    names = tuple(dict.fromkeys(reads + writes))
    read = jax.jit(lambda model, tokens: values(model, names, tokens))
    xs, ys = [], []
    for tokens, keep in batches:
        kept = np.asarray(later_positions(keep, skip_first)).reshape(-1)
        parts = dict(zip(names, (np.asarray(part)[kept] for part in read(model, jnp.asarray(tokens)))))
        xs.append(np.concatenate([parts[name] for name in reads], axis=1))
        ys.append(np.concatenate([parts[name] for name in writes], axis=1))
    if not xs or not sum(map(len, xs)):
        raise UserError("no token is kept in any batch: there is nothing to measure")
    return np.concatenate(xs), np.concatenate(ys)


def _pieces(rows: np.ndarray) -> Iterator[Array]:
    for start in range(0, len(rows), ROWS):
        yield jnp.asarray(rows[start : start + ROWS])


def widths_of(dictionary: AnyDictionary) -> tuple[int, int]:
    """(width of what it reads, width of what it writes), of several values the sum."""
    if isinstance(dictionary, CrossLayer):
        return sum(source.W_enc.shape[0] for source in dictionary.sources), dictionary.b_dec.size
    d_out = dictionary.b_dec.shape[0]
    return d_out if isinstance(dictionary, Temporal) else dictionary.d, d_out


def _one(dictionary: Any) -> Any:
    return SideBySide(dictionary) if isinstance(dictionary, CrossLayer) else dictionary
