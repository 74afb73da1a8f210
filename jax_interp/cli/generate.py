"""`jax-interp generate PROMPT`: a model continues a text as you watch, with saved edits applied if asked."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.core.errors import UserError


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
    min_p: float | None = None
    """Draw among the tokens at least this many times as likely as the likeliest."""
    repetition_penalty: float | None = None
    """Makes tokens that stand in the text less likely; 1.2 is usual, 1 is none."""
    stop: tuple[str, ...] = ()
    """Texts that end the continuation, which they are left out of."""
    seed: int = 0
    edits: Path | None = None
    """A file of edits (`save_edits`), applied at every position while generating."""
    bos: bool = True
    """Begin with the document-start token, where the tokenizer has one."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the computation."""
    only_new: bool = False
    """Print the continuation without the prompt."""
    stream: bool = True
    """Print as the text is written; otherwise at the end, by one compiled program."""


def run(argv: Sequence[str]) -> int:
    asked = parse(Generate, argv, command="generate")
    _check(asked)
    prompt = _prompt(asked.prompt)
    from jax_interp.models import load
    from jax_interp.surgery import edit
    from jax_interp.surgery.saving import load_edits

    edits = load_edits(asked.edits) if asked.edits is not None else ()
    model, tokenizer = load(asked.model, dtype=asked.dtype)
    if tokenizer is None:
        raise UserError(f"{asked.model} has no tokenizer.json: a prompt cannot be cut into tokens")
    bos = asked.bos and tokenizer.bos_id is not None
    if not tokenizer.encode(prompt, bos=bos):
        raise UserError("the prompt is empty, and this tokenizer has no document-start token to begin with")
    pieces = written(edit(model, *edits) if edits else model, tokenizer, prompt, asked, bos)
    first = next(pieces, "")  # what is wrong shows before anything is printed
    for piece in (*(() if asked.only_new else (prompt,)), first):
        print(piece, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0


def _prompt(given: str) -> str:
    """The text to go on from. UserError where it is none: bytes that are not UTF-8 arrive as lone surrogates, or not
    at all."""
    try:
        prompt = sys.stdin.read() if given == "-" else given
        prompt.encode()
    except UnicodeError as error:
        where = "what stdin gives" if given == "-" else "the prompt"
        raise UserError(f"{where} is not UTF-8 text, convert it first: {error}") from None
    return prompt


def written(model: Any, tokenizer: Any, prompt: str, asked: Generate, bos: bool) -> Iterator[str]:
    """The continuation, in pieces if it is to be streamed."""
    import jax

    from jax_interp.models import Greedy, Sample, complete, stream_text

    drawn = Sample(asked.temperature, asked.top_k, asked.top_p, asked.min_p)
    options: dict[str, Any] = {
        "bos": bos,
        "stop": (*asked.stop, *(() if tokenizer.bos_id is None else (tokenizer.bos_id,))),
        "choose": drawn if asked.temperature > 0 else Greedy(),
        "key": jax.random.key(asked.seed),
        "repetition_penalty": asked.repetition_penalty,
    }
    if asked.stream:
        return stream_text(model, tokenizer, prompt, asked.max_tokens, **options)
    return iter([complete(model, tokenizer, [prompt], asked.max_tokens, **options)[0].text])


def _check(asked: Generate) -> None:
    """UserError for numbers that mean nothing."""
    if asked.max_tokens < 1:
        raise UserError(f"--max-tokens {asked.max_tokens} must be at least 1")
    if not 0 <= asked.temperature < float("inf"):
        raise UserError(f"--temperature {asked.temperature} must be 0 (greedy) or a positive number")
    if asked.top_k is not None and not 1 <= asked.top_k < 2**31:
        raise UserError(f"--top-k {asked.top_k} must be at least 1, and at most the vocabulary's size")
    if not -(2**31) <= asked.seed < 2**32:
        raise UserError(f"--seed {asked.seed} is no number of 32 bits")
    if asked.top_p is not None and not 0 < asked.top_p <= 1:
        raise UserError(f"--top-p {asked.top_p} is a probability: above 0, at most 1")
    if asked.min_p is not None and not 0 <= asked.min_p <= 1:
        raise UserError(f"--min-p {asked.min_p} is a share of the likeliest token's probability: 0 to 1")
    if asked.repetition_penalty is not None and not 0 < asked.repetition_penalty < float("inf"):
        raise UserError(f"--repetition-penalty {asked.repetition_penalty} must be a positive number; 1 is none")
    if "" in asked.stop:
        raise UserError("--stop '' would end every text at once: give the text to stop at")
    if asked.temperature == 0 and (asked.top_k, asked.top_p, asked.min_p) != (None, None, None):
        raise UserError("--top-k, --top-p and --min-p choose what to draw from: give a --temperature too, such as 1")
