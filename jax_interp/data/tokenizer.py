"""Byte-level BPE for source code: training and loading, with an explicit document-start token (BOS).

The pre-tokenizer splits a text into pieces, and no token crosses the end of a piece. The pieces are chosen for
interpretability. A newline and the indentation after it are one piece. Each bracket is a piece, so closing a bracket is
one prediction. Identifiers are split at `_`, at changes of case and at digits, so the parts of `get_default_encoding`
are the same tokens in other identifiers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from jax_interp.core.atomic_write import atomic_write, make_directory
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
    model_ids: int | None = None
    """The number of ids of the model that the tokenizer belongs to. A text that needs a higher id is refused."""

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id, special tokens included. Ids below it may be unused."""
        return self._vocab_size

    @cached_property
    def _vocab_size(self) -> int:
        return 1 + max(self.backend.get_vocab().values(), default=-1)

    @property
    def digest(self) -> str:
        """The SHA-256 of everything that decides which ids a text has."""
        return hashlib.sha256(f"{self.bos_id} {self.backend.to_str()}".encode()).hexdigest()

    def encode(self, text: str, *, bos: bool) -> list[int]:
        """The ids of a text.

        Args:
          text: any string.
          bos: whether the BOS id comes first.

        Raises:
          UserError: `bos` is True, but the tokenizer has no BOS. Or the model has no such id.
        """
        return self.encode_batch([text], bos=bos)[0]

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
        found = [start + e.ids for e in self.backend.encode_batch(list(texts), add_special_tokens=False)]
        if self.model_ids is not None and self.model_ids < self.vocab_size:
            for ids in found:
                if (highest := max(ids, default=0)) >= self.model_ids:
                    raise UserError(
                        f"the token {self.backend.id_to_token(highest)!r} has the id {highest}, but the model has only "
                        f"{self.model_ids} ids: this text needs a token that the model does not know"
                    )
        return found

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of `ids`. Bytes that do not form a character become U+FFFD.

        Args:
          ids: token ids. An id without a token (models may have more ids than their tokenizer) becomes `<id>`.
          skip_special: whether to leave out special tokens.

        Raises:
          UserError: an id is negative. `generate` gives -1 where the logits are NaN.
        """
        ids, texts, known = [int(i) for i in ids], [], list[int]()
        if any(i < 0 for i in ids):
            raise UserError(f"the token id {min(ids)} has no text: generate gives -1 where the logits are NaN")
        for i in ids:
            if self._token(i) is not None:
                known.append(i)
                continue
            texts += [self.backend.decode(known, skip_special_tokens=skip_special), f"<{i}>"]
            known = []
        return "".join([*texts, self.backend.decode(known, skip_special_tokens=skip_special)])

    def texts(self, ids: Iterable[int]) -> list[str]:
        """The text of each token inside a text, with its leading space.

        The texts of tokens join to the text, with one exception: Llama 2 and others add a space to the start of a text,
        which `decode` removes and which belongs to the first token here. A part of a character becomes U+FFFD.
        """
        return [self._text(int(i)) for i in ids]

    def strings(self, ids: Iterable[int]) -> list[str]:
        """`texts` for display. Newlines are `⏎`, tabs are `⇥`, leading and trailing spaces are `·`.

        Special tokens, parts of characters and tokens without a text have the names that the vocabulary gives them.
        """
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
        """Write the tokenizer to a JSON file, atomically. A missing directory is created."""
        make_directory(Path(path).parent)
        atomic_write(path, self.backend.to_str(pretty=True))

    def _with_bos(self, bos: bool) -> list[int]:
        if not bos:
            return []
        if self.bos_id is None:
            raise UserError("this tokenizer has no document-start token: pass bos=False, or bos_token= when loading it")
        return [self.bos_id]

    def _token(self, i: int) -> str | None:
        """The name of an id in the vocabulary; None for an id that the tokenizer does not have."""
        return self.backend.id_to_token(i) if 0 <= i < self.vocab_size else None

    def _display(self, i: int) -> str:
        token = self._token(i)
        if token is None:
            return f"<{i}>"
        if i in self.special_ids:
            return token
        text = self._text(i)
        if not text or "\ufffd" in text:
            return token
        body = text.strip(" ")
        head, tail = (len(text) - len(text.lstrip(" ")), len(text) - len(text.rstrip(" "))) if body else (len(text), 0)
        return "·" * head + _visible(body) + "·" * tail

    def _text(self, i: int) -> str:
        token = self._token(i)
        if token is None:
            return f"<{i}>"
        if self.backend.decoder is None:
            return token
        # Decoders may remove a space from the start of a text, so the token is decoded behind itself.
        once, twice = (self.backend.decode([i] * n, skip_special_tokens=False) for n in (1, 2))
        return twice[len(once) :]


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


def load_tokenizer(
    path: str | Path, *, bos_token: str | None = None, bos_id: int | None = None, model_ids: int | None = None
) -> Tokenizer:
    """Read a tokenizer.

    A file may have truncation or padding switched on, because it was saved after use. Both are switched off, as in
    transformers: texts keep all their tokens and get no others.

    Args:
      path: a `tokenizer.json`, or a directory that contains it.
      bos_token: the text of BOS. Default: the token with id `bos_id`, if it is a special token; otherwise the first of
        `<|endoftext|>`, `<|begin_of_text|>`, `<bos>`, `<s>` that is a special token; otherwise no BOS.
      bos_id: the BOS id in the config of the model.
      model_ids: the number of ids of the model. The tokenizer then refuses texts that need a higher id.

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
        backend.no_truncation()
        backend.no_padding()
        backend.encode("a b")  # some files are only found to be wrong when they are used
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the Rust library raises bare Exception, and BaseException where it panics
        reason = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"{file} is not a tokenizer.json of the `tokenizers` library: {reason[0][:300]}") from error
    if bos_token is not None and backend.token_to_id(bos_token) is None:
        raise UserError(f"bos_token={bos_token!r} is not in the vocabulary of {file}")
    if bos_token is None:
        # Only special tokens: in some vocabularies <s> is an HTML tag, or bos_id is an ordinary token.
        special = {i: token.content for i, token in backend.get_added_tokens_decoder().items() if token.special}
        names = (*([special[bos_id]] if bos_id in special else []), BOS, "<|begin_of_text|>", "<bos>", "<s>")
        bos_token = next((name for name in names if name in special.values()), None)
    return _wrap(backend, bos_token, model_ids)


def _wrap(backend: tokenizers.Tokenizer, bos_token: str | None, model_ids: int | None = None) -> Tokenizer:
    special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
    bos_id = None if bos_token is None else backend.token_to_id(bos_token)
    special_ids = frozenset(special | ({bos_id} if bos_id is not None else set()))
    return Tokenizer(backend, bos_id, special_ids, model_ids)
