"""`jax-interp dashboard RUN_OR_DICTIONARY`: write the page of a dictionary's features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.cli.mesh_option import MeshOption
from jax_interp.core.terminal import print_text


@dataclass(frozen=True)
class Dashboard(MeshOption):
    """Write one HTML page of a dictionary's features: what they fire on, and what they write.

    The page has a list with search, sort and filter, a view of each feature, and a view of prompts. It is one file that
    fetches nothing. Its data is beside it, in features/. The same command continues a pass that was interrupted.
    """

    dictionary: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A run directory of train-dictionary, a folder or file of a dictionary in any format, the name of a published
    release, or hf:owner/repository/path."""
    id: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[ID]")] = None
    """The id of a dictionary in the release."""
    format: str | None = None
    """The format of the files. Default: it is detected."""
    out: Path | None = None
    """The directory for the page. Default: SOURCE."""
    features: tuple[int, ...] = ()
    """The indices of the features to show. Default: --count of them."""
    count: int = 4096
    """The number of features to show, if there are more and --features does not name them: up to half of them are the
    strongest ones of the texts in the view of prompts, the others are evenly spaced."""
    tokens: int = 200_000
    """The number of held-out tokens to read."""
    examples: int = 20
    """The number of examples with the largest activations."""
    loss_examples: int = 0
    """The number of examples on which each feature is ablated, for its effect on the loss. Each costs two runs."""
    token_examples: int = 0
    """The number of examples whose tokens are ablated, for their effect on the feature. Each costs 18 runs."""
    passages: int = 3
    """The number of held-out texts in the view of prompts."""
    prompts: tuple[str, ...] = ()
    """Texts for the view of prompts."""
    address: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ADDRESS ...")] = ()
    """The address that it reads, such as blocks.5.resid_post. Needed if the files do not say it."""
    writes: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ADDRESS ...")] = ()
    """The address that it writes, if it is another one and the files do not say it."""
    model: str | None = None
    """A model to use instead of the model that the dictionary was trained on. Needed if the files do not say it."""
    text: str | None = None
    """Another text: "stdlib", a UTF-8 file, or a directory of such files. Its held-out part is read."""
    context: int | None = None
    """The number of tokens in a sequence. Default: the number in the run's config, or 256."""
    neuronpedia: Path | None = None
    """An empty or missing directory for the same data as files of Neuronpedia."""
    source_set: str | None = None
    """The name of the set of sources on Neuronpedia. Default: the name of the directory of the page."""
    quiet: bool = False
    """Do not show progress."""


def run(argv: Sequence[str]) -> int:
    """Run `jax-interp dashboard` with these arguments. Returns the exit code."""
    options = parse(Dashboard, argv, command="dashboard")
    from jax_interp.recipes.dashboard import PageRequest, page_of_saved
    from jax_interp.recipes.evaluate_dictionary import Asked
    from jax_interp.recipes.feature_page import PAGE, FeaturePageConfig

    sizes = ("tokens", "examples", "loss_examples", "token_examples", "passages")
    config = FeaturePageConfig(options.count, **{name: getattr(options, name) for name in sizes})
    request = PageRequest(config, options.features, options.prompts, options.neuronpedia, options.source_set)
    asked = Asked(options.model, options.text, None, options.context, options.address, options.writes)
    where = {"format": options.format, "out": options.out, "quiet": options.quiet, "mesh": options.devices()}
    data, directory = page_of_saved(options.dictionary, options.id, request=request, asked=asked, **where)
    page = directory / PAGE
    print_text(f"{len(data.units):,} features, {data.tokens_seen:,} tokens")
    print_text(f"written to {page}")
    if options.neuronpedia is not None:
        print_text(f"files of Neuronpedia: {options.neuronpedia}")
    return 0
