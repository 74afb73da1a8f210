"""Tasks: behaviours with generators of prompts, checked token by token, and the circuits that papers name for them."""

from jax_interp.circuits.tasks.attribute import Attribute
from jax_interp.circuits.tasks.docstring import Docstring
from jax_interp.circuits.tasks.examples import Examples, Spread, spread
from jax_interp.circuits.tasks.greater_than import GreaterThan
from jax_interp.circuits.tasks.induction import Induction
from jax_interp.circuits.tasks.ioi import IOI
from jax_interp.circuits.tasks.modular_addition import ModularAddition
from jax_interp.circuits.tasks.pronoun import Pronoun
from jax_interp.circuits.tasks.task import TASKS, PublishedCircuit, Task, find_task
from jax_interp.core.registry import discover

discover(__name__, __path__)

__all__ = [
    "IOI",
    "TASKS",
    "Attribute",
    "Docstring",
    "Examples",
    "GreaterThan",
    "Induction",
    "ModularAddition",
    "Pronoun",
    "PublishedCircuit",
    "Spread",
    "Task",
    "find_task",
    "spread",
]
