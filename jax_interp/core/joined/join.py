"""`join_processes`: a process joins the others of its run, and ends with them.

    with join_processes("10.0.0.1:1234", count=2, index=0):        on a cluster: join_processes()
        train_dictionary(config, model, batch_at, place=make_mesh(data=-1), run="runs/sae")

The port of the coordinator is that of the hub (see hub.py). JAX's own coordinator takes a free port of the machine of
process 0, and the others learn it from the hub.
"""

from __future__ import annotations

import atexit
import contextlib
import ipaddress
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from jax_interp.core.errors import UserError
from jax_interp.core.joined.cluster import Place, place_in_cluster
from jax_interp.core.joined.hub import FAILED, REFUSED, Hub
from jax_interp.core.joined.member import Ended, Member
from jax_interp.core.joined.wire import GREETING, Line
from jax_interp.core.terminal import print_text

JOIN_VARIABLE, JOIN_SECONDS = "JAX_INTERP_JOIN_SECONDS", 300.0
"""How long a process waits for the others. The machines of a job may start minutes apart."""
SILENT_VARIABLE, SILENT_SECONDS = "JAX_INTERP_HANG_SECONDS", 1800.0
"""How long a step may take before the run counts as hung; compiling a large step takes minutes. Outside the training
loop: half the time that a process may be silent."""
_JAX_SECONDS = 7 * 24 * 3600
"""JAX would abort all processes after this time without news of one. The hub has found out long before."""
_CONNECT_SECONDS = 5.0
_RETRY_SECONDS = 0.2

