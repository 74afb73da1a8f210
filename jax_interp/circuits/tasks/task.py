"""`Task`, the base class of a behaviour with a generator of prompts, and `TASKS`, the registry of all tasks.

    task = find_task("ioi")
    examples = task.sample(tokenizer, 64, seed=0)
    examples.contrast                      what the methods of `jax_interp.circuits` take
    examples.position("S2")                a position of each prompt

A task is one file. It registers a frozen dataclass; its fields are the choices of the task.
"""

from __future__ import annotations

import abc
import dataclasses
import difflib
from collections.abc import Mapping
from typing import ClassVar

from jax_interp.circuits.tasks.examples import Examples
from jax_interp.core.errors import UserError
from jax_interp.core.registry import Registry
from jax_interp.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class PublishedCircuit:
    """The circuit that a paper names for a task in one model.

    Args:
      model: the name of the model.
      heads: heads by their role, each as (layer, head).
      positions: the position of each role at which its heads act, by the names of the task.
      mlps: the layers whose MLPs are part of it.
      figures: published numbers by name.
      source: where it is from.
    """

    model: str
    heads: Mapping[str, tuple[tuple[int, int], ...]]
    positions: Mapping[str, str]
    mlps: tuple[int, ...]
    figures: Mapping[str, float]
    source: str

    def nodes(self) -> set[str]:
        """The names of the nodes, as in a `Graph`: "a9.h6", "m0"."""
        heads = {f"a{layer}.h{head}" for role in self.heads.values() for layer, head in role}
        return heads | {f"m{layer}" for layer in self.mlps}


class Task(abc.ABC):
    """One task.

    Attributes:
      name: the name of the task for `find_task` and the command line.
      about: one sentence.
      published: the circuit that a paper names, if there is one.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    published: ClassVar[PublishedCircuit | None] = None

    @abc.abstractmethod
    def sample(self, tokenizer: Tokenizer, n: int, seed: int = 0) -> Examples:
        """Draw prompts.

        Args:
          tokenizer: the model's tokenizer.
          n: the number of pairs of prompts.
          seed: the same seed gives the same prompts.

        Raises:
          UserError: the tokenizer splits the words that the task needs, or `n` is too small or too large.
        """


TASKS: Registry[Task] = Registry("task", Task)
"""Every task's class, by class name. `find_task` finds one by its `name`."""


def find_task(name: str) -> Task:
    """The task called `name`, with its default choices. If there is none, raises UserError with the nearest name."""
    tasks = {kind.name: kind for kind in TASKS}
    if name not in tasks:
        near = difflib.get_close_matches(name, tasks, n=1)
        hint = f". Did you mean {near[0]!r}?" if near else "."
        raise UserError(f"there is no task {name!r}{hint} There are {', '.join(sorted(tasks))}")
    return tasks[name]()


def check_count(n: int, least: int = 1) -> None:
    """Raise `UserError` if `n` is no number of prompts of at least `least`."""
    if isinstance(n, bool) or not isinstance(n, int) or n < least:
        raise UserError(f"n={n!r}: give a number of prompts of at least {least}")
