"""The data of a page of features: numbers arrive as they were, texts stay texts, and long lists stay light."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from chromium import Chromium
from known_page import with_strings, written

from jax_interp.core.errors import UserError
from jax_interp.views.feature_page import FeaturePage, RankedTokens, render
from jax_interp.views.packed_arrays import packed_arrays, scaled_half

HOSTILE = [
    "<script>window.evil = 1</script>", "</script><script>window.evil = 1</script>",
    "<img src=x onerror='window.evil=1'>",
    "\u202eevil\u202c", "\u2067evil", "\"'`${window.evil=1}", "\x00", "\ud800", "]]>-->", "&lt;b&gt;",
    "\u2028", "a" * 5000,
    "javascript:window.evil=1", "__proto__", "", " ", "\x1b[31m",
]  # fmt: skip


def test_hostile_texts_stay_texts(browser: Chromium, content: FeaturePage, tmp_path: Path):
    notes = {int(i): text for i, text in zip(content.features, HOSTILE)}
    facts = {text: text for text in HOSTILE}
    every = RankedTokens(HOSTILE[0], np.tile(np.arange(len(HOSTILE)), (60, 1)), np.ones((60, len(HOSTILE))))
    texts = {"notes": notes, "names": notes, "title": HOSTILE[1], "facts": facts, "tokens": [every]}
    hostile = dataclasses.replace(with_strings(content, HOSTILE), **texts)
    page = written(hostile, tmp_path / "hostile.html")
    browser.open(page)
    for row in range(len(HOSTILE)):
        browser.run(f"location.hash = 'f={3 * row}'; route()")
    browser.run("location.hash = 'f=3'; route()")
    browser.run("find('query').value = '<script'; arranged()")
    assert browser.run("order.length") > 0
    shown = set(browser.run("data.strings"))
    assert {
        "<script>window.evil = 1</script>",
        "\\x00",
        "\\ud800",
        "\\u202eevil\\u202c",
        "\\u2028",
        "\\x1b[31m",
    } <= shown
    for address in ("p=0&t=0", "p=1&t=1"):
        browser.run(f"location.hash = {address!r}; route()")
    assert browser.run("typeof window.evil") == "undefined"
    assert (
        browser.run(
            "document.querySelectorAll('img, iframe, script:not([type]), [onerror], a[href^=javascript]').length"
        )
        == 1
    )
    assert browser.run("document.title") == HOSTILE[1]
    assert browser.problems == []
    assert browser.requests == [page]


def test_the_policy_forbids_what_the_page_was_not_written_with(browser: Chromium, page: str):
    browser.open(page)
    browser.run("""(() => {
      const script = document.createElement('script'), image = new Image();
      script.textContent = 'window.evil = 1';
      image.src = 'https://example.invalid/x.png';
      document.body.append(script, image);
    })()""")
    assert browser.run("fetch('https://example.invalid').then(() => 'fetched', () => 'refused')") == "refused"
    assert browser.run("typeof window.evil") == "undefined"
    assert any("Content Security Policy" in problem for problem in browser.problems)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int32", "float16", "float32"])
def test_every_number_arrives_as_it_was(browser: Chromium, page: str, dtype: str):
    """All bit patterns of 16 bits, and random ones of 32, in blocks that do not divide the rows."""
    rng = np.random.default_rng(0)
    size = np.dtype(dtype).itemsize
    bits = np.arange(2**16, dtype=np.uint16) if size == 2 else rng.integers(0, 256, 4 * 70_000).astype(np.uint8)
    array = bits.view(dtype)[: 4 * 16_000 // size * size].reshape(-1, 4)
    described, blocks = packed_arrays({"a": array})
    browser.open(page)
    added = """{ const e = document.createElement('script'); e.type = 'application/octet-stream';
      [e.id, e.textContent] = block; document.body.append(e); }"""
    browser.run(
        f"(() => {{ for (const block of Object.entries({blocks})) {added} window.arrays = new Arrays({described}) }})()"
    )
    plain = "(a) => Array.from(a, (v) => Number.isFinite(v) ? v : String(v))"
    whole = np.array(browser.run(f"arrays.whole('a').then({plain})"), float).reshape(array.shape)
    np.testing.assert_array_equal(whole, array.astype(np.float64))
    for row in (0, 77, len(array) - 1):
        found = np.array(browser.run(f"arrays.row('a', {row}).then({plain})"), float)
        np.testing.assert_array_equal(found, array[row].astype(np.float64))


def test_half_precision_with_a_scale_keeps_every_number_that_is_not_zero():
    rng = np.random.default_rng(0)
    values = (10 ** rng.uniform(-6, 9, (50, 40)) * rng.choice([-1, 0, 1], (50, 40))).astype(np.float32)
    values[3, 3] = np.nan
    half, scale = scaled_half(values)
    back = half.astype(np.float64) * scale[:, None]
    np.testing.assert_array_equal(half != 0, values != 0)
    np.testing.assert_array_equal(np.isnan(back), np.isnan(values))
    large = np.abs(values) > 6.2e-5 * scale[:, None]
    np.testing.assert_allclose(back[large], values[large], rtol=2**-11 + 1e-6)


def test_a_list_of_thousands_draws_only_what_is_seen(browser: Chromium, content: FeaturePage, tmp_path: Path):
    count = 6000
    many = FeaturePage("Many", np.arange(count), content.strings, np.linspace(1, 0, count))
    browser.open(written(many, tmp_path / "many.html"))
    assert browser.run("find('rows').children.length") < 60
    browser.run("find('list').scrollTop = 1e9")
    browser.wait_for("[...find('rows').querySelectorAll('a')].some((a) => a.getAttribute('href') === '#f=5999')")
    assert browser.run("find('rows').children.length") < 60
    assert browser.problems == []


def test_parts_that_do_not_fit_are_refused_by_name(content: FeaturePage):
    shorter = dataclasses.replace(content.tokens[0], tokens=content.tokens[0].tokens[1:])
    with pytest.raises(UserError, match="Promoted"):
        render(dataclasses.replace(content, tokens=[shorter]))
    with pytest.raises(UserError, match="more than once"):
        render(dataclasses.replace(content, features=np.zeros_like(content.features)))
    with pytest.raises(UserError, match="no features"):
        render(dataclasses.replace(content, features=content.features[:0]))
