"""Compare the speed of several programs in one run. Each library has its own process and its own environment.

The speed of a machine changes by a factor of two over hours, so only times from the same minutes can be compared. The
parent process starts one worker for each library. It then works in rounds: a round has one timed repeat of every piece
of work. A ratio is computed within each round, and the median over rounds is reported.

A benchmark is a script that declares `WORKERS` and calls `main`. At module level, the script and this file import only
the standard library, because the same script runs in the environments of other libraries. If a worker cannot start, it
is reported as absent or failed.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SETTLE_S = 0.3  # a pause between turns, because threads of torch and XLA spin for a while after their work
QUIET = 0.10  # a repeat is quiet if other processes used less than this share of the machine meanwhile


@dataclasses.dataclass(frozen=True)
class Work:
    """One thing to time. `step()` does it once and returns when it is done."""

    name: str
    step: Callable[[], Any]
    flops: float | None = None  # of one step, computed from the sizes, so they are the same for every library
    seconds: Callable[[], float] | None = None  # returns the seconds of one step, if it cannot be timed from outside
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Worker:
    """One process. `home` is the environment that it runs in (a folder in --peers); "" is that of this package."""

    build: Callable[[dict[str, Any]], Sequence[Work]]
    home: str = ""
    packages: tuple[str, ...] = ("jax", "jaxlib", "flax", "numpy")


# ---- in a worker ---------------------------------------------------------------------------------------------------


def serve(worker: Worker, sizes: dict[str, Any]) -> None:
    """Answer requests with one JSON line each on stdout. Everything that libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    tell = lambda **answer: print(json.dumps(answer), file=answers, flush=True)
    if not worker.home:  # as in the command line of this package
        from jax_interp.core.allocator import keep_freed_memory

        keep_freed_memory()
    try:
        works = {work.name: work for work in worker.build(sizes)}
        calls, first = {}, {}
        for work in works.values():
            first[work.name] = _timed(work, 1)  # compilation
            _timed(work, 1)
            calls[work.name] = max(1, int(0.2 / max(_timed(work, 1), 1e-7)))
    except Exception as error:
        traceback.print_exc()
        tell(failed=f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}")
        return
    tell(
        works=[{"name": w.name, "flops": w.flops, "note": w.note, "first_s": first[w.name]} for w in works.values()],
        versions=versions(*worker.packages),
    )
    for line in sys.stdin:
        work = works[json.loads(line)["repeat"]]
        _trim()
        before = _machine()
        seconds = _timed(work, calls[work.name])
        tell(seconds=seconds, busy_elsewhere=_elsewhere(before, _machine()), peak_mb=_status_mb("VmHWM"),
             device_mb=_device_mb())  # fmt: skip


def _timed(work: Work, calls: int) -> float:
    """The mean seconds of a call, over `calls` calls."""
    if work.seconds is not None:
        return sum(work.seconds() for _ in range(calls)) / calls
    start = time.perf_counter()
    for _ in range(calls):
        work.step()
    return (time.perf_counter() - start) / calls


