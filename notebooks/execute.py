"""Execute the notebooks: `python notebooks/execute.py` writes their outputs; `--small` only checks that they run.

A small run replaces the cell with the tag "parameters" by the text in its metadata, and writes nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).parent


def execute(path: Path, small: bool) -> None:
    """Run one notebook from top to bottom in a new kernel.

    Raises:
      CellExecutionError: a cell raised an error.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if small and "parameters" in cell.metadata.get("tags", ()):
            cell.source = cell.metadata["small"]
    NotebookClient(notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(HERE)}}).execute()
    if not small:
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times of day: every run would be a change
        nbformat.write(notebook, path)


def main() -> int:
    """Execute all notebooks, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(HERE.glob("*.ipynb")))
    parser.add_argument("--small", action="store_true", help="small parameters; outputs are not written")
    arguments = parser.parse_args()
    for path in arguments.notebooks:
        start = time.perf_counter()
        try:
            execute(path, arguments.small)
        except CellExecutionError as error:
            print(f"{path.name}: {error}", file=sys.stderr)
            return 1
        print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
