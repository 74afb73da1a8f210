"""The page of features in a browser: opened, searched, sorted, filtered, clicked, and shown on a phone."""

from __future__ import annotations

import re

import numpy as np
import pytest
from chromium import Chromium
from known_page import PEAK, STRINGS

SHARE = "Number(e.style.getPropertyValue('--a'))"
LISTED = "Array.from(order, (row) => data.features[row])"


@pytest.fixture
def opened(browser: Chromium, page: str):
    """The browser on the page. At the end, nothing was printed, raised or asked from elsewhere."""
    browser.open(page)
    yield browser
    assert browser.problems == []
    assert set(browser.requests) == {page}, "the page fetches nothing"


def arranged(browser: Chromium, **values: object) -> list[int]:
    """The list after a person has set these controls."""
    for name, value in values.items():
        browser.run(f"find({name!r}).value = {value!r}")
    browser.run("arranged()")
    return browser.run(LISTED)


def heading(browser: Chromium) -> str:
    return browser.run("find('main').querySelector('h2').textContent")


def text_of(tokens: np.ndarray) -> str:
    return "".join(STRINGS[i] for i in tokens if i >= 0).replace("·", " ").lower()


def test_the_page_opens_with_the_first_feature_and_all_others_beside_it(opened, content):
    assert opened.run(LISTED) == content.features.tolist()
    assert opened.run("find('status').textContent") == "60 of 60"
    assert heading(opened).startswith("Feature 0")
    assert "was not active" in opened.run("find('main').textContent"), "feature 0 is dead"
    assert opened.run("getComputedStyle(document.querySelector('.tiles li')).borderTopStyle") == "solid", "styled"


@pytest.mark.parametrize(
    "query", ["self", " self", "SELF.", ".x", "return", "turn(", "f sel", "not re", "日", "    d", "zz"]
)
def test_a_text_is_found_in_the_examples_wherever_tokens_end(opened, content, query):
    windows = [text_of(w) for w in content.examples[0].tokens.reshape(-1, 7)]
    found = np.array([query.lower() in window for window in windows]).reshape(-1, 4).any(1)
    assert sorted(arranged(opened, query=query, where="context")) == content.features[found].tolist()


