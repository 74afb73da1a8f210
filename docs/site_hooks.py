"""Hooks of the documentation's build (mkdocs.yml): pages that are made from other files of the repository.

- The READMEs and CONTRIBUTING.md become pages, with their links turned into links of the site.
- Every room of the package gets a page of the API reference, with all its modules: a new file is in it at once.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "jax_interp"
PAGES = {  # page of the site -> file of the repository
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "experiments.md": "experiments/README.md",
    "benchmarks.md": "benchmarks/README.md",
    "stdlib-small.md": "jax_interp/assets/stdlib-small/README.md",
}
# The order of the floors, the highest first: what a user reads before what it stands on.
ROOMS = (
    "recipes", "circuits", "steering", "diffing", "dashboards", "analysis", "dictionaries", "decomposition", "probes",
    "toys", "models", "data", "surgery", "training", "views", "core", "cli",
)  # fmt: skip
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)#\s]+)((?:#[^)\s]*)?\))")


def modules(room: str) -> list[str]:
    """The dotted names of a room's modules, the room itself first; private ones and empty ones are left out."""
    found = []
    for path in sorted((ROOT / PACKAGE / room).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if path.read_text(encoding="utf-8").strip() and not any(part.startswith("_") for part in parts):
            found.append(".".join(parts))
    return sorted(found)


def api_page(room: str) -> str:
    """The Markdown of a room's page."""
    # A folder shows its docstring alone: what it exports is shown under the module that defines it.
    entries = []
    for name in modules(room):
        is_folder = (ROOT / name.replace(".", "/")).is_dir()
        entries.append(f"::: {name}" + ("\n    options:\n      members: false" if is_folder else ""))
    return f"# {PACKAGE}.{room}\n\n" + "\n\n".join(entries) + "\n"


def rooms() -> list[str]:
    """The rooms that exist, in the order of `ROOMS`. Raises ValueError for one that the order does not know."""
    there = {path.parent.name for path in (ROOT / PACKAGE).glob("*/__init__.py")}
    if unknown := there - set(ROOMS):
        raise ValueError(f"docs/site_hooks.py does not know the rooms {sorted(unknown)}: add them to ROOMS")
    return [room for room in ROOMS if room in there]


def relinked(text: str, source: str) -> str:
    """A page's text with its links to files of the repository turned into links of the site, or into plain text."""
    to_page = {file: page for page, file in PAGES.items()}

    def link(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        if "://" in target:
            return match.group(0)
        path = PurePosixPath(os.path.normpath(PurePosixPath(source).parent / target)).as_posix()
        if path in to_page:
            return f"{before}{to_page[path]}{after}"
        for folder in ("docs/", "experiments/"):  # experiments/figures/ stands beside the pages
            if path.startswith((folder + "figures/", "docs/")):
                return f"{before}{path.removeprefix(folder)}{after}"
        return before.lstrip("!").removeprefix("[").removesuffix("](") + f" (`{path}`)"

    return LINK.sub(link, text)


def on_config(config: Any) -> Any:
    """Add the API reference to the navigation."""
    config.nav.append({"API": [{room: f"api/{room}.md"} for room in rooms()]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that no file of docs/ holds."""
    made = {page: relinked((ROOT / file).read_text(encoding="utf-8"), file) for page, file in PAGES.items()}
    made |= {f"api/{room}.md": api_page(room) for room in rooms()}
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    for figure in (ROOT / "experiments" / "figures").glob("*.png"):
        files.append(File.generated(config, f"figures/{figure.name}", abs_src_path=str(figure)))
    return files