_PACKAGES = ("jax_interp", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_SETTINGS = (
    "JAX_PLATFORMS", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION", "JAX_DEFAULT_PRNG_IMPL",
    "JAX_THREEFRY_PARTITIONABLE", "JAX_NUMPY_DTYPE_PROMOTION", "JAX_NUMPY_RANK_PROMOTION",
)  # fmt: skip


@contextlib.contextmanager
def join_processes(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    *,
    same: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """Join the other processes of a run within the block. Every process of the run is started with the same program.

    Call it before JAX computes anything. If a process fails, is killed or hangs, the others end too, each with one line
    on stderr that says why: with the exit code of a process that failed, 75 after one that was killed, 76 after one
    that hung. An error within the block ends the program, because the others do not wait for it.

    Args:
      coordinator: HOST:PORT of process 0. The three are given together; without them, the environment of the cluster
        says them (SLURM, Open MPI, Cloud TPU, Kubernetes indexed jobs).
      count: how many processes there are.
      index: the number of this process, from 0.
      same: descriptions of what must be the same in every process, by name. The versions of packages and the settings
        of JAX are compared in any case.

    Raises:
      UserError: the processes cannot be joined, or they differ. The message says what to do.

    Example:
        with join_processes("127.0.0.1:1234", count=2, index=0):
            state = fit(step, state, batch_at, steps=1000, run="runs/a")
    """
    place = _place(coordinator, count, index)
    if place.count == 1:
        yield
        return
    with contextlib.ExitStack() as stack:
        member, port = _connect(place, same or {}, stack)
        _start_jax(place, port, stack)
        ending = _Ending()
        atexit.register(ending)  # not earlier: what was registered last runs first
        try:
            yield
        except BaseException as error:
            ending.code = _report(member, error)
            ending.kept = stack.pop_all()  # JAX would abort the process if its connection were closed now
            raise
        member.finish()
        sys.modules["jax"].distributed.shutdown()


class _Ending:
    """Called when the interpreter ends. After an error, JAX would wait for the other processes, which are gone."""

    code: int | None = None
    kept: contextlib.ExitStack | None = None

    def __call__(self) -> None:
        if self.code is not None:
            leave(self.code)


def leave(code: int) -> NoReturn:
    """End this process at once, after its last words. JAX's own end would wait for the other processes."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def _report(member: Member, error: BaseException) -> int:
    """Tell the hub about an error of this process. Returns the exit code.

    If another process is the cause, or prints the same error, this process ends here.
    """
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    else:
        usual = 130 if isinstance(error, KeyboardInterrupt) else REFUSED if isinstance(error, UserError) else FAILED
        code = getattr(error, "exit_code", usual)
    try:
        if not member.end(describe_error(error), code, follows=is_of_runtime(error)):
            leave(code)
    except Ended as ended:
        print_text(f"jax-interp: {ended}", file=sys.stderr)
        leave(ended.code)
    return code


def describe_error(error: BaseException) -> str:
    """An error on one line, with the name of its type unless the message was written for users."""
    text = " ".join(str(error).split())[:1000]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def is_of_runtime(error: BaseException) -> bool:
    """Whether an error comes from a collective, which fails if another process has ended."""
    causes: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        causes.append(f"{type(seen).__name__} {seen}")
        seen = seen.__cause__ or seen.__context__
    signs = (
        "Gloo",
        "NCCL",
        "coordination",
        "UNAVAILABLE",
        "DEADLINE_EXCEEDED",
        "Connection reset",
        "Connection closed",
    )
    return any(sign in cause for cause in causes for sign in signs)


def _place(coordinator: str | None, count: int | None, index: int | None) -> Place:
    if coordinator is None and count is None and index is None:
        return place_in_cluster(seconds(JOIN_VARIABLE, JOIN_SECONDS))
    if coordinator is None or count is None or index is None:
        raise UserError("give the coordinator, the number of processes and the own number together, or none of them")
    if not 0 <= index < count:
        raise UserError(f"process {index} of {count}: the processes are numbered from 0 to {count - 1}")
    address(coordinator)
    return Place(coordinator, count, index)


def address(coordinator: str) -> tuple[str, int]:
    """The host and the port of `HOST:PORT`. Raises UserError."""
    host, colon, port = coordinator.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"the coordinator {coordinator!r} is not HOST:PORT, such as 10.0.0.1:1234")
    return host.strip("[]"), int(port)


def seconds(variable: str, default: float) -> float:
    """A time in seconds from an environment variable. Raises UserError if it is not a positive number."""
    text = os.environ.get(variable, "")
    try:
        found = float(text) if text else default
    except ValueError:
        found = -1.0
    if not 0 < found < 1e9:
        raise UserError(f"{variable}={text!r} in the environment is not a positive number of seconds")
    return found


def _connect(place: Place, same: Mapping[str, str], stack: contextlib.ExitStack) -> tuple[Member, int]:
    """Join the hub. Returns the connection, and the port of JAX's coordinator at process 0."""
    host, port = address(place.coordinator)
    limit = seconds(JOIN_VARIABLE, JOIN_SECONDS)
    silent = seconds(SILENT_VARIABLE, SILENT_SECONDS)
    if place.index == 0:
        host = "127.0.0.1"
        listener = _listen(place.coordinator)
        Hub(listener, place.count, limit, 2 * silent, lambda: {"port": _free_port()}).start()
    line = _reach(host, port, place, limit)
    about = {
        "index": place.index, "count": place.count, "host": socket.gethostname(), "pid": os.getpid(),
        "facts": {**_facts(), **same},
    }  # fmt: skip
    line.send(join=about)
    go, rest = _answer(line, limit + _CONNECT_SECONDS, place)
    member = Member(line, place.index, place.count)
    for message in rest:
        member.take(message)
    member.begin()
    stack.callback(line.close)
    return member, go["port"]


def _listen(coordinator: str) -> socket.socket:
    host, port = address(coordinator)
    try:
        if _is_loopback(host):
            return socket.create_server(("127.0.0.1", port), backlog=1024)
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True)
        return socket.create_server(("", port), backlog=1024)
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen at {coordinator}: {os.strerror(error.errno or 0)}. Another program may use port "
            f"{port}, such as an earlier run that has not ended: choose another port in every process"
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def _reach(host: str, port: int, place: Place, limit: float) -> Line:
    """A connection to the hub, which may start later than this process."""
    until, reason = time.monotonic() + limit, ""
    while time.monotonic() < until:
        try:
            line = Line(socket.create_connection((host, port), timeout=_CONNECT_SECONDS))
            messages = line.receive(_CONNECT_SECONDS)
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            if messages and messages[0] == GREETING:
                return line
            line.close()
            if messages is not None and messages:
                raise UserError(f"what answers at {place.coordinator} is not process 0 of such a run: {_CHECK}")
            reason = "what answers there is not process 0 of such a run"
        time.sleep(_RETRY_SECONDS)
    raise UserError(
        f"process {place.index} cannot reach process 0 at {place.coordinator} ({reason}; tried for {limit:.0f} s). "
        f"{_CHECK}"
    )


_CHECK = "Start process 0 on that machine, and check the address, the port and the firewall"


def _answer(line: Line, limit: float, place: Place) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Wait until all have joined. Returns what the hub says, and the messages that came after it."""
    until = time.monotonic() + limit
    while (left := until - time.monotonic()) > 0:
        try:
            messages = line.receive(left)
        except TimeoutError:
            break
        if messages is None:
            raise UserError(f"process 0 at {place.coordinator} ended before all {place.count} processes had joined")
        for number, message in enumerate(messages):
            if "verdict" in message:
                raise UserError(message["verdict"]["message"])
            if "go" in message:
                return message["go"], messages[number + 1 :]
    raise UserError(f"process 0 at {place.coordinator} does not answer: {_CHECK}")


def _facts() -> dict[str, str]:
    """What must be the same in every process."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[f"the version of {package}"] = metadata.version(package)
    return found | {name: os.environ[name] for name in _SETTINGS if name in os.environ}


def _start_jax(place: Place, port: int, stack: contextlib.ExitStack) -> None:
    """Start JAX's own connection of the processes."""
    host, _ = address(place.coordinator)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what C++ logs about lost processes is said in one line by us
    os.environ.setdefault("no_grpc_proxy", "127.0.0.1")  # a proxy of the environment would get the local connection
    import jax

    with contextlib.suppress(AttributeError):  # it would catch SIGTERM, which the training loop does
        jax.config.update("jax_enable_preemption_service", False)
    with contextlib.suppress(AttributeError):
        jax.config.update("jax_check_proxy_envs", False)
    own: dict[str, Any] = {}
    if place.index:
        port = _relay(host, port, stack)
    else:
        own["coordinator_bind_address"] = f"127.0.0.1:{port}" if _is_loopback(host) else f"[::]:{port}"
    try:
        jax.distributed.initialize(
            f"127.0.0.1:{port}", place.count, place.index, local_device_ids=place.local_devices,
            cluster_detection_method="deactivate", initialization_timeout=int(seconds(JOIN_VARIABLE, JOIN_SECONDS)),
            heartbeat_timeout_seconds=_JAX_SECONDS, **own,
        )  # fmt: skip
    except RuntimeError as error:
        raise UserError(
            f"JAX cannot join process {place.index} with the others: {' '.join(str(error).split())[:300]}"
        ) from error


def _relay(host: str, port: int, stack: contextlib.ExitStack) -> int:
    """Start relay.py beside this process. Returns its port."""
    program = [sys.executable, "-I", "-S", str(Path(__file__).with_name("relay.py")), host, str(port)]
    relay = stack.enter_context(subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    assert relay.stdout is not None
    found = relay.stdout.readline()
    if not found.strip().isdigit():
        raise UserError(f"the relay to process 0 did not start: {' '.join(program)}")
    return int(found)
