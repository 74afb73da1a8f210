"""A store that several processes write is the store of one process, also if they were killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("store_process.py")


def start(directory, processes, *, mesh="none", devices=1, others=(), **environment):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = (
        os.environ
        | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        | environment
    )
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), f"127.0.0.1:{port}", str(processes), str(i), str(directory), mesh, *others],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(processes)
    ]


def end(processes):
    outcomes = [(p.communicate(timeout=300)[0], p.returncode) for p in processes]
    return [code for _, code in outcomes], [text for text, _ in outcomes]


def content(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def of_one(tmp_path_factory):
    directory = tmp_path_factory.mktemp("one") / "store"
    codes, text = end(start(directory, 1))
    assert codes == [0], text
    assert len(content(directory)) == 9
    return content(directory)


@pytest.mark.parametrize("processes", [2, 3])
def test_the_files_are_those_of_one_process(processes, of_one, tmp_path):
    codes, text = end(start(tmp_path / "store", processes))
    assert codes == [0] * processes, text
    assert content(tmp_path / "store") == of_one


def test_each_process_reads_its_rows_only(of_one, tmp_path):
    codes, text = end(start(tmp_path / "store", 2, devices=2))
    assert codes == [0, 0], text
    assert all("its rows only" in one for one in text)


def test_a_write_that_was_killed_goes_on_with_another_number_of_processes(of_one, tmp_path):
    directory = tmp_path / "store"
    processes = start(directory, 2, SECONDS_PER_BATCH="0.2")
    deadline = time.monotonic() + 200
    while len(list(directory.glob("shard-*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    end(processes)
    finished = {path.with_suffix(".npy").name for path in directory.glob("shard-*.json")}
    assert 3 <= len(finished) < 8
    before = {name: (directory / name).stat().st_mtime_ns for name in finished}
    codes, text = end(start(directory, 3))
    assert codes == [0, 0, 0], text
    assert content(directory) == of_one
    assert before == {name: (directory / name).stat().st_mtime_ns for name in finished}, "not written again"


def test_a_mesh_over_processes_writes_what_one_process_writes_on_this_mesh(tmp_path):
    """The mesh has four devices in both cases."""
    for name, processes in (("one", 1), ("two", 2)):
        codes, text = end(start(tmp_path / name, processes, mesh="data=4", devices=4 // processes))
        assert codes == [0] * processes, text
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_hosts_without_a_shared_disk_are_refused(tmp_path):
    codes, text = end(start(tmp_path / "a", 2, others=(str(tmp_path / "b"),)))
    assert codes == [1, 1], text
    assert all("process 1 cannot see the files that process 0 writes into" in one for one in text)
    assert all("needs a disk that all hosts share" in one for one in text)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
