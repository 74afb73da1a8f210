"""Processes of one run, started and ended by tests: `with Started(program, 2, directory) as run: ...`"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

SECONDS = 300.0  # no test waits longer; the machine of a CI may be slow


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Started:
    """The processes of a run. Each one's stdout and stderr go into files, because a full pipe would stop a process.

    Args:
      command: the arguments of Python; `{process}` in a word is the number of the process.
      processes: how many.
      devices: simulated devices of each.
      folder: where the outputs go.
      environment: variables that differ from those of this process.
    """

    def __init__(
        self, command: Sequence[str], processes: int, folder: Path, *, devices: int = 1,
        environment: dict[str, str] | None = None,
    ):  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.began = folder, time.monotonic()
        flags = f"--xla_force_host_platform_device_count={devices}"
        variables = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"} | (environment or {})
        self.processes = [self._start(command, index, variables) for index in range(processes)]

    def _start(self, command: Sequence[str], index: int, variables: dict[str, str]) -> subprocess.Popen[bytes]:
        words = [word.replace("{process}", str(index)) for word in command]
        with open(self.folder / f"{index}.out", "w") as out, open(self.folder / f"{index}.err", "w") as err:
            return subprocess.Popen([sys.executable, *words], stdout=out, stderr=err, env=variables)

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    def errors(self, index: int) -> str:
        """What a process has printed to stderr."""
        return (self.folder / f"{index}.err").read_text()

    def output(self, index: int) -> str:
        """What a process has printed to stdout."""
        return (self.folder / f"{index}.out").read_text()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds. All processes have to run until then."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            ended = [i for i, process in enumerate(self.processes) if process.poll() is not None]
            if ended:
                time.sleep(5)  # what the others say
            assert not ended, f"process {ended} ended too early:\n{self.all_errors()}"
            assert time.monotonic() < deadline, f"nothing happened:\n{self.all_errors()}"
            time.sleep(0.02)

    def signal(self, index: int, number: int) -> None:
        """Send a signal to one process, and count the seconds from here."""
        self.began = time.monotonic()
        self.processes[index].send_signal(number)

    def end(self, seconds: float = SECONDS, skip: Sequence[int] = ()) -> list[int | None]:
        """Wait for the ends of all processes except `skip`. Returns their exit codes."""
        for index, process in enumerate(self.processes):
            if index not in skip:
                left = seconds - (time.monotonic() - self.began)
                try:
                    process.wait(max(left, 0.1))
                except subprocess.TimeoutExpired:
                    raise AssertionError(f"process {index} has not ended:\n{self.all_errors()}") from None
        return [process.poll() for process in self.processes]

    def all_errors(self) -> str:
        return "\n".join(f"== process {i}\n{self.errors(i)}" for i in range(len(self.processes)))
