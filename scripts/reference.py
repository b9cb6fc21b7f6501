"""Writes the pages of the manual that follow from the code: settings and commands. `make reference`.

A page keeps what stands above its mark; tests/unit/test_manual.py fails on one that is stale.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterable, Iterator
from enum import Enum
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import click
from annotated_types import Ge, Gt, Le, MinLen
from pydantic import AfterValidator, BaseModel, JsonValue
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from nixery_snap.cli import PROGRAM, cli
from nixery_snap.settings import Settings

DOCS: Final = Path(__file__).parents[1] / "docs"
MARK: Final = "<!-- From here on by `make reference`. -->\n"
SCALARS: Final = {str: "string", bool: "boolean", int: "integer", float: "number", JsonValue: "any value"}


def settings_reference() -> str:
    """A table of all keys for each section of a settings file."""
    return "\n".join(_section(Settings, "", "", "Keys that stand before the first table."))


def _section(model: type[BaseModel], prefix: str, heading: str, about: str) -> Iterator[str]:
    yield f"## {heading or 'Outside of tables'}\n\n{about}\n\n| key | type | default | meaning |\n|---|---|---|---|"
    texts, inner = _docstrings(model), []
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        section, kind = _inner_section(field.annotation)
        if section is not None:
            inner.append((section, kind.format(key), f"{key}.{'NAME.' if 'NAME' in kind else ''}", name))
            if isinstance(field.default, BaseModel):
                continue
        assert name in texts, f"{key} has no text below it"
        cells = [
            f"`{key}`",
            _type_of(field.annotation, field.metadata),
            _default(field),
            f"{texts[name]}{_flag(key)}",
        ]
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
    for section, header, below, _ in inner:
        yield ""
        yield from _section(section, below, f"`{header}`", inspect.cleandoc(section.__doc__ or ""))


def _docstrings(model: type[BaseModel]) -> dict[str, str]:
    """What stands below each field of a class."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(model)))
    assert isinstance(tree.body[0], ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(tree.body[0].body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _inner_section(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    """The section that a key holds one or many of, and how its table is headed."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, "[{}]"
    parts = [part for part in get_args(annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
    if not parts:
        return None, ""
    return parts[0], "[{}.NAME]" if get_origin(annotation) is dict else "[[{}]]"


def _type_of(annotation: Any, metadata: Iterable[Any]) -> str:
    """`metadata`: what `Annotated` says besides the type; a check of ours says all there is to say."""
    said = [*_constraints(metadata)]
    if not any(isinstance(one, AfterValidator) for one in metadata):
        said.insert(0, _words(annotation))
    return ", ".join(said)


def _words(annotation: Any) -> str:
    arguments = get_args(annotation)
    match get_origin(annotation):
        case origin if origin is Annotated:
            return _type_of(arguments[0], arguments[1:])
        case origin if origin is Literal:
            return " or ".join(f"`{json.dumps(value)}`" for value in arguments)
        case origin if origin is tuple:
            return f"list of: {_words(arguments[0])}"
        case origin if origin is dict:
            return f"table of: {_words(arguments[1])}"
        case origin if origin in {Union, UnionType}:
            kinds = [kind for kind in arguments if kind is not NoneType and get_args(kind) != ("",)]
            return " or ".join(map(_words, kinds))
    if annotation in SCALARS:
        return SCALARS[annotation]
    if issubclass(annotation, Enum):
        return " or ".join(f'`"{member}"`' for member in annotation)
    assert issubclass(annotation, BaseModel), annotation
    return "table"


def _constraints(metadata: Any) -> Iterator[str]:
    for one in metadata:
        match one:
            case AfterValidator(func=check):
                assert check.__doc__, f"{check.__name__} has no text that says what it takes"
                text = check.__doc__.splitlines()[0].rstrip(".")
                yield text[:1].lower() + text[1:]
            case Gt(gt=bound):
                yield f"more than {bound}"
            case Ge(ge=bound):
                yield f"at least {bound}"
            case Le(le=bound):
                yield f"at most {bound}"
            case MinLen():
                yield "not empty"
            case _ if pattern := getattr(one, "pattern", None):
                yield f"as `{pattern}`"
            case _:
                raise AssertionError(one)


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is None:
        return ""
    if value is PydanticUndefined:
        return "required"
    return f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    match value:
        case BaseModel():
            return _toml({name: getattr(value, name) for name in sorted(value.model_fields_set)})
        case dict():
            inside = ", ".join(f"{name} = {_toml(inner)}" for name, inner in value.items())
            return f"{{ {inside} }}" if inside else "{}"
        case tuple() | list():
            return f"[{', '.join(map(_toml, value))}]"
        case float():
            return f"{value:g}"
        case _:
            return json.dumps(value)


def _flag(key: str) -> str:
    name = key.replace(".", "_")
    flags = {
        option.opts[0]
        for command in cli.commands.values()
        for option in command.params
        if isinstance(option, click.Option) and option.name == name
    }
    return f" Flag: `{flags.pop()}`." if flags else ""


def command_reference() -> str:
    """The help of the program and of every command."""
    return "\n".join(
        f"## {name}\n\n```text\n{command.get_help(_context(command, name))}\n```\n"
        for name, command in sorted(cli.commands.items())
    )


def _context(command: click.Command, name: str) -> click.Context:
    program = click.Context(cli, info_name=PROGRAM, terminal_width=100, **cli.context_settings)
    return click.Context(command, program, name)


PAGES: Final = {"settings.md": settings_reference, "commands.md": command_reference}


def page(name: str) -> str:
    """The page as it ought to be."""
    above, mark, _ = (DOCS / name).read_text().partition(MARK)
    assert mark, f"{name} has no mark"
    return f"{above}{mark}\n{PAGES[name]()}\n".rstrip("\n") + "\n"


if __name__ == "__main__":
    for each in PAGES:
        (DOCS / each).write_text(page(each))