def _trim() -> None:
    """Return freed memory to the system and reset the peak, so that a peak belongs to one repeat only."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def _status_mb(key: str) -> float | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return None


def _device_mb() -> float | None:
    """The most memory that JAX has used on its device since the process began; None where the device does not say."""
    if "jax" not in sys.modules:
        return None
    statistics_of_device = sys.modules["jax"].devices()[0].memory_stats() or {}
    peak = statistics_of_device.get("peak_bytes_in_use")
    return None if peak is None else peak / 2**20


def _machine() -> tuple[float, float, float] | None:
    """The CPU seconds that the whole machine used, those that this process used, and the time."""
    try:
        ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return None
    busy = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
    return busy, sum(os.times()[:2]), time.perf_counter()


def _elsewhere(before: tuple | None, after: tuple | None) -> float | None:
    """The share of the machine that other processes used."""
    if before is None or after is None:
        return None
    busy, own, wall = (a - b for a, b in zip(after, before, strict=True))
    return max(0.0, (busy - own) / max(1e-9, wall * (os.cpu_count() or 1)))


def versions(*packages: str) -> dict[str, str | None]:
    """The versions of Python and of packages in the environment of this process; None if a package is missing."""
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# ---- in the parent -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Rounds:
    """The measurements: for each `worker: work`, one row for each round."""

    rows: dict[str, list[dict[str, Any]]]
    info: dict[str, dict[str, Any]]

    def seconds(self, name: str) -> float:
        return statistics.median(row["seconds"] for row in self.rows[name])

    def ratio(self, name: str, reference: str) -> float | None:
        """The median of seconds(name) / seconds(reference) over rounds; None if one of the two was not measured."""
        if name not in self.rows or reference not in self.rows:
            return None
        pairs = zip(self.rows[name], self.rows[reference], strict=True)
        return statistics.median(a["seconds"] / b["seconds"] for a, b in pairs)

    def peak_mb(self, name: str) -> float | None:
        peaks = [row["peak_mb"] for row in self.rows[name] if row["peak_mb"] is not None]
        return max(peaks) if peaks else None

    def device_mb(self, name: str) -> float | None:
        """The most device memory that the worker had used up to the last repeat of a piece of work."""
        return self.rows[name][-1].get("device_mb")

    def gflops(self, name: str) -> float | None:
        flops = self.info[name]["flops"]
        return None if flops is None else flops / self.seconds(name) / 1e9


def main(
    title: str,
    script: str,
    workers: Mapping[str, Worker],
    full: dict[str, Any],
    tiny: dict[str, Any],
    conclude: Callable[[Rounds], list[str]],
) -> None:
    """The command line of a benchmark: measure, print a table and the lines of `conclude`, write all data as JSON."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument(
        "--peers",
        type=Path,
        default=os.environ.get("JAX_INTERP_PEERS"),
        help="folder of the peers' environments (make_peers.sh); default: $JAX_INTERP_PEERS",
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tiny", action="store_true", help="small sizes: shows that everything runs, measures nothing")
    parser.add_argument("--only", nargs="+", choices=list(workers), default=list(workers), metavar="WORKER")
    parser.add_argument("--out", type=Path, default=ROOT / "out")
    parser.add_argument("--serve", choices=list(workers), help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = tiny if args.tiny else full
    if args.serve:
        serve(workers[args.serve], sizes)
        return

    args.out.mkdir(parents=True, exist_ok=True)
    processes: dict[str, subprocess.Popen] = {}
    ready: dict[str, dict[str, Any]] = {}
    absent: dict[str, str] = {}
    try:
        for name in args.only:
            python = _python(workers[name].home, args.peers)
            if python is None:
                absent[name] = f"no environment {workers[name].home!r} below --peers ({args.peers})"
                continue
            command = [str(python), script, "--serve", name, *(["--tiny"] if args.tiny else [])]
            _say(f"starting {name}")  # one at a time, because compilations would compete for memory
            processes[name] = _start(command, args.out / f"{Path(script).stem}-{name.replace(' ', '-')}.log")
            ready[name] = _answer(processes[name])
            if "failed" in ready[name]:
                absent[name] = f"{ready[name]['failed']} (see {args.out})"
                del ready[name], processes[name]
        rounds = Rounds({}, {})
        for name, answer in ready.items():
            rounds.info.update({f"{name}: {work['name']}": work for work in answer["works"]})
        rounds.rows.update({work: [] for work in rounds.info})
        for turn in range(args.rounds):
            _say(f"round {turn + 1} of {args.rounds}")
            for name, answer in ready.items():
                for work in answer["works"]:
                    time.sleep(SETTLE_S)
                    print(json.dumps({"repeat": work["name"]}), file=processes[name].stdin, flush=True)
                    row = _answer(processes[name])
                    if "failed" in row:
                        raise SystemExit(f"{name}, {work['name']}: {row['failed']} (see the logs in {args.out})")
                    rounds.rows[f"{name}: {work['name']}"].append(row)
    finally:
        for process in processes.values():
            process.kill()
            process.wait()

    conclusions = conclude(rounds) if rounds.rows else []
    record = {
        **taken(script),
        "sizes": sizes,
        "versions": {name: answer["versions"] for name, answer in ready.items()},
        "absent": absent,
        "conclusions": conclusions,
        "works": {name: {**rounds.info[name], "rounds": rows} for name, rows in rounds.rows.items()},
    }
    path = write(record, args.out, tiny=args.tiny)
    print(_table(title, record, rounds))
    _say(f"written: {path}")


def write(record: Mapping[str, Any], out: Path, *, tiny: bool = False) -> Path:
    """Write the record of one run (`taken` and its figures) to a new JSON file, named by benchmark and time."""
    out.mkdir(parents=True, exist_ok=True)
    stamp = record["date"].replace(":", "").split("+")[0]
    path = out / f"{record['benchmark']}-{stamp}{'-tiny' if tiny else ''}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def _python(home: str, peers: Path | None) -> Path | None:
    if not home:
        return Path(sys.executable)
    python = peers / home / "bin" / "python" if peers else None
    return python if python and python.exists() else None


def _start(command: list[str], log: Path) -> subprocess.Popen:
    threads = str(os.cpu_count())
    environment = {
        **os.environ,
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads),
        "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "disabled",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with log.open("w") as errors:  # a file, because a full pipe that nobody reads would block the worker
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )


