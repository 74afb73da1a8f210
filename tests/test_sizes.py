"""How large files and functions may be, and that every public name has a docstring."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "jax_interp"
LINES_OF_A_FILE, LINES_OF_A_FUNCTION, PARAMETERS = 400, 60, 8

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> Iterator[tuple[str, str]]:
    """(name, text) of every file of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield str(path.relative_to(PACKAGE)), path.read_text(encoding="utf-8")


def functions() -> Iterator[tuple[str, Function]]:
    for name, text in sources():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, Function):
                yield f"{name}:{node.lineno} {node.name}", node


def code_lines(node: Function) -> int:
    """The lines of a function without its docstring, which may be as long as it needs."""
    first = node.body[0]
    documented = ast.get_docstring(node, clean=False) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


def test_no_file_is_too_long():
    assert [name for name, text in sources() if text.count("\n") > LINES_OF_A_FILE] == []


def test_no_function_is_too_long():
    assert [where for where, node in functions() if code_lines(node) > LINES_OF_A_FUNCTION] == []


# Functions whose parameters are one list by nature, each with a default or a line of documentation.
MANY_PARAMETERS = {
    "decompose_resid": "TransformerLens's own parameters, for those who know it",
    "complete": "the prompts, and the options of `generate`",
    "stream_text": "the prompt, and the options of `generate`",
    "init_sae": "sizes and scales of an initialisation",
    "init_transcoder": "sizes and scales of an initialisation",
    "train_instances": "a trainer's parameters, and what differs between instances",
    "train_joint": "a trainer's parameters, with the optimizer and the objective of the model",
}


def test_no_function_has_too_many_parameters():

    def count(node: Function) -> int:
        every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        return len([argument for argument in every if argument.arg not in ("self", "cls")])

    many = {where.split()[-1]: where for where, node in functions() if count(node) > PARAMETERS}
    assert {name: where for name, where in many.items() if name not in MANY_PARAMETERS} == {}
    assert set(MANY_PARAMETERS) <= set(many), "an exception that is not needed any more"


def test_public_names_have_docstrings():
    """Every module, and every public class and function of a module."""
    missing = []
    for name, text in sources():
        tree = ast.parse(text)
        if text.strip() and not ast.get_docstring(tree):
            missing.append(name)
        for node in tree.body:
            public = isinstance(node, (ast.ClassDef, Function)) and not node.name.startswith("_")
            if public and not ast.get_docstring(node) and not is_overload(node):
                missing.append(f"{name}:{node.lineno} {node.name}")
    assert missing == []


def is_overload(node: ast.AST) -> bool:
    return any(getattr(one, "id", "") == "overload" for one in getattr(node, "decorator_list", ()))
