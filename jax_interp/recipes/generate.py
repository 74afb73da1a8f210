"""The recipe of `generate`: load a model by name and let it continue a text, with saved edits applied.

JAX is imported only when a text is written, so that the help of the command is fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jax_interp.core.errors import UserError


@dataclass(frozen=True)
class GenerateConfig:
    """Which model continues a text, and how."""

    model: str = "stdlib-small"
    """A model of the package, a Hugging Face directory, or a name on the Hugging Face hub."""
    max_tokens: int = 100
    """The largest number of new tokens. The end of a document ends the text before that."""
    temperature: float = 0.0
    """0 always takes the likeliest token. 1 samples from the model's distribution."""
    top_k: int | None = None
    """Sample only from the k likeliest tokens."""
    top_p: float | None = None
    """Sample only from the smallest set of tokens that together have this probability."""
    min_p: float | None = None
    """Sample only from tokens with at least this fraction of the likeliest token's probability."""
    repetition_penalty: float | None = None
    """Makes tokens that are already in the text less likely. 1.2 is usual, 1 changes nothing."""
    stop: tuple[str, ...] = ()
    """Texts that end the continuation. They are not printed."""
    seed: int = 0
    """The seed of sampling. Another seed gives another text."""
    edits: Path | None = None
    """A file of edits (`save_edits`). They act on every forward pass."""
    bos: bool = True
    """Put the document-start token first, where the tokenizer has one."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of the model."""
    stream: bool = True
    """Print the text as it is written. Otherwise it is printed at the end, and one compiled program writes it."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UserError(f"max_tokens={self.max_tokens} must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature={self.temperature} must be 0 (the likeliest token) or a positive number")
        if self.top_k is not None and not 1 <= self.top_k < 2**31:
            raise UserError(f"top_k={self.top_k} must be at least 1, and at most the size of the vocabulary")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} is a probability: it must be above 0 and at most 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise UserError(f"min_p={self.min_p} is a share of the likeliest token's probability: from 0 to 1")
        if self.repetition_penalty is not None and not 0 < self.repetition_penalty < float("inf"):
            raise UserError(f"repetition_penalty={self.repetition_penalty} must be positive; 1 changes nothing")
        if not -(2**31) <= self.seed < 2**32:
            raise UserError(f"seed={self.seed} is not a number of 32 bits")
        if "" in self.stop:
            raise UserError("an empty text in stop would end every text at once: give a text to stop at")
        if self.temperature == 0 and (self.top_k, self.top_p, self.min_p) != (None, None, None):
            raise UserError("top_k, top_p and min_p limit what is drawn: give a temperature above 0 too, such as 1")


def continue_text(config: GenerateConfig, prompt: str) -> Iterator[str]:
    """Continue a text.

    Args:
      config: model, sampling, edits.
      prompt: the text.

    Returns:
      The parts of the continuation, without the prompt: one part if `config.stream` is False.

    Raises:
      UserError: the model, its tokenizer or the edits cannot be loaded, or the prompt has no tokens.
    """
    import jax

    from jax_interp.models import Greedy, Sample, complete, load, stream_text
    from jax_interp.surgery import edit
    from jax_interp.surgery.saving import load_edits

    edits = load_edits(config.edits) if config.edits is not None else ()
    model, tokenizer = load(config.model, dtype=config.dtype)
    if tokenizer is None:
        raise UserError(f"{config.model} has no tokenizer.json, which is needed to turn the prompt into tokens")
    bos = config.bos and tokenizer.bos_id is not None
    if not tokenizer.encode(prompt, bos=bos):
        raise UserError("the prompt is empty, and this tokenizer has no document-start token to begin with")
    sample = Sample(config.temperature, config.top_k, config.top_p, config.min_p)
    options: dict[str, Any] = {
        "bos": bos,
        "stop": (*config.stop, *(() if tokenizer.bos_id is None else (tokenizer.bos_id,))),
        "choose": sample if config.temperature > 0 else Greedy(),
        "key": jax.random.key(config.seed),
        "repetition_penalty": config.repetition_penalty,
    }
    model = edit(model, *edits) if edits else model
    if config.stream:
        return stream_text(model, tokenizer, prompt, config.max_tokens, **options)
    return iter([complete(model, tokenizer, [prompt], config.max_tokens, **options)[0].text])
