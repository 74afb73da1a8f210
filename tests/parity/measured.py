"""Figures that the tests of formats measure, one JSON line each, for the table of formats in the documentation.

JAX_INTERP_FORMAT_FIGURES=formats.jsonl make parity
"""

from __future__ import annotations

import json
import os
from pathlib import Path

FIGURES = "JAX_INTERP_FORMAT_FIGURES"


def record(format: str, case: str, direction: str, worst: float) -> None:
    """Append one figure to the file that the environment names, if it names one.

    Args:
      format: the name of the format.
      case: the architecture or layout.
      direction: "read" for files of the other library that are read here, "write" for the other way.
      worst: the largest difference of latents and outputs, relative to the largest of them if that is above 1.
    """
    if path := os.environ.get(FIGURES):
        with Path(path).open("a") as file:
            file.write(json.dumps({"format": format, "case": case, "direction": direction, "worst": worst}) + "\n")