def test_other_places_are_searched_too(opened, content):
    peaks = [content.examples[0].tokens[:, :, PEAK], content.examples[1].tokens[:, :, 2]]
    at_peak = np.any([np.isin(tokens, [1, 6]).any(1) for tokens in peaks], axis=0)
    assert sorted(arranged(opened, query="self", where="peak")) == content.features[at_peak].tolist()
    ranked = np.isin(content.tokens[0].tokens, [1, 6]).any(1)
    assert sorted(arranged(opened, query="self", where="ranked")) == content.features[ranked].tolist()
    assert arranged(opened, query="zebra", where="note") == [12]
    assert arranged(opened, query="ZEBRA", where="all") == [12]
    assert arranged(opened, query="39", where="all") == [39]
    assert arranged(opened, query="40", where="all") == [], "the page has no feature 40"
    best = arranged(opened, query="self", where="peak")
    counts = sum(np.isin(tokens, [1, 6]).sum(1) for tokens in peaks)
    assert np.all(np.diff(counts[np.array(best) // 3]) <= 0), "the best match comes first"


@pytest.mark.parametrize("sort", ["1+", "2-", "2+", "3-", "4-", "4+"])
def test_the_list_is_sorted_and_what_was_not_measured_comes_last(opened, content, sort):
    keys = {1: content.features, 2: content.density, 3: content.figures[0].values, 4: content.figures[1].values}
    values = np.asarray(keys[int(sort[0])], np.float32)
    signed = -values if sort.endswith("-") else values
    expected = np.lexsort([content.features, signed])  # NumPy sorts NaN last
    assert arranged(opened, sort=sort) == content.features[expected].tolist()


def test_the_list_is_filtered_by_density(opened, content):
    dead, dense = content.density == 0, content.density > 0.1
    for alive, kept in (("dead", dead), ("alive", ~dead), ("dense", dense), ("all", dead | ~dead)):
        assert arranged(opened, alive=alive) == content.features[kept].tolist()
    between = (content.density >= 0.001) & (content.density <= 0.05)
    assert 0 < between.sum() < 60
    assert arranged(opened, least="0.1", most="5") == content.features[between].tolist()


def test_a_person_types_and_clicks(opened, content):
    opened.click("find('query')")
    opened.type("zebra")
    opened.wait_for("find('rows').children.length === 1")
    opened.click("find('rows').querySelector('a')")
    opened.wait_for("location.hash === '#f=12' && find('main').textContent.includes('Zebras')")
    link = "find('main').querySelector('.bars a')"
    target = opened.run(f"{link}.textContent")
    opened.click(link)
    opened.wait_for(f"find('main').querySelector('h2').textContent.startsWith({target!r})")
    opened.run("history.back()")
    opened.wait_for("find('main').textContent.includes('Zebras')")


def test_arrow_keys_move_in_the_list(opened):
    order = arranged(opened, sort="2-")
    opened.run(f"location.hash = 'f={order[4]}'")
    opened.wait_for(f"find('main').querySelector('h2').textContent.startsWith('Feature {order[4]}')")
    for key, at in (("ArrowDown", 5), ("ArrowDown", 6), ("ArrowUp", 5)):
        opened.press(key)
        opened.wait_for(f"find('main').querySelector('h2').textContent.startsWith('Feature {order[at]}')")
    assert opened.run("find('rows').querySelector('[aria-current]').getAttribute('href')") == f"#f={order[5]}"
    opened.press("/")
    assert opened.run("document.activeElement.id") == "query"


@pytest.mark.parametrize("row", [1, 5, 59])
def test_the_numbers_of_a_feature_are_those_of_the_data(opened, content, row):
    opened.run(f"location.hash = 'f={content.features[row]}'")
    opened.wait_for(f"find('main').querySelector('h2').textContent.startsWith('Feature {content.features[row]}')")
    shown = opened.run("[...find('main').querySelectorAll('[data-says]')].map((e) => [e.textContent, e.dataset.says])")
    found = [
        (text, *(float(n.replace("−", "-")) for n in re.findall(r"(?:activation|effect) ([−\d.e]+)", says)))
        for text, says in shown
    ]
    group = content.examples[0]
    there = [(e, w) for e in range(4) for w in range(7) if group.tokens[row, e, w] >= 0]
    assert len(found) == 2 * len(there), "both groups, without the positions that have no token"
    for (text, score, *effect), (e, w) in zip(found, there):
        assert text == STRINGS[group.tokens[row, e, w]]
        assert score == pytest.approx(group.scores[row, e, w], rel=6e-3), "three digits"
        assert len(effect) == (e == 0), "what was not measured is a dash"
        assert not effect or effect[0] == pytest.approx(group.effects["effect"][row, e, w], rel=6e-3)
    colours = opened.run(
        f"[...find('main').querySelectorAll('.t')].map((e) => [{SHARE}, e.classList.contains('minus')])"
    )
    largest = np.abs(group.scores[row]).max()
    for (share, minus), (e, w) in zip(colours, there):
        assert share == pytest.approx(abs(group.scores[row, e, w]) / largest, abs=2e-3)
        assert minus == (group.scores[row, e, w] < 0)


def test_tokens_are_coloured_by_another_number_on_request(opened, content):
    opened.run("location.hash = 'f=3'")
    opened.wait_for("find('main').querySelector('h2').textContent.startsWith('Feature 3')")
    opened.click("find('main').querySelectorAll('.choice button')[1]")
    opened.wait_for("find('main').querySelector('.choice [aria-pressed=true]').textContent === 'effect'")
    first = "[...find('main').querySelectorAll('.contexts li:first-child .t')].slice(0, 6)"
    signs = opened.run(f"{first}.map((e) => e.classList.contains('minus'))")
    assert signs == (content.examples[0].effects["effect"][1, 0, 1:] < 0).tolist()


def test_the_prompt_view_names_the_features_of_a_token(opened, content):
    prompt = content.prompts[0]
    opened.run("location.hash = 'p=0&t=0'")
    opened.wait_for("document.querySelector('.prompt') !== null")
    rows = "[...find('main').querySelectorAll('.grid .panel:first-child li')]"
    names = f"{rows}.map((e) => e.querySelector('bdi').textContent)"
    for place in (3, 1, 0):
        opened.click(f"document.querySelectorAll('.prompt button')[{place}]")
        opened.wait_for(f"location.hash === '#p=0&t={place}' && {names}.length === {len(prompt.features[place])}")
        strongest = prompt.features[place][np.argsort(-prompt.scores[place])]
        assert opened.run(names) == [f"Feature {i}" for i in strongest]
    opened.press("ArrowRight")
    opened.wait_for("location.hash === '#p=0&t=1'")
    opened.press("ArrowRight")
    opened.wait_for("find('main').textContent.includes('No feature is active here')")
    opened.run("location.hash = 'p=0&t=3'")
    opened.wait_for(f"{names}.length === 8")
    linked = next(i for i in prompt.features[3][np.argsort(-prompt.scores[3])] if i in content.features)
    opened.click("find('main').querySelector('.grid a')")
    opened.wait_for(f"find('main').querySelector('h2').textContent.startsWith('Feature {linked}')")


def test_a_chosen_feature_colours_the_prompt(opened, content):
    prompt = content.prompts[1]
    feature = int(prompt.features[0][2])
    opened.run(f"location.hash = 'p=1&t=0&f={feature}'")
    opened.wait_for("document.querySelectorAll('.prompt button').length === 2")
    shares = opened.run(
        "[...document.querySelectorAll('.prompt button')].map((e) => Number(e.style.getPropertyValue('--a')))"
    )
    other = prompt.scores[1][prompt.features[1] == feature]
    values = np.array([prompt.scores[0][2], other[0] if other.size else 0.0])
    np.testing.assert_allclose(shares, np.abs(values) / np.abs(values).max(), atol=1e-3)


def test_an_address_that_names_nothing_is_answered_in_words(opened):
    for address, says in (
        ("f=40", "is not on this page"),
        ("p=99", "Feature 0"),
        ("f=<img src=x onerror=alert(1)>", "Feature 0"),
    ):
        opened.run(f"location.hash = {address!r}")
        opened.wait_for(f"find('main').textContent.includes({says!r})")


def test_on_a_phone_one_thing_is_shown_at_a_time(opened):
    visible = "[...document.querySelectorAll('aside, main')].filter((e) => e.offsetWidth).map((e) => e.localName)"
    try:
        opened.resize(390, 800)
        opened.run("location.hash = 'f=9'")
        opened.wait_for("find('main').textContent.includes('says hello')")
        opened.wait_for(f"{visible}.join() === 'main'")
        assert opened.run("document.documentElement.scrollWidth") <= 390, "nothing sticks out"
        opened.click("find('main').querySelector('.back')")
        opened.wait_for(f"{visible}.join() === 'aside'")
        opened.click("find('rows').querySelectorAll('a')[2]")
        opened.wait_for("location.hash === '#f=6'")
        opened.wait_for(f"{visible}.join() === 'main'")
    finally:
        opened.resize(1300, 1000)


def test_every_control_has_a_name(opened):
    every = "[...document.querySelectorAll('input, select, button, a')]"
    named = "e.getAttribute('aria-label') || e.labels?.length || (e.localName !== 'select' && e.textContent.trim())"
    nameless = f"{every}.filter((e) => !({named})).map((e) => e.outerHTML)"
    for address in ("f=9", "p=0&t=3"):
        opened.run(f"location.hash = {address!r}; route()")
        assert opened.run(nameless) == []
