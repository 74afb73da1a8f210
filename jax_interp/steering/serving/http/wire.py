"""The JSON of a completion request: what OpenAI-compatible clients send, and our field `edits`.

Nothing in a request is ever used as a path, an address on the network, or code. A vector is a list of numbers, or the
name of a vector that was loaded when the server started.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import parse_json
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.steering.serving.request import Request, RequestEdit
from jax_interp.steering.vector import SteeringVector

MOST_STOPS = 4
"""The most stop strings, as in OpenAI's API."""
WITHOUT_EFFECT = {
    "n": (1,), "best_of": (1,), "echo": (False,), "logprobs": (None,), "suffix": (None, ""), "presence_penalty": (0,),
    "frequency_penalty": (0,), "logit_bias": (None, {}),
}  # fmt: skip
"""Fields of OpenAI's API that this server does not have, and their values that ask for nothing."""
_EDIT_FIELDS = {field.name for field in dataclasses.fields(RequestEdit)} - {"gate"} | {"layer"}


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    body_bytes: int = 2**20
    """The largest body."""
    new_tokens: int = 1024
    """The most new tokens."""
    prompt_tokens: int = 4096
    """The most tokens of a prompt."""
    edits: int = 64
    """The most edits."""
    seconds: float = 120.0
    """The longest time from the arrival of a request to its end, waiting included."""
    waiting: int = 64
    """The most requests that wait for a row. The next one gets the status 429."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """A parsed body."""

    request: Request
    stop: tuple[str, ...]
    """Strings that end the text."""
    stream: bool
    model: str | None


def parse_body(
    body: bytes, tokenizer: Tokenizer | None, vectors: Mapping[str, SteeringVector], limits: Limits
) -> Asked:
    """The request in a body.

    Args:
      body: the body, UTF-8 JSON.
      tokenizer: the tokenizer of the model; None: prompts are lists of token ids.
      vectors: the loaded vectors by name.
      limits: what a request may ask for.

    Raises:
      UserError: the body is not what the server takes.
    """
    values = parse_json(body, "the body")
    if not isinstance(values, dict):
        raise UserError('the body is a JSON object, such as {"prompt": "Hello"}')
    take = _Fields(dict(values))
    tokens = _prompt(take("prompt"), tokenizer, limits)
    n_new = take("max_tokens", 16)
    if _is_whole(n_new) and n_new > limits.new_tokens:
        raise UserError(f"max_tokens={n_new}: this server gives at most {limits.new_tokens}")
    seed = take("seed")
    strings = _stops(take("stop", []))
    if strings and tokenizer is None:
        raise UserError("this model has no tokenizer, so it cannot look for a stop string")
    stream, model = take("stream", False), take("model")
    if not isinstance(stream, bool):
        raise UserError("stream is true or false")
    if model is not None and not isinstance(model, str):
        raise UserError("model is the name of a model")
    request = Request(
        tokens,
        n_new,
        _edits(take("edits", []), vectors, limits),
        temperature=take("temperature", 1.0),
        top_k=take("top_k", 0),
        top_p=take("top_p", 1.0),
        seed=secrets.randbits(32) if seed is None else seed,
        stop=() if tokenizer is None or tokenizer.bos_id is None else (tokenizer.bos_id,),
    )
    take("user")
    take("stream_options")
    for name, harmless in WITHOUT_EFFECT.items():
        if (value := take(name, harmless[0])) not in harmless or isinstance(value, bool) != (name == "echo"):
            raise UserError(f"this server does not have {name}: leave it out")
    take.check_empty()
    return Asked(request, strings, stream, model)


def _stops(given: Any) -> tuple[str, ...]:
    """The strings that end the text."""
    several = [given] if isinstance(given, str) else given
    if not isinstance(several, list) or not all(isinstance(one, str) and one for one in several):
        raise UserError("stop is a string that is not empty, or a list of such strings")
    if len(several) > MOST_STOPS:
        raise UserError(f"{len(several)} stop strings: this server takes at most {MOST_STOPS}")
    return tuple(several)


class _Fields:
    """The fields of an object, each taken once, so that unknown fields are found."""

    def __init__(self, values: dict[str, Any]):
        self.values = values

    def __call__(self, name: str, default: Any = None) -> Any:
        """The value of a field. null is the default too."""
        value = self.values.pop(name, None)
        return default if value is None else value

    def check_empty(self) -> None:
        if self.values:
            raise UserError(f"there is no field {next(iter(self.values))[:40]!r}")


def _prompt(prompt: Any, tokenizer: Tokenizer | None, limits: Limits) -> list[int]:
    """The token ids of a prompt. A text gets the document-start token, if the tokenizer has one."""
    if isinstance(prompt, str) and tokenizer is None:
        raise UserError("this model has no tokenizer: give the prompt as a list of token ids")
    if isinstance(prompt, str) and tokenizer is not None:
        # A token has at least one character in almost all vocabularies, but encoding must not take unlimited time.
        prompt = tokenizer.encode(prompt, bos=tokenizer.bos_id is not None)
    if not isinstance(prompt, list) or not all(map(_is_whole, prompt)):
        raise UserError("prompt is one text, or a list of token ids")
    if len(prompt) > limits.prompt_tokens:
        raise UserError(f"the prompt has {len(prompt)} tokens: this server takes at most {limits.prompt_tokens}")
    return prompt


def _edits(given: Any, vectors: Mapping[str, SteeringVector], limits: Limits) -> tuple[RequestEdit, ...]:
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise UserError('edits is a list of objects, such as {"layer": 3, "vector": "NAME", "strength": 2}')
    edits = [edit for i, one in enumerate(given) for edit in _edit(f"edits[{i}]", one, vectors)]
    if len(edits) > limits.edits:
        raise UserError(f"{len(edits)} edits: this server takes at most {limits.edits}")
    return tuple(edits)


def _edit(what: str, fields: dict[str, Any], vectors: Mapping[str, SteeringVector]) -> list[RequestEdit]:
    """The edits that one object asks for: a named vector without an address has one for each of its addresses."""
    if unknown := fields.keys() - _EDIT_FIELDS:
        raise UserError(f"{what} has no field {min(unknown)[:40]!r}: there are {', '.join(sorted(_EDIT_FIELDS))}")
    given = {name: value for name, value in fields.items() if value is not None}
    vector, layer, address = given.pop("vector", None), given.pop("layer", None), given.pop("address", None)
    if layer is not None and address is not None:
        raise UserError(f"{what} has a layer and an address: give one of them")
    if layer is not None:
        if not _is_whole(layer):
            raise UserError(f"layer of {what} is a whole number")
        address = f"blocks.{layer}.resid_post"
    if address is not None and not isinstance(address, str):
        raise UserError(f'address of {what} is a string, such as "blocks.3.resid_post"')
    if not isinstance(given.get("operator", ""), str):
        raise UserError(f"operator of {what} is a string")
    if isinstance(vector, str):
        if vector not in vectors:
            raise UserError(f"{what}: no vector {vector[:40]!r} was loaded; there are {', '.join(vectors) or 'none'}")
        directions = vectors[vector].vectors
        if address is not None and address not in directions:
            raise UserError(f"{what}: {vector!r} has no vector at {address[:60]!r}: it has {', '.join(directions)}")
        chosen = directions if address is None else {address: directions[address]}
        return [RequestEdit(where, np.asarray(direction), **given) for where, direction in chosen.items()]
    if not isinstance(vector, list) or not all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in vector):
        raise UserError(f"vector of {what} is a list of numbers, or the name of a loaded vector")
    if address is None:
        raise UserError(f"{what} needs a layer or an address")
    return [RequestEdit(address, np.asarray(vector, np.float64), **given)]


def _is_whole(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)
