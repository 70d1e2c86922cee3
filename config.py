"""Typed configuration: one frozen tree from defaults, a YAML file, ``--set`` and flags.

Each stage owns the `Section` that it needs (``train/config.py`` …); ``settings.py`` joins them to
the tree that a YAML file holds. Every value remembers where it came from (its *origin*).
"""

import os
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Generic, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from .errors import ConfigError
from .keys import allowed, complaints, same_meaning, suggestion
from .printable import redacted

_FIXED = ", fixed once a run has begun"
_MOST_VALUES = 1_000_000
"""In a YAML file; aliases make a document of ten lines larger than any memory."""


class Section(BaseModel):
    """A frozen, closed group of settings; the docstring below a field is its description."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    fixed_keys: ClassVar[tuple[str, ...]] = ()
    """Keys whose values a run keeps from its first step on; the others may change on a resume."""
    synonyms: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Other programs' names of keys → the keys, for messages alone: they are not accepted."""

    def effective(self) -> Self:
        """Return these settings with the defaults that depend on other settings."""
        return self

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_by_yes(cls, value: object, info: ValidationInfo) -> object:
        """Refuse true and false for numbers, where pydantic would read 1 and 0."""
        if isinstance(value, bool):
            kind = cls.model_fields[str(info.field_name)].annotation
            if kind is not bool:
                raise ValueError(f"{str(value).lower()} is not a valid value for this key")
        return value


@dataclass(frozen=True, slots=True)
class PathMarker:
    """Marks a string field as a path, so that a relative one is anchored where it was written.

    A path in a YAML file is relative to that file; one on the command line to the working folder.
    URLs (``s3://…``) and the `words` stay as they are.
    """

    words: tuple[str, ...] = ()
    """Values that are not paths, such as ``auto``."""
    only_existing: bool = False
    """The field may also hold a name (of the Hugging Face hub): anchor it only if it exists, or
    the folder that it names first does."""

    def anchor(self, value: str, base: Path) -> str:
        """Make `value` absolute, seen from `base`."""
        if value in self.words or "://" in value or not value:
            return value
        anchored = os.path.normpath(base / Path(value).expanduser())
        if self.only_existing and not value.startswith((".", "~")):
            inside = "/" in value and os.path.isdir(os.path.dirname(anchored))  # so it is a path
            return anchored if inside or os.path.exists(anchored) else value
        return anchored


@dataclass(frozen=True, slots=True)
class Flag:
    """Makes a field an option of the command line, under its own name with dashes."""

    metavar: str = ""
    commands: tuple[str, ...] = ()
    """Those of the section's commands that have the option; all of them if not given."""
    name: str = ""
    """As it is written, ``--tta/--no-tta``, where it is not the field's own name."""


PathField = Annotated[str, PathMarker()]
"""A local path or any fsspec URL."""

Tree = TypeVar("Tree", bound=Section)
Marker = TypeVar("Marker", PathMarker, Flag)


@dataclass(frozen=True, slots=True)
class Resolved(Generic[Tree]):
    """A validated tree and where each of its values came from."""

    value: Tree
    origins: Mapping[str, str]
    """``section.key`` → ``default``, ``FILE:LINE``, ``--set`` or the flag."""


