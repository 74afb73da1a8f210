"""Run directories: one config, one process; files that are whole or absent; a log that can be cut back."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from jax_interp.core.config_json import load
from jax_interp.core.errors import UserError
from jax_interp.training import open_run
from jax_interp.training.metrics import MetricsLog, flatten_metrics, read_log, truncate_log


@dataclasses.dataclass(frozen=True)
class Adam:
    learning_rate: float = 1e-3


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 8
    optimizer: Adam = Adam()
    steps: int = 100


def test_the_config_is_kept_and_another_one_refused(tmp_path):
    with open_run(tmp_path / "run", Config()) as run:
        assert load(Config, run.directory) == Config()
        assert json.loads((run.directory / "versions.json").read_text())["jax"]
    with open_run(tmp_path / "run", Config()):
        pass
    with (
        pytest.raises(UserError, match=r"another config: width: 8 -> 9; optimizer\.learning_rate: 0\.001 -> 0\.01\."),
        open_run(tmp_path / "run", Config(width=9, optimizer=Adam(1e-2))),
    ):
        pass
    assert load(Config, tmp_path / "run") == Config()
    with open_run(tmp_path / "run", Config(steps=200), may_differ=["steps"]):
        assert load(Config, tmp_path / "run").steps == 200


def test_what_is_refused_within_the_block_changes_no_config(tmp_path):
    """A call that is refused before it has trained binds nobody, in a new directory as in an old one."""

    def refused(config: Config) -> None:
        with (
            pytest.raises(UserError, match="too few"),
            open_run(tmp_path / "run", config, may_differ=["steps"]),
        ):
            raise UserError("too few")

    refused(Config(steps=10))
    assert not (tmp_path / "run" / "config.json").exists()
    with open_run(tmp_path / "run", Config(width=9)):
        pass
    with open_run(tmp_path / "run", Config(width=9, steps=200), may_differ=["steps"]):
        pass
    refused(Config(width=9, steps=10))
    assert load(Config, tmp_path / "run").steps == 200


def test_a_run_that_fails_after_it_has_begun_keeps_its_config(tmp_path):
    def failing() -> None:
        with open_run(tmp_path / "run", Config()) as run:
            run.metrics.write_text('{"step": 1}\n')
            raise UserError("not finite")

    with pytest.raises(UserError, match="not finite"):
        failing()
    assert load(Config, tmp_path / "run") == Config()


def test_a_directory_of_something_else_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "report.html").write_text("of something else")
    with pytest.raises(UserError, match=r"holds report\.html and no run"), open_run(tmp_path, Config()):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_one_process_at_a_time(tmp_path):
    with (
        open_run(tmp_path),
        pytest.raises(UserError, match=r"process \d+ works on the run"),
        open_run(tmp_path),
    ):
        pass
    with open_run(tmp_path):
        pass


def test_the_lock_dies_with_its_process(tmp_path):
    code = (
        "import os, sys\nfrom jax_interp.core.locks import locked\n"
        "lock = locked(sys.argv[1] + '/.lock', 'it')\nlock.__enter__()\nprint('held', flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {holder.pid} works"), open_run(tmp_path):
            pass
        holder.kill()
        holder.wait()
    with open_run(tmp_path):
        pass


def test_a_directory_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), open_run(tmp_path / "file"):
        pass


@pytest.mark.parametrize("cut", range(0, 40, 3))
def test_a_log_cut_anywhere_reads_and_goes_on(tmp_path, cut):
    file = tmp_path / "metrics.jsonl"
    records = [{"step": k, "loss": 1 / k} for k in range(1, 4)]
    log = MetricsLog(file)
    for record in records:
        log.write(record)
    log.close()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) - cut])
    assert read_log(file) == records[: whole[: len(whole) - cut].count(b"\n")]
    truncate_log(file, 1)
    log = MetricsLog(file)
    for record in records[1:]:
        log.write(record)
    log.close()
    assert file.read_bytes() == whole


@pytest.mark.parametrize("line", [b'{"step": 2, "los', b"\xff\xfe", b"[2]", b'{"loss": 1.0}', b'{"step": "two"}'])
@pytest.mark.parametrize("reader", [read_log, lambda path: truncate_log(path, 1)], ids=["read", "truncate"])
def test_a_bad_line_in_a_log_is_named(tmp_path, line, reader):
    content = b'{"step": 1}\n\n' + line + b'\n{"step": 3}\n'
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 3, is n"):
        reader(tmp_path / "metrics.jsonl")
    assert (tmp_path / "metrics.jsonl").read_bytes() == content


@pytest.mark.parametrize("content", [b"\xff\xfe{", b"", b"{"])
def test_a_config_that_is_no_text_or_no_json(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        load(Config, tmp_path)


def test_metrics_are_flat_numbers():
    assert flatten_metrics({"a": {"b": 1.0, "c": {"d": True}}, "e": None}) == {"a.b": 1.0, "a.c.d": True, "e": None}
