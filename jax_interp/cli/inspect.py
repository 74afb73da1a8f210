"""`jax-interp inspect SOURCE [ID]`: what a dictionary is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.core.errors import UserError
from jax_interp.core.terminal import print_text

SHOWN = 20
"""Ids of a release that are listed without --ids."""


@dataclass(frozen=True)
class Inspect:
    """Show what a dictionary is: format, model, addresses, sizes, activation, norms, notes, and what looks wrong.

    With a release and no id, list its ids. Without anything, list the releases. With --model or --text, also measure
    L0 and FVU on a few sequences, beside what the release states.
    """

    source: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[SOURCE]")] = None
    """A folder or file, a run directory, the name of a release, or hf:owner/repository/path."""
    id: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[ID]")] = None
    """The id of a dictionary in the release."""
    ids: Annotated[str | None, tyro.conf.arg(metavar="PATTERN")] = None
    """List the ids of the release that match, such as "layer_5/*"."""
    format: str | None = None
    """The format of the files. Default: it is detected."""
    revision: str | None = None
    """A branch, tag or commit of the repository. Default: the newest."""
    model: str | None = None
    """Measure it in this model. Default with --text: the model that the files name."""
    address: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ADDRESS ...")] = ()
    """The address that it reads, if the files do not say it."""
    text: str | None = None
    """Measure it on the held-out part of this text: "stdlib", a UTF-8 file, or a directory. Default with --model:
    stdlib."""
    sequences: int = 8
    """Sequences to measure on."""
    context: int = 256
    """Tokens in each sequence."""
    json: bool = False
    """Print JSON."""


def run(argv: Sequence[str]) -> int:
    """Run `jax-interp inspect` with these arguments. Returns the exit code."""
    options = parse(Inspect, argv, command="inspect")
    from jax_interp.dictionaries.releases import find_release

    if options.source is None:
        return _print_releases(options)
    release = find_release(options.source)
    if release is not None and (options.ids is not None or (options.id is None and len(release.entries) > 1)):
        return _print_ids(release, options)
    if options.ids is not None:
        raise UserError(f"--ids is for releases; {options.source!r} is none")
    from jax_interp.recipes import inspect_dictionary as recipe

    for name in ("sequences", "context"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)} is below 1")
    saved = recipe.inspected(options.source, options.id, format=options.format, revision=options.revision)
    about = recipe.described(saved)
    if options.model is not None or options.text is not None:
        text = recipe.Text(options.text or "stdlib", options.sequences, options.context)
        check = recipe.measured(saved, options.model, options.address, text)
        about |= {"measured": _measured(dataclasses.asdict(check))}
        about |= {"findings": [f"{found.name}: {found.message}" for found in check.findings]}
    if options.json:
        print_text(json.dumps(about, indent=2))
    else:
        _print(about, " ".join(part for part in (options.source, options.id) if part))
    return 0


def _measured(check: Mapping[str, Any]) -> dict[str, Any]:
    return {name: check[name] for name in ("tokens", "l0", "fvu", "dead", "fvu_transposed") if check[name] != {}}


def _print(about: Mapping[str, Any], title: str) -> None:
    from jax_interp.views import tables

    rows = []
    for name, value in about.items():
        if isinstance(value, Mapping):
            rows += [(f"{name} {inner}", tables.format_number(number)) for inner, number in value.items()]
        elif name in ("notes", "findings"):
            rows += [(name.removesuffix("s"), text) for text in value]
        elif isinstance(value, list | tuple):
            rows.append((name, ", ".join(map(str, value))))
        else:
            rows.append((name, "not known" if value is None else _word(value)))
    tables.print_table(["", ""], rows, title=title)


def _word(value: Any) -> str:
    from jax_interp.views import tables

    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else tables.format_number(value)


def _print_ids(release: Any, options: Inspect) -> int:
    from jax_interp.recipes.inspect_dictionary import listed
    from jax_interp.views import tables

    found = listed(release, options.ids)
    if options.json:
        print_text(json.dumps(found, indent=2))
        return 0
    shown = dict(list(found.items())[: len(found) if options.ids is not None else SHOWN])
    number = lambda stated, name: tables.format_number(stated.get(name))
    rows = [(id, number(stated, "l0"), number(stated, "variance_explained")) for id, stated in shown.items()]
    title = f"{release.name}: {len(release.entries)} dictionaries for {release.model}, {release.repository}"
    print_text(title)
    tables.print_table(["id", ("L0", "right"), ("explained", "right")], rows)
    if len(shown) < len(found):
        print_text(f"and {len(found) - len(shown)} more: --ids PATTERN lists those that match, --ids '*' all")
    return 0


def _print_releases(options: Inspect) -> int:
    from jax_interp.recipes.inspect_dictionary import all_releases
    from jax_interp.views import tables

    names = ("name", "model", "format", "dictionaries")
    found = all_releases()
    if options.json:
        print_text(json.dumps([dict(zip(names, one)) for one in found], indent=2))
        return 0
    rows = [(name, model, format, f"{n:,}") for name, model, format, n in found]
    title = f"{len(found)} releases with {sum(one[3] for one in found):,} dictionaries"
    tables.print_table(["release", "model", "format", ("dictionaries", "right")], rows, title=title)
    return 0