def _answer(process: subprocess.Popen) -> dict[str, Any]:
    line = process.stdout.readline()
    return json.loads(line) if line else {"failed": f"the worker ended with code {process.wait()}"}


def taken(script: str) -> dict[str, Any]:
    """The name of the benchmark, the time, the commit and the machine."""
    git = lambda *words: subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True).stdout.strip()
    names = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [line for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "benchmark": Path(script).stem,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "--short", "HEAD"),
        "uncommitted": bool(git("status", "--porcelain", "--untracked-files=no")),
        "cpu": names[0].partition(":")[2].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(int(memory[0].split()[1]) / 2**20, 1) if memory else None,
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _table(title: str, record: dict[str, Any], rounds: Rounds) -> str:
    """A Markdown table with one row for each work. Seconds are the median (fastest - slowest) over rounds."""
    show = lambda value, form: "" if value is None else format(value, form)
    commit = f"commit {record['commit']}{' with uncommitted changes' if record['uncommitted'] else ''}"
    lines = [
        f"### {title.strip().splitlines()[0]}",
        "",
        f"{record['date']}, {commit}, {record['cpu']}, {record['cores']} cores; sizes {json.dumps(record['sizes'])}",
        "",
        "| | median | fastest - slowest | GFLOP/s | peak MB | other processes |",
        "|---|---|---|---|---|---|",
    ]
    for name, rows in rounds.rows.items():
        seconds = [row["seconds"] for row in rows]
        busy = [row["busy_elsewhere"] for row in rows if row["busy_elsewhere"] is not None]
        noisy = statistics.median(busy) if busy else None
        median, fastest, slowest = (_duration(f(seconds)) for f in (statistics.median, min, max))
        lines.append(
            f"| {name} | {median} | {fastest} - {slowest} "
            f"| {show(rounds.gflops(name), '.0f')} | {show(rounds.peak_mb(name), '.0f')} "
            f"| {show(noisy, '.0%')}{' (noisy)' if noisy and noisy > QUIET else ''} |"
        )
    lines += [f"| {name} | absent | {why} | | | |" for name, why in record["absent"].items()]
    lines += ["", *(f"- {line}" for line in record["conclusions"])]
    lines += ["", *(f"- {name}: {versions}" for name, versions in record["versions"].items())]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale / (10 if unit == "s" else 1):
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.0f} us"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
