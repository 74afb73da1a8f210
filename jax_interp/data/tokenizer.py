"""Byte-level BPE for source code: training and loading, with an explicit document-start token (BOS).

The pre-tokenizer splits a text into pieces, and no token crosses the end of a piece. The pieces are chosen for
interpretability. A newline and the indentation after it are one piece. Each bracket is a piece, so closing a bracket is
one prediction. Identifiers are split at `_`, at changes of case and at digits, so the parts of `get_default_encoding`
are the same tokens in other identifiers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from jax_interp.core.errors import UserError

if TYPE_CHECKING:
    import tokenizers

BOS = "<|endoftext|>"
"""The only special token. It marks the start of every document. Its id is 0."""

PIECES = "|".join(
    (
        r"\s*\n\s*",  # line ends, blank lines and the next line's indentation together
        r" ?__\p{Ll}+__(?![\p{L}_])",  # names like __init__ are not split
        r" ?_*(?:\p{Lu}+(?!\p{Ll})|\p{Lu}?[\p{Ll}\p{M}]+|[\p{Lo}\p{Lm}\p{Lt}]+)",  # HTTP|Server, _encoding, __init
        r" ?_+",
        r" ?\p{N}{1,3}",
        r" ?[\(\)\[\]\{\}]",
        r" ?[^\s\p{L}\p{N}_\(\)\[\]\{\}]+",  # operators, quotes, rulers
        r"\s+(?!\S)|\s+",
    )
)
"""The pieces of a text. BPE merges only within a piece. Every character belongs to exactly one piece."""


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of the `tokenizers` library, with an explicit BOS.

    For every tokenizer, `encode(text, bos=True)` puts the BOS id first, and `bos=False` does not. The post-processor of
    the file adds no tokens. If a text contains the name of a special token, it is encoded as this token, as in
    transformers.

    Example:
        tokenizer = load_tokenizer("model/tokenizer.json")
        ids = tokenizer.encode("def f(x):", bos=True)
        tokenizer.strings(ids)
    """

    backend: tokenizers.Tokenizer
    bos_id: int | None
    """The id of the token that starts documents; None if the tokenizer has no such token."""
    special_ids: frozenset[int] = field(default_factory=frozenset)
    """The ids of special tokens, including BOS."""

    @property
    def vocab_size(self) -> int:
        """The number of token ids, including special tokens."""
        return self.backend.get_vocab_size()

    def encode(self, text: str, *, bos: bool) -> list[int]:
        """The ids of a text.

        Args:
          text: any string.
          bos: whether the BOS id comes first.

        Raises:
          UserError: `bos` is True, but the tokenizer has no BOS.
        """
        return self._with_bos(bos) + self.backend.encode(text, add_special_tokens=False).ids

    @cached_property
    def exact(self) -> tokenizers.Tokenizer:
        """A copy of the backend without its post-processor, which may remove spaces from the offsets."""
        from tokenizers import Tokenizer as Backend

        copy = Backend.from_str(self.backend.to_str())
        copy.post_processor = None  # type: ignore[assignment]
        return copy

    def encode_batch(self, texts: Sequence[str], *, bos: bool) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        start = self._with_bos(bos)
        return [start + e.ids for e in self.backend.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of `ids`. Bytes that do not form a character become U+FFFD.

        Args:
          ids: token ids.
          skip_special: whether to leave out special tokens.
        """
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def strings(self, ids: Iterable[int]) -> list[str]:
        """One string per token, for display. Newlines are `⏎`, tabs are `⇥`, leading and trailing spaces are `·`."""
        return [self._display(int(i)) for i in ids]

    def id_of(self, text: str) -> int:
        """The id of a text that is exactly one token.

        Raises:
          UserError: the text is several tokens. The message shows them.
        """
        ids = self.encode(text, bos=False)
        if len(ids) != 1:
            raise UserError(
                f"{text!r} is not one token but {self.strings(ids)}; give one of these tokens, "
                "and note the leading space: ' self' and 'self' are different tokens"
            )
        return ids[0]

    def save(self, path: str | Path) -> None:
        """Write the tokenizer to a JSON file. A missing directory is created."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(path))

    def _with_bos(self, bos: bool) -> list[int]:
        if not bos:
            return []
        if self.bos_id is None:
            raise UserError("this tokenizer has no document-start token: pass bos=False, or bos_token= when loading it")
        return [self.bos_id]

    def _display(self, token: int) -> str:
        if token in self.special_ids:
            return self.backend.id_to_token(token) or f"<{token}>"
        text = self.backend.decode([token], skip_special_tokens=False)
        if not text or "\ufffd" in text:
            return self.backend.id_to_token(token) or f"<{token}>"
        body = text.strip(" ")
        head, tail = (len(text) - len(text.lstrip(" ")), len(text) - len(text.rstrip(" "))) if body else (len(text), 0)
        return "·" * head + _visible(body) + "·" * tail


def _visible(text: str) -> str:
    lines = text.replace("\t", "⇥").split("\n")
    return "⏎".join([lines[0]] + [line.replace(" ", "·") if not line.strip() else line for line in lines[1:]])


def train_bpe(texts: Iterable[str] | Iterator[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer. It takes seconds for ten megabytes. The result depends only on the texts.

    Args:
      texts: the training documents.
      vocab_size: the size of the vocabulary. It includes BOS and the 256 bytes, so it is at least 257.

    Returns:
      A tokenizer that can encode every text without loss.

    Raises:
      UserError: `vocab_size` is below 257.
    """
    if vocab_size < 257:
        raise UserError(f"vocab_size={vocab_size} is too small: 256 byte tokens and {BOS} need at least 257")
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer=trainer)
    return _wrap(backend, BOS)


def load_tokenizer(path: str | Path, *, bos_token: str | None = None, bos_id: int | None = None) -> Tokenizer:
    """Read a tokenizer.

    Args:
      path: a `tokenizer.json`, or a directory that contains it.
      bos_token: the text of BOS. Default: the token with id `bos_id`, if it is a special token; otherwise the first of
        `<|endoftext|>`, `<|begin_of_text|>`, `<bos>`, `<s>` that is a special token; otherwise no BOS.
      bos_id: the BOS id in the config of the model.

    Returns:
      The tokenizer.

    Raises:
      UserError: the file is missing or unreadable, or `bos_token` is not in the vocabulary.
    """
    from tokenizers import Tokenizer as Backend

    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        near = sorted(p.name for p in file.parent.glob("*"))[:10] if file.parent.is_dir() else "no such directory"
        raise UserError(f"no tokenizer at {file} (beside it: {near}); give a tokenizer.json or a directory with one")
    try:
        backend = Backend.from_file(str(file))
    except Exception as error:  # the Rust library raises bare Exception
        raise UserError(f"{file} is not a tokenizer.json of the `tokenizers` library: {error}") from error
    if bos_token is not None and backend.token_to_id(bos_token) is None:
        raise UserError(f"bos_token={bos_token!r} is not in the vocabulary of {file}")
    if bos_token is None:
        # Only special tokens: in some vocabularies <s> is an HTML tag, or bos_id is an ordinary token.
        special = {i: token.content for i, token in backend.get_added_tokens_decoder().items() if token.special}
        names = (*([special[bos_id]] if bos_id in special else []), BOS, "<|begin_of_text|>", "<bos>", "<s>")
        bos_token = next((name for name in names if name in special.values()), None)
    return _wrap(backend, bos_token)


def _wrap(backend: tokenizers.Tokenizer, bos_token: str | None) -> Tokenizer:
    special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
    bos_id = None if bos_token is None else backend.token_to_id(bos_token)
    return Tokenizer(backend, bos_id, frozenset(special | ({bos_id} if bos_id is not None else set())))
