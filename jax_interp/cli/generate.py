"""`jax-interp generate PROMPT`: a model continues a text, with saved edits applied if asked."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.errors import UserError


@dataclass(frozen=True)
class Generate:
    """Continue a prompt. The text, prompt included, goes to stdout."""

    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[PROMPT]")] = "-"
    """The text to go on from; "-" reads it from stdin."""
    model: str = "stdlib-small"
    """A name of the package's, a Hugging Face directory or hub name."""
    max_tokens: int = 100
    """Tokens written at most; the end of a document ends the text."""
    temperature: float = 0.0
    """0 takes the likeliest token every time; 1 draws from the model's own distribution."""
    top_k: int | None = None
    """Draw among the k likeliest tokens only."""
    top_p: float | None = None
    """Draw among the fewest tokens that hold this much probability."""
    seed: int = 0
    edits: Path | None = None
    """A file of edits (`save_edits`), applied at every position while generating."""
    bos: bool = True
    """Begin with the document-start token, where the tokenizer has one."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the computation."""
    only_new: bool = False
    """Print the continuation without the prompt."""


def run(argv: Sequence[str]) -> int:
    asked = parse(Generate, argv, command="generate")
    _check(asked)
    prompt = sys.stdin.read() if asked.prompt == "-" else asked.prompt
    from jax_interp.models import load
    from jax_interp.surgery import edit
    from jax_interp.surgery.saving import load_edits

    edits = load_edits(asked.edits) if asked.edits is not None else ()
    model, tokenizer = load(asked.model, dtype=asked.dtype)
    if tokenizer is None:
        raise UserError(f"{asked.model} has no tokenizer.json: a prompt cannot be cut into tokens")
    ids = tokenizer.encode(prompt, bos=asked.bos and tokenizer.bos_id is not None)
    if not ids:
        raise UserError("the prompt is empty, and this tokenizer has no document-start token to begin with")
    new = continued(edit(model, *edits) if edits else model, ids, asked, tokenizer.bos_id)
    print(("" if asked.only_new else prompt) + tokenizer.decode(new, skip_special=True))
    return 0


def continued(model: Any, ids: Sequence[int], asked: Generate, end: int | None) -> list[int]:
    """The new tokens, up to `end`."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jax_interp.models import Greedy, Sample, generate

    choose = Sample(asked.temperature, asked.top_k, asked.top_p) if asked.temperature > 0 else Greedy()
    stop = () if end is None else (end,)
    tokens = generate(model, jnp.asarray([ids], jnp.int32), asked.max_tokens, choose=choose,
                      key=jax.random.key(asked.seed), stop=stop)  # fmt: skip
    new = np.asarray(tokens)[0].tolist()
    return new[: new.index(end)] if end in new else new


def _check(asked: Generate) -> None:
    """UserError for numbers that mean nothing."""
    if asked.max_tokens < 1:
        raise UserError(f"--max-tokens {asked.max_tokens} must be at least 1")
    if not 0 <= asked.temperature < float("inf"):
        raise UserError(f"--temperature {asked.temperature} must be 0 (greedy) or a positive number")
    if asked.top_k is not None and asked.top_k < 1:
        raise UserError(f"--top-k {asked.top_k} must be at least 1")
    if asked.top_p is not None and not 0 < asked.top_p <= 1:
        raise UserError(f"--top-p {asked.top_p} is a probability: above 0, at most 1")
    if asked.temperature == 0 and (asked.top_k is not None or asked.top_p is not None):
        raise UserError("--top-k and --top-p choose what to draw from: give a --temperature too, such as 1")
