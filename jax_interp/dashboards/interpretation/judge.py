"""Requests to a judge, and its answers, which are kept on disk so that no request is paid for twice.

A judge is a function from a list of requests to a list of texts, one for each. `one_by_one` makes one from a function
of a single prompt:

    def ask(system: str, prompt: str) -> str:              # any client of a language model
        return client.complete(system=system, prompt=prompt)

    judge = Answers(one_by_one(ask), name="my-model at temperature 0", directory="runs/judge")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

from jax_interp.core.atomic_write import make_directory
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import json_digest, read_json, write_json

Kind = Literal["explanation", "detection", "fuzzing", "simulation"]


@dataclasses.dataclass(frozen=True)
class Shown:
    """One example as the judge sees it.

    Args:
      tokens: the texts of its tokens.
      marked: which of them are marked. None: no token is marked, and the judge is not told which ones are active.
    """

    tokens: tuple[str, ...]
    marked: tuple[bool, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Request:
    """One question to a judge: as text, and in its parts for a judge that is a program.

    Args:
      kind: what is asked: an explanation, or an answer to one of the scorers.
      system: the instructions, which are the same for all requests of a kind.
      prompt: the question.
      explanation: the explanation to judge by. None where one is asked for.
      examples: the examples in the order of the prompt, where they are numbered from 1.
    """

    kind: Kind
    system: str
    prompt: str
    explanation: str | None
    examples: tuple[Shown, ...]

    def digest(self, judge: str) -> str:
        """The key of the answer on disk: a digest of the text of the request and of the name of the judge."""
        return json_digest({"judge": judge, "system": self.system, "prompt": self.prompt})


class Judge(Protocol):
    """A judge: it answers several requests at once, in their order. It may ask them in parallel."""

    def __call__(self, requests: Sequence[Request], /) -> Sequence[str]: ...


def one_by_one(ask: Callable[[str, str], str]) -> Judge:
    """A judge that asks `ask(system, prompt)` for each request, one after the other."""
    return lambda requests: [ask(request.system, request.prompt) for request in requests]


@dataclasses.dataclass
class Answers:
    """A judge whose answers are kept, in memory and on disk. It is itself a judge.

    The answers of a batch are written as soon as the batch is answered. If the run is killed or the judge fails, the
    next run asks only what is missing. Texts that are the same are one request, also within a batch.

    Args:
      judge: the judge that is asked.
      name: what answers depend on beside the request: the model, its settings. Another name is another judge.
      directory: the folder of the answers, one JSON file for each. None: in memory only.
      batch: the number of requests that are given to the judge at a time.
    """

    judge: Judge
    name: str
    directory: Path | str | None = None
    batch: int = 32
    asked: int = dataclasses.field(default=0, init=False)
    """The number of requests that went to the judge."""
    _kept: dict[str, str] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def __call__(self, requests: Sequence[Request]) -> list[str]:
        """The answers, in the order of the requests.

        Raises:
          UserError: the judge returned another number of answers, or something that is no text; or a kept answer is
            damaged.
        """
        if self.directory is not None:
            make_directory(self.directory)
        by_key = {request.digest(self.name): request for request in requests}
        missing = [key for key in by_key if self._recall(key) is None]
        for first in range(0, len(missing), self.batch):
            self._ask({key: by_key[key] for key in missing[first : first + self.batch]})
        return [self._kept[request.digest(self.name)] for request in requests]

    def _recall(self, key: str) -> str | None:
        if key not in self._kept and (path := self._path(key)) is not None and path.exists():
            answer = read_json(path).get("answer")
            if not isinstance(answer, str):
                raise UserError(f"{path} holds no answer: remove it, and the request is asked again")
            self._kept[key] = answer
        return self._kept.get(key)

    def _ask(self, some: dict[str, Request]) -> None:
        answers = self.judge(list(some.values()))
        self.asked += len(some)
        if isinstance(answers, str) or len(answers) != len(some):
            what = "one text" if isinstance(answers, str) else f"{len(answers)} answers"
            raise UserError(f"the judge {self.name!r} returned {what} for {len(some)} requests: one text for each")
        for (key, request), answer in zip(some.items(), answers):
            if not isinstance(answer, str):
                raise UserError(f"the judge {self.name!r} returned a {type(answer).__name__} instead of a text")
            if (path := self._path(key)) is not None:
                asked = {"judge": self.name, "kind": request.kind, "system": request.system, "prompt": request.prompt}
                write_json(path, {**asked, "answer": answer})
            self._kept[key] = answer

    def _path(self, key: str) -> Path | None:
        return None if self.directory is None else Path(self.directory) / f"{key}.json"
