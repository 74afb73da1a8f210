"""`jax-interp COMMAND ...`: the command line. Each command is in its own file.

A command is a module with `run(argv)`. It is imported only when it runs, so that help is fast. A mistake of the user is
a `UserError`: one line on stderr and exit code 2. After Ctrl-C a message says how to resume.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module

from jax_interp.cli.processes import OPTIONS, run_joined, take_processes
from jax_interp.core.allocator import keep_freed_memory
from jax_interp.core.errors import UserError
from jax_interp.core.processes import is_first_process
from jax_interp.core.terminal import print_text, printable
from jax_interp.core.user_cache import use_compilation_cache

COMMANDS = {
    "demo": ("demo", "the tour: read a model, train a dictionary on it, intervene, patch, write a report (minutes)"),
    "train-lm": ("train_lm", "train a small language model from a config"),
    "train-dictionary": ("train_dictionary", "train a sparse dictionary on a model's activations, and evaluate it"),
    "store": ("store", "write a model's activations to disk, on one host or many; show what a store holds"),
    "decompose": ("decompose", "take a model's matrices apart into components, measure them, write a page"),
    "decomposition-report": ("decomposition_report", "write the page of a finished decomposition again"),
    "patch": ("patch", "patch every layer, position and head between two prompts, write maps and a page"),
    "inspect": ("inspect", "show what a dictionary is, here or published; list published releases"),
    "dashboard": ("dashboard", "write the page of a dictionary's features: what they fire on and what they write"),
    "evaluate": ("evaluate", "measure a dictionary, trained here or published"),
    "bench-dictionary": (
        "bench_dictionary",
        "what its latents are good for: benchmarks beside baselines, with intervals",
    ),
    "trace-graph": ("trace_graph", "trace which features a prediction comes from: an attribution graph and its page"),
    "find-circuit": ("find_circuit", "find the circuit of a behaviour, judge it beside random circuits, write a page"),
    "train-probes": ("train_probes", "fit probes on a labelled set, judge them beside their controls, write a page"),
    "evaluate-probes": ("evaluate_probes", "judge the probes of a finished run on other labelled sets"),
    "monitor": ("monitor", "compare monitors of conversations: recall, false alarms, cost, cascades"),
    "steer": ("steer", "find a steering vector on questions, measure it at several strengths, write a page"),
    "generate": ("generate", "continue a prompt, with saved edits if you like"),
    "serve": ("serve", "answer completion requests over HTTP, each with its own edits"),
    "explain": ("explain", "find which components cause one surprising prediction, by resampling"),
    "attribute": ("attribute", "estimate which heads, neurons or latents carry a behaviour, and check it by patching"),
    "status": ("status", "show where runs stand: step, speed, time left, health, and how they ended"),
    "plan": ("plan", "what a run costs before it is started: memory, FLOPs, traffic, time on a named device"),
    "sites": ("sites", "list the names, axes, shapes and dtypes of a model's values"),
}
IN_ONE_PROCESS = frozenset(
    {"demo", "decomposition-report", "inspect", "plan", "trace-graph", "generate", "serve", "status", "sites"}
)
"""Commands whose work is not divided among processes. All others have the option --mesh."""
DEBUG = "JAX_INTERP_DEBUG"
SITES = re.compile(r"`sites\(model\)\(\*args\)` lists every name.*", re.DOTALL)
"""An AddressError ends with a list of all names. The command line replaces this end by the name of a command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
      argv: the arguments; None: those of the process.

    Returns:
      The exit code: 0, 1 (the run failed), 2 (the request was wrong), or 128 + the signal that stopped the run.
    """
    if argv is None:  # this process is only this command
        keep_freed_memory()
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get(DEBUG, "") not in ("", "0")
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        arguments, processes = take_processes(arguments)
        with _warnings_on_one_line():
            if processes is None or not _computes(arguments):
                return _dispatch(arguments)
            if arguments[0] in IN_ONE_PROCESS:
                raise UserError(f"{arguments[0]} runs in one process: start it without {', '.join(OPTIONS)}")
            explained = lambda error: _explained(error, debug)
            return run_joined(processes, arguments, lambda: _dispatch(arguments), explained)
    except SystemExit as stop:  # tyro, after it has printed help
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BrokenPipeError:  # `jax-interp sites gpt2 | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        if debug:
            raise
        return _print_error("interrupted; the same command resumes from the last checkpoint, if there is one", 130)
    except Exception as error:
        return _print_error(*_explained(error, debug))


def _computes(arguments: list[str]) -> bool:
    """Whether the arguments ask for more than help, so that several processes have something to do."""
    return bool(arguments) and arguments[0] in COMMANDS and not {"-h", "--help"} & set(arguments)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print_text(usage())
        return 0
    if arguments[0] in ("-V", "--version"):
        from jax_interp import __version__

        print_text(f"jax-interp {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the commands are {', '.join(COMMANDS)}"
        raise UserError(f"there is no command {name!r}; {hint}")
    use_compilation_cache()
    return import_module(f"jax_interp.cli.{COMMANDS[name][0]}").run(rest) or 0


def usage() -> str:
    """The text of `jax-interp --help`."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {description}" for name, (_, description) in COMMANDS.items())
    return (
        "usage: jax-interp COMMAND [OPTIONS]\n\n"
        "Read and edit the values inside language models, train sparse dictionaries, decompose weights.\n\n"
        f"commands:\n{commands}\n\n"
        "options:\n"
        f"  {'-h, --help':<{width}}  show this text; after a command, show its options\n"
        f"  {'--version':<{width}}  show the version of the package\n"
        f"  {'--debug':<{width}}  show the traceback of an error ({DEBUG}=1 does the same)"
    )


def _explained(error: Exception, debug: bool) -> tuple[str, int]:
    """The line that is printed for an expected error, and the exit code.

    Any other error is a defect of the package. It is raised again and keeps its traceback, as all do with --debug.
    """
    if debug:
        raise error
    if isinstance(error, UserError):
        return f"error: {SITES.sub('`jax-interp sites MODEL` lists every name', str(error))}", 2
    if isinstance(error, OSError) and error.filename is not None:
        return f"error: {error.filename}: {error.strerror}", 2
    if isinstance(error, OverflowError):
        return f"error: a number in the options or in the config is too large ({error})", 2
    if type(error).__name__ == "Interrupted":  # compared by name, because importing the training loop takes seconds
        return str(error), getattr(error, "exit_code", 130)
    if type(error).__name__ in ("NonFinite", "SelfCheckError"):
        return f"error: {error}", 1
    raise error


@contextlib.contextmanager
def _warnings_on_one_line() -> Iterator[None]:
    """Print each warning like an error: one line, without the place in the code. Only the first process prints them."""
    before = warnings.formatwarning
    line = lambda message: f"jax-interp: warning: {printable(' '.join(str(message).split()))}\n"
    warnings.formatwarning = lambda message, *_, **__: line(message) if is_first_process() else ""
    try:
        yield
    finally:
        warnings.formatwarning = before


def _print_error(message: str, code: int) -> int:
    print_text(f"jax-interp: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
