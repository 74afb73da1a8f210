"""docs/published-dictionaries.md: its code runs as it stands, and its table names every format."""

from __future__ import annotations

import re

import jax.numpy as jnp
import numpy as np
import pytest
from pages import DOCS, run

from jax_interp.dictionaries import load_dictionary
from jax_interp.dictionaries.formats import FORMATS

PAGE = "published-dictionaries.md"


def same(printed: str, wanted: str) -> None:
    assert printed.strip() == wanted.strip()


@pytest.mark.slow
def test_the_page_runs():
    names = run(PAGE, same)
    saved, downloads = names["saved"], names["downloads"]
    x = jnp.asarray(names["rows"][0][:50])
    for name in ("mine", "for-saelens"):
        again = load_dictionary(downloads / name)
        assert again.address == names["address"]
        np.testing.assert_allclose(again.dictionary(x), names["sae"](x), atol=1e-4)
    assert names["check"].findings == ()
    assert names["check"].l0 <= 16
    assert names["result"].reconstruction.fvu < 0.9
    assert saved.stated == {}


def test_the_table_names_every_format():
    """`python benchmarks/formats_table.py FIGURES --write` writes it."""
    text = (DOCS / PAGE).read_text()
    table = text[text.index("<!-- formats -->") : text.index("<!-- end of formats -->")]
    rows = dict(re.findall(r"^\| `([\w-]+)` \| [^|]+ \| yes \| (yes|–) \|", table, re.MULTILINE))
    assert {name: written == "yes" for name, written in rows.items()} == {kind.name: kind.writes for kind in FORMATS}
