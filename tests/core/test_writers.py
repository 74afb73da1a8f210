"""Writers: whole files whoever else writes, one owner of a lock, nothing left where writing fails."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading

import pytest

from jax_interp.core.atomic_write import WriteError, atomic_write, replacing, sync_tree
from jax_interp.core.errors import UserError
from jax_interp.core.locks import LockError, locked

HOLD = """
import sys, time
from jax_interp.core.locks import locked
with locked(sys.argv[1], "the thing"):
    print("held", flush=True)
    time.sleep(600)
"""
WRITE = """
import os, sys, time
from jax_interp.core.atomic_write import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


def process(code, *arguments):
    """A process that runs `code` and has printed its first line."""
    child = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline()
    return child


def test_many_writers_of_one_file(tmp_path):
    path = atomic_write(tmp_path / "a.json", "a" * 200_000)
    whole, errors, stop = {c * n for c, n in zip("abcd", (200_000, 100_000, 50_000, 1))}, [], threading.Event()

    def write(content):
        while not stop.is_set():
            try:
                atomic_write(path, content)
            except UserError as error:
                errors.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in whole]
    for thread in threads:
        thread.start()
    read = [path.read_text() in whole for _ in range(300)]
    stop.set()
    for thread in threads:
        thread.join()
    assert all(read)
    assert not errors
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_the_file_of_a_writer_is_left_alone_until_it_is_killed(tmp_path):
    child = process(WRITE, tmp_path / "a")
    try:
        atomic_write(tmp_path / "a", "whole")
        assert len(list(tmp_path.iterdir())) == 2, "the other process still writes its file"
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    atomic_write(tmp_path / "a", "again")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "again")]


def test_a_lock_names_its_holder_and_is_free_after_a_crash(tmp_path):
    path = tmp_path / "new" / ".lock"
    child = process(HOLD, path)
    try:
        with (
            pytest.raises(LockError, match=f"process {child.pid} works on the thing: wait for it"),
            locked(path, "the thing"),
        ):
            pass
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    with locked(path, "the thing"), pytest.raises(LockError, match=f"process {os.getpid()} works"), locked(path, "it"):
        pass
    assert not path.exists()
    with locked(path, "the thing", keep=True):
        pass
    assert path.exists()


def test_waiting_for_a_lock(tmp_path):
    order = []

    def second():
        with locked(tmp_path / ".lock", "it", wait=True):
            order.append("second")

    with locked(tmp_path / ".lock", "it"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert not list(tmp_path.iterdir())


def test_a_place_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a", tmp_path / "none" / "a", "/proc/a", tmp_path / ("a" * 300)):
        with pytest.raises(WriteError, match=r"cannot write '.*; give another place"):
            atomic_write(path, "text")
    with (
        pytest.raises(LockError, match=r"cannot work on it: no lock at .*: Not a directory"),
        locked(tmp_path / "file" / "a" / "l", "it"),
    ):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError, match="Is a directory"):
        atomic_write(tmp_path / "folder", "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(
    ("limit", "says"), [("RLIMIT_FSIZE", "File too large; .*ulimit -f"), ("RLIMIT_NOFILE", "ulimit -n")]
)
def test_a_limit_of_the_process(tmp_path, limit, says):
    path = atomic_write(tmp_path / "a", "before")
    which = getattr(resource, limit)
    before = resource.getrlimit(which)
    resource.setrlimit(which, (10_000 if limit == "RLIMIT_FSIZE" else 0, before[1]))
    try:
        with pytest.raises(WriteError, match=says):
            atomic_write(path, "a" * 20_000)
    finally:
        resource.setrlimit(which, before)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_raises_replaces_nothing(tmp_path):
    path = atomic_write(tmp_path / "a.txt", "before")

    def write():
        with replacing(path) as temporary:
            temporary.write_text("after")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_everything_is_on_the_disk_before_a_rename(tmp_path, monkeypatch):
    synced, renamed = [], []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: (synced.append(os.readlink(f"/proc/self/fd/{handle}")), fsync(handle))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (renamed.append(list(synced)), replace(a, b)))
    atomic_write(tmp_path / "a", "text")
    assert [os.path.basename(path)[:3] for path in renamed[0]] == [".a."]
    assert synced[-1] == str(tmp_path)
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "b" / "c" / "d").write_text("")
    synced.clear()
    sync_tree(tmp_path / "b")
    assert synced == [str(tmp_path / "b/c/d"), str(tmp_path / "b/c"), str(tmp_path / "b")]
