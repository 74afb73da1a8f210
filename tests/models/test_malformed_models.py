"""Generated malformed model folders and files: loading gives a model or one `UserError`, and soon."""

from __future__ import annotations

import json
import random
import shutil
import signal
import struct
import traceback

import numpy as np
import pytest
from generated import drawn
from safetensors.numpy import load_file, save_file
from small_models import GPT2_LIKE, LLAMA_LIKE, peaky

from jax_interp.core.errors import UserError
from jax_interp.data.tokenizer import load_tokenizer, train_bpe
from jax_interp.models import load, load_shapes, save
from jax_interp.models.hf.digests import DIGESTS
from jax_interp.models.llama2c import load_llama2c

SECONDS = 20
ODD = (None, True, -1, 0, 1, 2, 7, 2**31, 2**63, 10**9, 1.5, float("nan"), float("-inf"), "", "x", "\0", "é" * 300,
       "../x", [], [[]], [1, "a", None], {}, {"a": {"b": []}}, "float16", "silu", [["global"], 2])  # fmt: skip


class Hang(BaseException):
    """A call that takes too long."""


def outcome(call, *args) -> str | None:
    """None if the call returns or raises a short `UserError` in time; otherwise what it did."""

    def hang(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        call(*args)
    except UserError as error:
        return None if len(str(error)) < 3000 else f"a message of {len(str(error))} characters, {str(error)[:200]!r}"
    except Hang:
        return f"no answer after {SECONDS} s"
    except BaseException as error:
        return f"{type(error).__name__}: {error} at {traceback.extract_tb(error.__traceback__)[-1]}"[:400]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return None


def changed_json(value, rng: random.Random):
    """A copy of a JSON value with one entry changed, added, removed or repeated, at any depth."""
    value = json.loads(json.dumps(value))
    at = value
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return rng.choice(ODD)
        key = rng.choice(keys)
        if isinstance(at[key], (dict, list)) and at[key] and rng.random() < 0.7:
            at = at[key]
            continue
        how = rng.choice(("value", "value", "value", "remove", "other"))
        if how == "value":
            at[key] = rng.choice(ODD)
        elif how == "remove":
            del at[key]
        elif isinstance(at, dict):
            at[rng.choice((*keys, "a", "torch", ""))] = at.get(rng.choice(keys))
        else:
            at.insert(rng.choice(keys), rng.choice(ODD))
        return value


def changed_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes that are cut, flipped, doubled or overwritten."""
    how = rng.choice(("cut", "flip", "flip", "insert", "number", "empty"))
    at = rng.randrange(max(1, min(len(data), 4000)))
    if how == "cut":
        return data[: rng.randrange(len(data))]
    if how == "flip":
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if how == "insert":
        return data[:at] + rng.choice((b"[" * 5000, b"9" * 5000, b"\xff\xfe", b"{", b'"')) + data[at:]
    if how == "number":
        at -= at % 4
        return data[:at] + struct.pack("<i", rng.choice((-1, 0, 1, 2**24, 2**31 - 1))) + data[at + 4 :]
    return b""


def _broken_file(file, rng: random.Random) -> None:
    """Break one file: its bytes, its JSON, or its being a file."""
    how = rng.random()
    if how < 0.1:
        file.unlink()
        if how < 0.05:
            file.mkdir()
    elif file.suffix == ".json" and how < 0.75:
        file.write_text(json.dumps(changed_json(json.loads(file.read_text()), rng)))
    else:
        file.write_bytes(changed_bytes(file.read_bytes(), rng))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One file and several files; the tokenizers have a normalizer and added tokens."""
    place = tmp_path_factory.mktemp("models")
    texts = ["def mean(self, values):\n    return sum(values) / len(values)\n"] * 3
    for name, config, size in (("one", LLAMA_LIKE, 10**9), ("several", GPT2_LIKE, 20_000)):
        save(peaky(config), place / name, tokenizer=train_bpe(texts, 300), max_file_bytes=size)
        (place / name / DIGESTS).unlink()  # as of another program
        for file in (place / name).glob("*.safetensors"):
            save_file(load_file(file), file, metadata={"format": "pt"})
    return place


@pytest.mark.hardening
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_malformed_model_folders(models, tmp_path, tally):
    seed, faults = random.randrange(10**6), []
    tried = drawn(120, 1500)
    for case in range(tried):
        rng = random.Random(f"{seed} {case}")
        folder = tmp_path / str(case)
        shutil.copytree(models / rng.choice(("one", "several")), folder)
        file = rng.choice(sorted(folder.iterdir()))
        _broken_file(file, rng)
        for read in (load_shapes, load):
            if fault := outcome(read, folder):
                faults.append(f"seed '{seed} {case}', {file.name}, {read.__name__}: {fault}")
        shutil.rmtree(folder)
    tally("malformed model folders", tried=tried, broken=len(faults))
    assert not faults, faults


def _used(file) -> None:
    tokenizer = load_tokenizer(file)
    ids = tokenizer.encode("def mean(self): é\n", bos=False)
    tokenizer.strings(ids), tokenizer.decode(ids)


@pytest.mark.hardening
def test_malformed_tokenizers(models, tmp_path, tally):
    seed, faults = random.randrange(10**6), []
    whole = json.loads((models / "one" / "tokenizer.json").read_text())
    whole["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    vocabulary = whole["model"].pop("vocab")
    small = dict(list(vocabulary.items())[:8])  # so that most changes are not in the vocabulary
    tried = drawn(150, 3000)
    for case in range(tried):
        rng = random.Random(f"{seed} {case}")
        value = changed_json(whole | {"model": whole["model"] | {"vocab": rng.choice((small, vocabulary))}}, rng)
        (tmp_path / "tokenizer.json").write_text(json.dumps(value))
        if fault := outcome(_used, tmp_path / "tokenizer.json"):
            faults.append(f"seed '{seed} {case}': {fault}")
    tally("malformed tokenizers", tried=tried, broken=len(faults))
    assert not faults, faults


def _llama2c_file() -> tuple[bytes, bytes]:
    """A small model and tokenizer in llama2.c's layout, of zeros."""
    d, mlp, layers, heads, kv, vocab, context = 8, 12, 2, 2, 1, 20, 16
    per_layer = 2 * d + 2 * d * d + 2 * d * (d // heads) * kv + 3 * d * mlp
    count = vocab * d + layers * per_layer + d + context * (d // heads)
    weights = struct.pack("<7i", d, mlp, layers, heads, kv, vocab, context) + np.zeros(count, "<f4").tobytes()
    pieces = [f"<0x{i:02X}>".encode() for i in range(vocab)]
    return weights, struct.pack("<i", 6) + b"".join(struct.pack("<fi", 0.0, len(p)) + p for p in pieces)


def _story(weights, tokenizer) -> None:
    _, pieces = load_llama2c(weights, tokenizer)
    pieces.decode([1, 5, 3])


@pytest.mark.hardening
def test_malformed_llama2c_files(tmp_path, tally):
    seed, faults, (weights, pieces) = random.randrange(10**6), [], _llama2c_file()
    (tmp_path / "w.bin").write_bytes(weights)
    (tmp_path / "t.bin").write_bytes(pieces)
    _story(tmp_path / "w.bin", tmp_path / "t.bin")
    tried = drawn(150, 2000)
    for case in range(tried):
        rng = random.Random(f"{seed} {case}")
        (tmp_path / "w.bin").write_bytes(changed_bytes(weights, rng) if case % 2 else weights)
        (tmp_path / "t.bin").write_bytes(pieces if case % 2 else changed_bytes(pieces, rng))
        if fault := outcome(_story, tmp_path / "w.bin", tmp_path / "t.bin"):
            faults.append(f"seed '{seed} {case}': {fault}")
    tally("malformed llama2.c files", tried=tried, broken=len(faults))
    assert not faults, faults


def test_a_place_that_cannot_be_read(models, tmp_path):
    with pytest.raises(UserError, match="directory"):
        load_llama2c(tmp_path)
    shutil.copytree(models / "one", tmp_path / "m")
    (tmp_path / "m" / "config.json").unlink()
    (tmp_path / "m" / "config.json").mkdir()
    with pytest.raises(UserError, match="is a directory, not a file"):
        load(tmp_path / "m")
