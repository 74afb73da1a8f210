"""Read a `config.json`. An attribute that is not understood is an error, so it cannot lead to a wrong model."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from jax_interp.core.errors import UserError

Choice = TypeVar("Choice")

IRRELEVANT: frozenset[str] = frozenset(
    (
        *("architectures", "model_type", "_name_or_path", "transformers_version", "tokenizer_class", "prefix"),
        *("dtype", "torch_dtype", "use_bfloat16", "_attn_implementation_autoset", "gradient_checkpointing"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id"),
        *("attention_dropout", "classifier_dropout", "initializer_range", "chunk_size_feed_forward"),
        *("use_cache", "return_dict", "output_attentions", "output_hidden_states"),
        *("id2label", "label2id", "problem_type", "finetuning_task", "task_specific_params"),
    )
)
"""Attributes that do not affect the forward pass: token ids, dropout, labels, defaults of generation and training."""


class Attributes:
    """The attributes of one `config.json`.

    A family takes the attributes that it understands. `close` raises an error for the remaining attributes.

    Args:
      values: the content of the file.
      where: the name of the file, for messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        self._values, self._where, self._seen = dict(values), where, set[str](IRRELEVANT)

    def take(self, name: str, *default: Any, also: Iterable[str] = ()) -> Any:
        """The value of `name`, or of an older name in `also`; the default if it is absent or null.

        Raises:
          UserError: the attribute is absent and there is no default.
        """
        names = (name, *also)
        self._seen.update(names)
        for known in names:
            if self._values.get(known) is not None:
                return self._values[known]
        if default:
            return default[0]
        near = difflib.get_close_matches(name, self._values, n=1)
        hint = f"; it has {near[0]!r}" if near else ""
        raise UserError(f"{self._where} does not give {name!r}{hint}")

    def without(self, *names: str) -> Attributes:
        """The same attributes without `names`. An attribute that one object takes is also marked in the other."""
        rest = Attributes({k: v for k, v in self._values.items() if k not in names}, self._where)
        rest._seen = self._seen
        return rest

    def require(self, name: str, value: object, why: str) -> None:
        """Raise `UserError` if `name` has another value than `value`. `why` is the end of the message."""
        if (given := self.take(name, value)) != value:
            raise UserError(f"{self._where} has {name}={given!r}, supported is {value!r}: {why}")

    def choose(self, name: str, choices: Mapping[str, Choice], *default: str) -> Choice:
        """The entry of `choices` for the value of `name`. Raises `UserError` if there is no such entry."""
        given = self.take(name, *default)
        if given not in choices:
            raise UserError(f"{self._where} has {name}={given!r}; supported are {', '.join(map(repr, choices))}")
        return choices[given]

    def ignore(self, *names: str) -> None:
        """Accept attributes that the forward pass does not depend on."""
        self._seen.update(names)

    def close(self) -> None:
        """Raise `UserError` for attributes that were not taken and are not null or false."""
        if "auto_map" in self._values:
            raise UserError(f"{self._where} asks for its own code (auto_map): code from a checkpoint is never run")
        left = [f"{k}={self._values[k]!r}" for k in self._values if k not in self._seen and self._values[k]]
        if left:
            raise UserError(
                f"{self._where} has attributes that are not understood and may change what the model computes: "
                f"{', '.join(left)}. To support them, implement them in the file of the family"
            )
