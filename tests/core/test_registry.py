"""Registries: a variant is known from its definition on, to configs as well."""

from __future__ import annotations

import abc
import dataclasses
import sys

import pytest

from jax_interp.core.config_json import from_json, to_json
from jax_interp.core.errors import UserError
from jax_interp.core.registry import Registry, discover


class Shape:
    sides = 0

    @abc.abstractmethod
    def area(self): ...


SHAPES = Registry("shape", Shape)


@SHAPES.register
@dataclasses.dataclass(frozen=True)
class Square(Shape):
    size: float = 1.0
    sides = 4

    def area(self):
        return self.size**2


@SHAPES.register
@dataclasses.dataclass(frozen=True)
class Circle(Shape):
    radius: float = 1.0

    def area(self):
        return 3 * self.radius**2


@dataclasses.dataclass(frozen=True)
class Drawing:
    one: Shape
    more: tuple[Shape, ...] = ()


def test_variants_are_found_by_name():
    assert SHAPES["Square"] is Square
    assert list(SHAPES) == [Square, Circle]
    with pytest.raises(UserError, match=r"no shape 'Sqare'. Did you mean 'Square'\? There are Square, Circle"):
        SHAPES["Sqare"]


def test_a_config_holds_any_variant():
    drawing = Drawing(Circle(2.0), (Square(), Circle()))
    assert from_json(Drawing, to_json(drawing)) == drawing
    with pytest.raises(UserError, match=r"config\.one: no shape 'Star'"):
        from_json(Drawing, {"one": {"type": "Star"}})
    with pytest.raises(UserError, match=r'config\.one is 3; it needs a "type", one of Square, Circle'):
        from_json(Drawing, {"one": 3})


def test_what_is_no_variant_is_refused():
    with pytest.raises(TypeError, match="int does not derive from Shape"):
        SHAPES.register(int)
    with pytest.raises(TypeError, match="the shape Line must define area"):
        SHAPES.register(type("Line", (Shape,), {}))
    assert SHAPES.names() == ("Square", "Circle")
    other = type("Square", (Square,), {"__module__": "elsewhere"})
    with pytest.raises(TypeError, match=r"is defined in .* already"):
        SHAPES.register(other)


def test_a_folder_of_variants_is_one_file_each(tmp_path, monkeypatch):
    folder = tmp_path / "variants_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from jax_interp.core.registry import Registry, discover\n"
        "class Base: ...\n"
        "ALL = Registry('thing', Base)\n"
        "discover(__name__, __path__)\n"
    )
    (folder / "one.py").write_text("from . import ALL, Base\n@ALL.register\nclass One(Base): ...\n")
    (folder / "two.py").write_text("from . import ALL, Base\n@ALL.register\nclass Two(Base): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    discover("variants_of_a_test", [str(folder)])
    assert sys.modules["variants_of_a_test"].ALL.names() == ("One", "Two")
