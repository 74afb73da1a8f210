"""JSON files: strict, verified, and never a traceback."""

from __future__ import annotations

import ast
import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_interp.core import array_files, json_files
from jax_interp.core.json_files import MAX_BYTES, JsonError, parse_json, read_json, write_json

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(-1e300, 1e300) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)  # fmt: skip


def test_all_json_of_the_package_goes_through_the_strict_reader():
    package, readers = Path(json_files.__file__).parents[1], {Path(json_files.__file__), Path(array_files.__file__)}
    others = [
        f"{path.relative_to(package)}:{node.lineno}"
        for path in sorted(package.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if path not in readers
        and isinstance(node, ast.Attribute)
        and ast.unparse(node) in ("json.load", "json.loads", "np.load")
    ]
    assert others == [], "read_json or parse_json reads JSON, array_files an array"


@given(st.dictionaries(TEXT.filter(lambda name: name != "digest"), VALUES))
def test_what_is_written_is_read(tmp_path_factory, values):
    path = write_json(tmp_path_factory.mktemp("json") / "a.json", values)
    assert json.dumps(read_json(path)) == json.dumps(values)
    again = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(again.items()))))  # the order and the layout are no content
    assert read_json(path) == values


def test_a_changed_file_is_refused_and_one_without_a_digest_is_read(tmp_path):
    path = write_json(tmp_path / "a.json", {"k": 4, "more": [1.5]})
    path.write_text(path.read_text().replace('"k": 4', '"k": 5'))
    with pytest.raises(JsonError, match=r'a\.json was changed .* remove the entry "digest"'):
        read_json(path)
    path.write_text(write_json(path, {"k": 4}).read_text().replace('"digest"', '"dicest"'))
    with pytest.raises(JsonError, match="was changed"):
        read_json(path)
    path.write_text('{"k": 5}')
    assert read_json(path) == {"k": 5}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe{}", "is not JSON: 'utf-8' codec"),
        (b"\xef\xbb\xbf{}", "is not JSON: Unexpected UTF-8 BOM"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' stands twice"),
        (b'{"a": NaN}', "the number nan is not finite"),
        (b'{"a": -Infinity}', "the number -inf is not finite"),
        (b'{"a": 1e999}', "the number inf is not finite"),
        (b'{"a": %d}' % (1 << 64), "more than 64 bits"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is not JSON"),
        (b'{"a": "\\ud800"}', "is not JSON: .*surrogates"),
        (b"[" * 101 + b"]" * 101, "nested more than 100 deep"),
        (b"[" * 100_000, "nested more than 100 deep"),
        (b'{"a":' * 100_000, "nested more than 100 deep"),
        (b" " * (MAX_BYTES + 1), "has 67,108,865 bytes"),
    ],
    ids=range(14),
)
def test_what_is_not_strict_json_is_refused(text, says):
    with pytest.raises(JsonError, match=f"^a file.*{says}"):
        parse_json(text, "a file")


def test_measurements_may_be_infinite():
    assert math.isinf(parse_json('{"a": Infinity}', "a", nonfinite=True)["a"])


def test_what_is_no_file_of_json_is_refused(tmp_path):
    with pytest.raises(JsonError, match=r"there is no a\.json in .* \(which has nothing\)"):
        read_json(tmp_path / "a.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(JsonError, match="should hold a JSON object, it holds a list"):
        read_json(tmp_path / "list.json")
    with pytest.raises(JsonError, match=r"there is no a\.json in .*list\.json"):
        read_json(tmp_path / "list.json" / "a.json")
    with pytest.raises(JsonError, match="is a directory, not a file"):
        read_json(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for device in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(JsonError, match="is a device, not a file"):
            read_json(device)
    for name in ("a" * 300, "a\0b"):
        with pytest.raises(JsonError, match="cannot read"):
            read_json(tmp_path / name)
    with open(tmp_path / "large", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(JsonError, match="has 67,108,865 bytes"):
        read_json(tmp_path / "large")
