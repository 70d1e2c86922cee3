"""Typed configuration: one frozen tree from defaults, a YAML file, ``--set`` and flags.

Each stage owns the `Section` that it needs (``train/config.py`` …); ``settings.py`` joins them to
the tree that a YAML file holds. Every value remembers where it came from (its *origin*).
"""

import difflib
import os
import typing
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from .errors import ConfigError
from .printable import redacted

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

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_by_yes(cls, value: object, info: ValidationInfo) -> object:
        """Refuse true and false for numbers, where pydantic would read 1 and 0."""
        if isinstance(value, bool):
            kind = cls.model_fields[str(info.field_name)].annotation
            if kind is not bool:
                raise ValueError(f"{str(value).lower()} is no value for this key")
        return value


@dataclass(frozen=True, slots=True)
class PathMarker:
    """Marks a string field as a path, so that a relative one is anchored where it was written.

    A path in a YAML file is relative to that file; one on the command line to the working folder.
    URLs (``s3://…``) and the `words` stay as they are.
    """

    words: tuple[str, ...] = ()
    """Values that are no paths, such as ``auto``."""
    only_existing: bool = False
    """The field may also hold a name (of the Hugging Face hub): anchor it only if it exists."""

    def anchor(self, value: str, base: Path) -> str:
        """Make `value` absolute, seen from `base`."""
        if value in self.words or "://" in value or not value:
            return value
        anchored = os.path.normpath(base / Path(value).expanduser())
        if self.only_existing and not value.startswith((".", "~")) and not os.path.exists(anchored):
            return value
        return anchored


PathField = Annotated[str, PathMarker()]
"""A local path or any fsspec URL."""

Tree = TypeVar("Tree", bound=Section)


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
            raise ConfigError(f"{origin}: unknown key {key!r}.{_did_you_mean(key, fields)}")
        values[key] = _anchored(fields[key], value, base)
        origins[key] = origin

    if file is not None:
        path = find_config(file)
        for key, value, line in _read_yaml(path, set(fields)):
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
        raise ConfigError(_explain(error, origins)) from None
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


def show(resolved: Resolved[Any]) -> str:
    """Write a resolved tree as YAML; a comment tells each value's origin, and what is fixed."""
    lines: list[str] = []
    fixed = set(fixed_keys(type(resolved.value)))
    for section, content in resolved.value.model_dump(mode="json").items():
        lines.append(f"{section}:")
        for name, value in content.items():
            text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix(
                "\n...\n"
            )
            key = f"{section}.{name}"
            note = f"{resolved.origins[key]}{', fixed once a run has begun' * (key in fixed)}"
            lines.append(f"  {f'{name}: {text.strip()}':<58}  # {note}")
    return "\n".join(lines)


def fixed_keys(tree: type[BaseModel]) -> list[str]:
    """Return the keys, ``section.key``, that may not change when a run goes on."""
    return [
        f"{name}.{key}"
        for name, field in tree.model_fields.items()
        for key in getattr(field.annotation, "fixed_keys", ())
    ]


def _leaves(tree: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    for section, field in tree.model_fields.items():
        content = field.annotation
        assert isinstance(content, type) and issubclass(content, Section)
        for name, leaf in content.model_fields.items():
            yield f"{section}.{name}", leaf


def _anchored(field: FieldInfo, value: object, base: Path) -> object:
    marker = _marker([*field.metadata, field.annotation])
    if marker is None:
        return value
    if isinstance(value, str):
        return marker.anchor(value, base)
    if isinstance(value, (list, tuple)):
        return [marker.anchor(item, base) if isinstance(item, str) else item for item in value]
    return value


def _marker(annotations: Sequence[object]) -> PathMarker | None:
    for annotation in annotations:
        if isinstance(annotation, PathMarker):
            return annotation
        found = _marker(typing.get_args(annotation))
        if found is not None:
            return found
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


def _read_yaml(path: Path, known: set[str]) -> Iterator[tuple[str, object, int]]:
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
    sections = {key.partition(".")[0] for key in known}
    seen: set[str] = set()
    for section_node, content_node in root.value:
        section, line = str(section_node.value), section_node.start_mark.line + 1
        if section not in sections:
            near = _did_you_mean(section, sections)
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


def _did_you_mean(key: str, known: Mapping[str, object] | set[str]) -> str:
    by_name = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.6)
    if not near:  # the right name under the wrong section, or under none
        last = difflib.get_close_matches(key.rpartition(".")[2], list(by_name), n=1, cutoff=0.75)
        near = [by_name[name] for name in last]
    if near:
        return f" Did you mean {near[0]!r}?"
    return " 'cocoseg config show' lists every key."


def _explain(error: ValidationError, origins: Mapping[str, str]) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"][:2])
        origin = origins.get(key, "default")
        what = problem["msg"].removeprefix("Value error, ")  # pydantic's word for our own texts
        lines.append(f"{key}: {what} (got {problem['input']!r}, from {origin})")
    return "\n".join(dict.fromkeys(lines))
