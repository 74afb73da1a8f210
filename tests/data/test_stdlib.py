"""The corpus: the same twice, split by the list, nothing of what is excluded, clear errors."""

from __future__ import annotations

import pytest

from jax_interp.core.errors import UserError
from jax_interp.data.stdlib import VALIDATION_MODULES, stdlib_corpus


@pytest.fixture(scope="module")
def corpus():
    return stdlib_corpus()


def test_the_running_interpreters_library(corpus):
    train, validation = [d.path for d in corpus.train], [d.path for d in corpus.validation]
    assert tuple(validation) == VALIDATION_MODULES  # both sorted
    assert train == sorted(train)
    assert not set(train) & set(validation)
    assert "ast.py" in train
    for path in train + validation:
        parts = path.split("/")
        assert not {"test", "tests", "idle_test", "site-packages", "encodings", "pydoc_data"} & set(parts)
        assert not parts[-1].startswith("_sysconfigdata")
    about = corpus.describe()
    assert about["train_bytes"] > 4e6
    assert 0.05 < about["validation_bytes"] / (about["train_bytes"] + about["validation_bytes"]) < 0.2
    assert all("\r" not in d.text for d in corpus.train)


def test_it_is_the_same_twice(corpus):
    assert stdlib_corpus() == corpus


def library(root, files):
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def test_exclusions_encodings_and_fingerprint(tmp_path):
    files = {
        "b.py": b"x = 1\r\n",
        "a.py": "# -*- coding: latin-1 -*-\ns = 'é'\n".encode("latin-1"),
        "bad.py": b"# -*- coding: utf-8 -*-\n\xff\xfe\n",
        "test/t.py": b"pass\n",
        "pkg/tests/t.py": b"pass\n",
        "site-packages/x.py": b"pass\n",
        "encodings/cp1.py": b"pass\n",
        "_sysconfigdata__linux.py": b"pass\n",
        "config-3/helper.py": b"pass\n",
        "html/entities.py": b"pass\n",
        "html/parser.py": b"y = 2\n",
        "notes.txt": b"no\n",
    }
    corpus = stdlib_corpus(library(tmp_path / "one", files), validation=("html/parser.py",))
    assert [(d.path, d.text) for d in corpus.train] == [
        ("a.py", "# -*- coding: latin-1 -*-\ns = 'é'\n"),
        ("b.py", "x = 1\n"),
    ]
    assert [d.path for d in corpus.validation] == ["html/parser.py"]
    assert corpus.skipped == ("bad.py",)
    elsewhere = library(tmp_path / "two", {k: v for k, v in files.items() if not k.startswith("test/")})
    assert stdlib_corpus(elsewhere, validation=("html/parser.py",)).fingerprint == corpus.fingerprint
    changed = library(tmp_path / "three", files | {"b.py": b"x = 2\n"})
    assert stdlib_corpus(changed, validation=("html/parser.py",)).fingerprint != corpus.fingerprint


def test_errors_name_what_is_missing(tmp_path):
    with pytest.raises(UserError, match="no Python source under"):
        stdlib_corpus(tmp_path)
    library(tmp_path, {"a.py": b"pass\n"})
    with pytest.raises(UserError, match=r"\['heapq.py'\] are not under"):
        stdlib_corpus(tmp_path, validation=("heapq.py",))