def load(
    tree: type[Tree],
    file: str | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, tuple[str, object]] | None = None,
) -> Resolved[Tree]:
    """Resolve a tree in the order defaults < YAML file < ``--set`` < flags.

    Parameters
    ----------
    tree
        The root section; its fields are sections.
    file
        A YAML file, or the name of one that ships with the package (``tiny``).
    overrides
        ``section.key=value``, the value in YAML.
    flags
        ``section.key`` → (flag name, value); a value of ``None`` or ``()`` was not given.

    Raises
    ------
    ConfigError
        For an unknown key (with the nearest known one), a value of the wrong type, or YAML that
        cannot be read; names the key and its origin.
    """
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    fields = dict(_leaves(tree))

    def put(key: str, value: object, origin: str, base: Path) -> None:
        if key not in fields:
            raise ConfigError(f"{origin}: unknown key {key!r}.{_did_you_mean(key, tree)}")
        values[key] = _anchored(fields[key], value, base)
        origins[key] = origin

    if file is not None:
        path = find_config(file)
        for key, value, line in _read_yaml(path, tree):
            put(key, value, f"{path.name}:{line}", path.parent.absolute())
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator:
            raise ConfigError(f"--set {item}: write it as section.key=value")
        try:
            value = parse_yaml(text) if text else None
        except ConfigError as error:
            raise ConfigError(f"--set {key}: {text[:100]!r} is not a YAML value: {error}") from None
        put(key.strip(), value, "--set", Path.cwd())
    for key, (flag, value) in (flags or {}).items():
        if value is not None and value != ():
            put(key, value, flag, Path.cwd())

    nested: dict[str, dict[str, object]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        nested.setdefault(section, {})[name] = value
    try:
        resolved = tree.model_validate(nested)
    except ValidationError as error:
        raise ConfigError("\n".join(complaints(error.errors(), nested, origins))) from None
    return Resolved(resolved, {key: origins.get(key, "default") for key in fields})


def find_config(name: str) -> Path:
    """Return the path of a YAML file, or of the bundled config of that name (``tiny``)."""
    path = Path(name)
    if path.is_file():
        return path
    bundled = resources.files(__package__ or "cocoseg") / "configs"
    names = sorted(
        Path(entry.name).stem for entry in bundled.iterdir() if entry.name[-5:] == ".yaml"
    )
    if path.parent == Path() and path.stem in names and path.suffix in ("", ".yaml"):
        return Path(str(bundled / f"{path.stem}.yaml"))
    raise ConfigError(
        f"--config {name}: no such file, nor one of the bundled configs ({', '.join(names)})"
    )


def to_yaml(
    sections: Mapping[str, Section], only: Mapping[str, AbstractSet[str]] = MappingProxyType({})
) -> str:
    """Write sections as the YAML that `load` reads; of those in `only` no other keys.

    Users, passwords and queries of URLs are left out.
    """
    plain = {
        name: section.model_dump(mode="json", include=set(only[name]) if name in only else None)
        for name, section in sections.items()
    }
    return yaml.safe_dump(_without_secrets(plain), sort_keys=False, allow_unicode=True)


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_secrets(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_secrets(one) for one in value]
    return redacted(value) if isinstance(value, str) else value


def show(resolved: Resolved[Any], section: str | None = None) -> str:
    """Write a resolved tree, or one section, as YAML.

    A comment gives each value's origin, and says what is fixed.

    Raises
    ------
    ConfigError
        If there is no such section.
    """
    tree = type(resolved.value)
    if section is not None and section not in tree.model_fields:
        raise ConfigError(f"{section}: no such section; there are {', '.join(tree.model_fields)}")
    lines: list[str] = []
    fixed = set(fixed_keys(tree))
    include = None if section is None else {section}
    value = resolved.value.effective()
    for part, content in value.model_dump(mode="json", include=include).items():
        lines.append(f"{part}:")
        for name, value in content.items():
            key = f"{part}.{name}"
            note = f"{resolved.origins[key]}{_FIXED * (key in fixed)}"
            lines.append(f"  {f'{name}: {_flat(value)}':<58}  # {note}")
    return "\n".join(lines)


def _flat(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.removesuffix("\n...\n").strip()


@dataclass(frozen=True, slots=True)
class Description:
    """One key: what it means, which values it accepts, and which one it has."""

    key: str
    description: str
    allowed: str
    default: object
    value: object
    origin: str
    fixed_once_begun: bool

    def text(self) -> str:
        """Return it for people."""
        lines = [
            f"{self.key} = {_flat(self.value)}  ({self.origin}{_FIXED * self.fixed_once_begun})",
            *textwrap.wrap(self.description, 96, initial_indent="  ", subsequent_indent="  "),
            f"  allowed: {self.allowed}",
            f"  default: {_flat(self.default)}",
        ]
        return "\n".join(lines)


def describe(resolved: Resolved[Any], key: str) -> list[Description]:
    """Describe a key, ``section.key``, or every key of a section.

    Raises
    ------
    ConfigError
        If there is neither; names what may be meant.
    """
    tree = type(resolved.value)
    keys = [one for one in dict(_leaves(tree)) if key in (one, one.partition(".")[0])]
    if not keys:
        raise ConfigError(f"unknown key {key!r}.{_did_you_mean(key, tree)}")
    fixed, values = fixed_keys(tree), resolved.value.effective().model_dump(mode="json")
    defaults = tree().model_dump(mode="json")
    described = []
    for one in keys:
        section, _, name = one.partition(".")
        content = dict(_sections(tree))[section]
        schema = content.model_json_schema()["properties"][name]
        described.append(
            Description(
                one,
                " ".join(schema.get("description", "").split()),
                allowed(schema),
                defaults[section][name],
                values[section][name],
                resolved.origins[one],
                one in fixed,
            )
        )
    return described


def fixed_keys(tree: type[BaseModel]) -> list[str]:
    """Return the keys, ``section.key``, that may not change when a run is resumed."""
    return [f"{name}.{key}" for name, content in _sections(tree) for key in content.fixed_keys]


def meant_by(key: str, tree: type[Section]) -> list[str]:
    """Return the keys of a tree that a key of another section or program stands for."""
    keys = dict(_leaves(tree))
    return [key] if key in keys else same_meaning(key, keys, _synonyms(tree))


def _sections(tree: type[BaseModel]) -> Iterator[tuple[str, type[Section]]]:
    for name, field in tree.model_fields.items():
        content = field.annotation
        assert isinstance(content, type) and issubclass(content, Section)
        yield name, content


def _leaves(tree: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    for section, content in _sections(tree):
        for name, leaf in content.model_fields.items():
            yield f"{section}.{name}", leaf


def _anchored(field: FieldInfo, value: object, base: Path) -> object:
    marker = find_marker(PathMarker, field)
    if marker is None:
        return value
    if isinstance(value, str):
        return marker.anchor(value, base)
    if isinstance(value, (list, tuple)):
        return [marker.anchor(item, base) if isinstance(item, str) else item for item in value]
    return value


def find_marker(kind: type[Marker], field: FieldInfo) -> Marker | None:
    """Return the marker of a kind in the annotation of a field, if there is one."""
    waiting: list[object] = [*field.metadata, field.annotation]
    while waiting:
        annotation = waiting.pop(0)
        if isinstance(annotation, kind):
            return annotation
        waiting += typing.get_args(annotation)
    return None


def parse_yaml(content: str | bytes, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """Return the value of a YAML document that anybody may have written.

    Raises
    ------
    ConfigError
        If it is not valid YAML, nested too deeply, or by its aliases grows to more values than
        any configuration has.
    """
    try:
        root = yaml.compose(content, Loader=loader)
        if root is not None and _size(root) > _MOST_VALUES:
            raise ConfigError(f"more than {_MOST_VALUES:,} values")
        return yaml.load(content, loader)  # noqa: S506 - a SafeLoader
    except RecursionError:
        raise ConfigError("nested too deeply") from None
    except ConfigError:
        raise
    except Exception as error:  # PyYAML raises many kinds on numbers, dates and tags
        raise ConfigError(str(error) or type(error).__name__) from None


def _size(root: yaml.Node) -> int:
    """Count the values of a document, those behind an alias each time; stops at `_MOST_VALUES`."""
    count, waiting = 1, [root]
    while waiting and count <= _MOST_VALUES:
        node = waiting.pop()
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            parts = node.value
        elif isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        count += len(parts)
        if count <= _MOST_VALUES:
            waiting += parts
    return count


def _read_yaml(path: Path, tree: type[Section]) -> Iterator[tuple[str, object, int]]:
    """Yield (section.key, value, line); PyYAML alone would let a doubled key win silently."""
    try:
        text = path.read_text(encoding="utf-8")
        content = parse_yaml(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from None
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}: expected sections such as 'train:' at the top level")
    seen: set[str] = set()
    for section_node, content_node in root.value:
        section, line = str(section_node.value), section_node.start_mark.line + 1
        if section not in tree.model_fields:
            near = _did_you_mean(section, tree)
            raise ConfigError(f"{path.name}:{line}: unknown section {section!r}.{near}")
        if section in seen:
            raise ConfigError(f"{path.name}:{line}: section {section!r} is given twice")
        seen.add(section)
        if not isinstance(content_node, yaml.MappingNode):
            if content[section] is None:
                continue
            raise ConfigError(f"{path.name}:{line}: {section!r} holds keys, not a single value")
        for key_node, _ in content_node.value:
            name, line = str(key_node.value), key_node.start_mark.line + 1
            key = f"{section}.{name}"
            if key in seen:
                raise ConfigError(f"{path.name}:{line}: {key!r} is given twice")
            seen.add(key)
            yield key, content[section].get(key_node.value, content[section].get(name)), line


def _did_you_mean(key: str, tree: type[Section]) -> str:
    keys = dict(_leaves(tree))
    if "." in key:
        return suggestion(key, keys, _synonyms(tree))
    return suggestion(key, [*tree.model_fields, *keys], _synonyms(tree))


def _synonyms(tree: type[Section]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for section, content in _sections(tree):
        for name, key in content.synonyms.items():
            found.setdefault(name, []).append(f"{section}.{key}")
    return found
