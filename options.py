"""Options of a command, made of the fields of its section that are marked by `Flag`."""

import types
import typing
from typing import Any, Literal

import click
from pydantic.fields import FieldInfo

from .config import Flag, Section, find_marker
from .settings import Settings


def options_of(section: str, command: str) -> list[click.Option]:
    """Return the options of a command.

    An option has the description and the default of its field; a choice has its values. None, and
    no value of an option that is repeatable, mean that it was not given.

    Parameters
    ----------
    section
        Whose fields are the options.
    command
        Some fields are options of one of the section's commands alone; see `Flag.commands`.
    """
    content = Settings.model_fields[section].annotation
    assert isinstance(content, type) and issubclass(content, Section)
    flags = {name: find_marker(Flag, field) for name, field in content.model_fields.items()}
    return [
        _option(name, content.model_fields[name], flag)
        for name, flag in flags.items()
        if flag is not None and (not flag.commands or command in flag.commands)
    ]


def _option(name: str, field: FieldInfo, flag: Flag) -> click.Option:
    kind = _plain(field.annotation)
    described = " ".join((field.description or "").split())
    options: dict[str, Any] = {}
    if kind is bool:
        options = {"is_flag": True, "default": None}
    elif typing.get_origin(kind) is Literal:
        options = {"type": click.Choice(typing.get_args(kind))}
    elif typing.get_origin(kind) is tuple:
        options, described = {"multiple": True}, f"{described} Repeatable."
    elif kind in (int, float):
        options = {"type": kind, "metavar": "N" if kind is int else "X"}
    if flag.metavar:
        options["metavar"] = flag.metavar
    default = field.default
    if kind is bool:
        default = "on" if default else None
    if default not in (None, (), ""):
        described += f" [{default:g}]" if isinstance(default, float) else f" [{default}]"
    spelled = flag.name or f"--{name.replace('_', '-')}"
    return click.Option([spelled, name], help=described, **options)


def _plain(annotation: Any) -> Any:
    """Return the type of a field without None and without its constraints."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _plain(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        parts = [one for one in typing.get_args(annotation) if one is not types.NoneType]
        return _plain(parts[0]) if len(parts) == 1 else str
    return annotation
