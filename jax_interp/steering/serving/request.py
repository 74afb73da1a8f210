"""`Request`: a prompt to continue, with its own edits and its own sampling."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import ArrayLike, Float

from jax_interp.core.errors import UserError
from jax_interp.models.config import Config
from jax_interp.models.generation.sampling import LARGEST
from jax_interp.steering.operators import operator_called

LARGEST_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class RequestEdit:
    """Steer one request along a vector, at one value of the model.

    Args:
      address: the value, such as "blocks.3.resid_post", or the same value of several layers, "blocks.2:5.resid_post".
      vector: the vector, `[d]`. Its norm counts: strength 1 adds the vector once.
      operator: the name of an operator of `steering/operators.py`.
      strength: the factor of the vector.
      start: the first position that is steered. Position 0 is the first token of the prompt. A negative position counts
        from the end of the prompt: -1 is its last token, which predicts the first new token.
      stop: the first position that is not steered any more, counted in the same way. None: there is no end.
      decay: the factor of the strength for each new token, above 0 and at most 1. The prompt has the full strength.
      gate: False: the edit does not act. `Condition.measure` of `steering.applying` gives it, from the prompt.
    """

    address: str
    vector: Float[ArrayLike, " d"]
    operator: str = "add"
    strength: float = 1.0
    start: int = 0
    stop: int | None = None
    decay: float = 1.0
    gate: bool = True


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """A prompt to continue, with its own edits and its own sampling.

    Args:
      tokens: the token ids of the prompt.
      n_new: the most new tokens.
      edits: the edits of this request. Edits at the same value act in this order.
      temperature: 0 takes the most likely token. Otherwise a token is drawn.
      top_k: draw from the `top_k` most likely tokens; 0: from all.
      top_p: draw from the fewest most likely tokens whose total probability is at least `top_p`.
      seed: the seed of the draws. The new tokens depend on it, and not on the other requests.
      stop: token ids that end the text. The stop token is the last new token.
    """

    tokens: Sequence[int]
    n_new: int
    edits: Sequence[RequestEdit] = ()
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: Sequence[int] = ()


def check_request(request: Request, config: Config, slots: int | None = None) -> None:
    """Check the prompt, the numbers and the vectors of a request.

    Args:
      request: the request.
      config: the config of the model.
      slots: the most tokens of a text, prompt and new tokens together. None: no limit except that of the model.

    Raises:
      UserError: something is not what the model takes. The message says what.
    """
    ids = np.asarray(request.tokens)
    if ids.ndim != 1 or not ids.size:
        raise UserError("a request needs at least one token in its prompt (a BOS, for example)")
    _check_ids("the prompt has", ids, config.vocab_size)
    if len(request.stop):
        _check_ids("stop has", np.asarray(request.stop), config.vocab_size)
    _check_whole("n_new", request.n_new, 1, np.iinfo(np.int32).max)
    most = min((n for n in (slots, config.n_ctx if config.positions == "learned" else None) if n), default=None)
    if most is not None and (needed := len(ids) + request.n_new - 1) > most:
        raise UserError(
            f"{len(ids)} prompt tokens and n_new={request.n_new} need {needed} slots, and a text has at most {most}"
        )
    _check_number("temperature", request.temperature, 0, LARGEST)
    _check_number("top_p", request.top_p, 0, 1)
    _check_whole("top_k", request.top_k, 0, np.iinfo(np.int32).max)
    _check_whole("seed", request.seed, 0, LARGEST_SEED)
    for i, edit in enumerate(request.edits):
        _check_edit(f"edits[{i}]", edit)


def _check_edit(name: str, edit: RequestEdit) -> None:
    operator_called(edit.operator)
    vector = np.asarray(edit.vector)
    if vector.ndim != 1 or (vector.dtype.kind not in "fiu" and vector.dtype.name != "bfloat16"):
        raise UserError(f"the vector of {name} must be one list of numbers, got {vector.dtype}{list(vector.shape)}")
    if not np.isfinite(vector.astype(np.float64)).all():
        raise UserError(f"the vector of {name} has entries that are NaN or infinite")
    if np.linalg.norm(vector.astype(np.float64)) > LARGEST:
        raise UserError(f"the norm of the vector of {name} is too large for float32")
    _check_number(f"strength of {name}", edit.strength, -LARGEST, LARGEST)
    _check_number(f"decay of {name}", edit.decay, 0, 1)
    if not edit.decay > 0:
        raise UserError(f"decay of {name} must be above 0: use stop= to end an edit")
    if not isinstance(edit.gate, (bool, np.bool_)):
        raise UserError(f"gate of {name} is True or False, got {edit.gate!r}")
    least, most = np.iinfo(np.int32).min, np.iinfo(np.int32).max
    _check_whole(f"start of {name}", edit.start, least, most)
    if edit.stop is not None:
        _check_whole(f"stop of {name}", edit.stop, least, most)


def _check_ids(what: str, ids: np.ndarray, vocab_size: int) -> None:
    if ids.dtype.kind not in "iu" or ids.ndim != 1:
        raise UserError(f"{what} {ids.dtype} entries: give a list of token ids")
    if (outside := (ids < 0) | (ids >= vocab_size)).any():
        raise UserError(f"{what} the token id {ids[outside][0]}: this model has 0 to {vocab_size - 1}")


def _check_whole(name: str, x: object, least: int, most: int) -> None:
    if isinstance(x, bool) or not isinstance(x, (int, np.integer)) or not least <= x <= most:
        raise UserError(f"{name}={x!r} must be a whole number from {least} to {most}")


def _check_number(name: str, x: object, least: float, most: float) -> None:
    number = not isinstance(x, bool) and isinstance(x, (int, float, np.integer, np.floating))
    if not number or math.isnan(x) or not least <= x <= most:  # type: ignore[operator]
        raise UserError(f"{name}={x!r} must be a finite number from {least:g} to {most:g}")
