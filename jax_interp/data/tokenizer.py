"""Byte-level BPE for source code: training, loading, and one explicit rule for the document-start token.

The pre-tokenizer decides what may become a token, and it is made for interpretability. A newline with the indentation
that follows it is one piece. Brackets always stand alone, so that closing one is one prediction. Identifiers are cut at
`_`, at changes of case and at digits, so that the parts of `get_default_encoding` are the same tokens elsewhere.
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
"""The one special token. It starts every document, and so ends the one before. Its id is 0."""

PIECES = "|".join(
    (
        r"\s*\n\s*",  # line ends, blank lines and the next line's indentation together
        r" ?__\p{Ll}+__(?![\p{L}_])",  # __init__ and its kind stay whole
        r" ?_*(?:\p{Lu}+(?!\p{Ll})|\p{Lu}?[\p{Ll}\p{M}]+|[\p{Lo}\p{Lm}\p{Lt}]+)",  # HTTP|Server, _encoding, __init
        r" ?_+",
        r" ?\p{N}{1,3}",
        r" ?[\(\)\[\]\{\}]",
        r" ?[^\s\p{L}\p{N}_\(\)\[\]\{\}]+",  # operators, quotes, rulers
        r"\s+(?!\S)|\s+",
    )
)
"""The pieces that BPE merges within. Every character of a text belongs to exactly one piece."""


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of the `tokenizers` library, with an explicit BOS.

    `encode(text, bos=True)` puts the BOS id first and `bos=False` does not, for every tokenizer. Tokens that the
    post-processor of the file would add are never added. The name of a special token in a text is encoded as that
    token, as in transformers.

    Example:
        tokenizer = load_tokenizer("model/tokenizer.json")
        ids = tokenizer.encode("def f(x):", bos=True)
        tokenizer.strings(ids)
    """

    backend: tokenizers.Tokenizer
    bos_id: int | None
    """The id of the token that starts documents; None where the tokenizer has none."""
    special_ids: frozenset[int] = field(default_factory=frozenset)
    """The ids of special tokens, BOS included."""

    @property
    def vocab_size(self) -> int:
        """The number of ids, special ones included."""
        return self.backend.get_vocab_size()

    def encode(self, text: str, *, bos: bool) -> list[int]:
        """The ids of a text.

        Args:
          text: any string.
          bos: whether the BOS id comes first.

        Raises:
          UserError: `bos`, and the tokenizer has none.
        """
        return self._with_bos(bos) + self.backend.encode(text, add_special_tokens=False).ids

    @cached_property
    def exact(self) -> tokenizers.Tokenizer:
        """A copy of the backend with exact offsets: post-processors may remove spaces from them."""
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
          skip_special: leave special tokens out.
        """
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def strings(self, ids: Iterable[int]) -> list[str]:
        """One string per token for display: newlines as `⏎`, tabs as `⇥`, leading and trailing spaces as `·`."""
        return [self._display(int(i)) for i in ids]

    def id_of(self, text: str) -> int:
        """The id of a text that is exactly one token.

        Raises:
          UserError: the text is several tokens. The message shows them.
        """
        ids = self.encode(text, bos=False)
        if len(ids) != 1:
            raise UserError(
                f"{text!r} is not one token here but {self.strings(ids)}; name one of those, "
                "and mind the leading space: ' self' and 'self' are different tokens"
            )
        return ids[0]

    def save(self, path: str | Path) -> None:
        """Write the tokenizer to a JSON file. Its directory is made where it is missing."""
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
    """Train a byte-level BPE. It takes seconds for ten megabytes, and the same texts give the same tokenizer.

    Args:
      texts: the training documents.
      vocab_size: the size of the vocabulary, at least 257: BOS and the 256 bytes are in it.

    Returns:
      A tokenizer that encodes every text, and decodes it to itself.

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
      path: a `tokenizer.json`, or a directory with one.
      bos_token: the text of BOS. Default: the token `bos_id` where it is a special token, else the first of
        `<|endoftext|>`, `<|begin_of_text|>`, `<bos>`, `<s>` that is a special token, else none.
      bos_id: the id that a model's config names.

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
        # Special ones only: a vocabulary may have <s> as a word of HTML, and an id for another use.
        special = {i: token.content for i, token in backend.get_added_tokens_decoder().items() if token.special}
        names = (*([special[bos_id]] if bos_id in special else []), BOS, "<|begin_of_text|>", "<bos>", "<s>")
        bos_token = next((name for name in names if name in special.values()), None)
    return _wrap(backend, bos_token)


def _wrap(backend: tokenizers.Tokenizer, bos_token: str | None) -> Tokenizer:
    special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
    bos_id = None if bos_token is None else backend.token_to_id(bos_token)
    return Tokenizer(backend, bos_id, frozenset(special | ({bos_id} if bos_id is not None else set())))
