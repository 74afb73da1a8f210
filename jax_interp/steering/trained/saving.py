"""Trained steering on disk: one `safetensors` file of edits, without code."""

from __future__ import annotations

import os
from pathlib import Path

from jax_interp.core.errors import UserError
from jax_interp.steering.trained.intervention import Intervened
from jax_interp.steering.trained.interventions import (
    DiReFT,
    LoReFT,
    NoReFT,
    RankK,
    ReFTr1,
    ScaledVector,
    SoftPrompt,
    Vector,
)
from jax_interp.steering.trained.trained import TrainedSteering
from jax_interp.surgery import load_edits, save_edits

TYPES = (Intervened, DiReFT, LoReFT, NoReFT, RankK, ReFTr1, ScaledVector, SoftPrompt, Vector)
"""The classes that a file may contain, besides the built-in edits. `load_edits(path, types=TYPES)` gives the edits."""


def save_steering(path: str | os.PathLike, steering: TrainedSteering) -> Path:
    """Write trained steering to one file. The file appears whole or not at all.

    Args:
      path: the file.
      steering: the steering.

    Returns:
      The path of the file.

    Raises:
      SavingError: the file cannot be written.
    """
    return save_edits(path, steering.edits(1.0))


def load_steering(path: str | os.PathLike, types: tuple[type, ...] = ()) -> TrainedSteering:
    """Read trained steering that `save_steering` has written, bit for bit.

    Args:
      path: the file.
      types: the classes of your own interventions, if it has any.

    Raises:
      SavingError: the file does not exist, is damaged, or has a class that is not known.
      UserError: the file has other edits.
    """
    edits = load_edits(path, types=(*TYPES, *types))
    found, positions = {}, []
    for one in edits:
        if not isinstance(one.fn, Intervened) or one.layer is not None or one.address in found:
            raise UserError(f"{str(path)!r} has edits, but no trained steering: read it with load_edits")
        found[one.address] = one.fn.intervention
        positions.append(one.region.pos)
    if not edits:
        raise UserError(f"{str(path)!r} has no edits")
    return TrainedSteering(found, positions[0])
