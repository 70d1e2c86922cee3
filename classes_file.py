"""Files that say what the classes are: rules for ``prepare``, and names for ``index``."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from .config import parse_yaml
from .errors import ConfigError
from .storage import locate

BACKGROUND = "background"
MOST_CLASSES = 65535  # in 16 bits, beside the ignore index

BACKGROUND_BIN, IGNORE_BIN = "background:", "ignore:"  # a colon keeps them apart from names

# What exports of labelme, VOC and CVAT call pixels of no class, in any case.
BACKGROUND_NAMES = {"background", "_background_", "__background__", "unlabeled", "unlabelled"}
IGNORE_NAMES = {"ignore", "_ignore_", "__ignore__", "ignored", "void"}


@dataclass(frozen=True, slots=True)
class ClassRules:
    """A classes file: where the categories go."""

    classes: Mapping[str, tuple[str | int, ...]]
    """By class, the names or ids of its categories."""
    bins: Mapping[str, tuple[str | int, ...]]
    """The same for `BACKGROUND_BIN` and `IGNORE_BIN`."""
    others: str | None
    """The bin of all other categories, if any."""
    priority: tuple[str, ...]
    """Classes on top of the others, the topmost first."""

    @property
    def members(self) -> frozenset[str | int]:
        """All names and ids of categories in it."""
        parts = (*self.classes.values(), *self.bins.values())
        return frozenset(member for members in parts for member in members)


def read_class_rules(path: str) -> ClassRules:
    """Read a classes file (``docs/classes.md``).

    Raises
    ------
    ConfigError
        If it cannot be read, or is not of that form.
    """
    content = read_yaml(path)
    if not isinstance(content, dict) or not isinstance(content.get("classes"), dict):
        raise ConfigError(
            f"{path}: expected 'classes:' with one line a class, 'name: [categories]'"
        )
    unknown = set(content) - {"classes", "background", "ignore", "others", "priority"}
    if unknown:
        raise ConfigError(f"{path}: unknown key {sorted(map(str, unknown))[0]!r}")
    others = content.get("others")
    if others not in (None, "background", "ignore"):
        raise ConfigError(f"{path}: others: {others!r} is neither 'background' nor 'ignore'")
    classes = {str(name): _members(path, name, value) for name, value in content["classes"].items()}
    if BACKGROUND in classes:
        raise ConfigError(
            f"{path}: 'background' is train id 0 by itself; list it under 'background:'"
        )
    bins = {
        f"{name}:": _members(path, name, content.get(name) or [])
        for name in ("background", "ignore")
    }
    priority = tuple(map(str, _members(path, "priority", content.get("priority") or [])))
    for name in priority:
        if name not in classes or priority.count(name) > 1:
            raise ConfigError(f"{path}: priority: {name!r} is not a class above, or is named twice")
    return ClassRules(classes, bins, f"{others}:" if others else None, priority)


def _members(path: str, name: object, value: object) -> tuple[str | int, ...]:
    """Return category names or ids from ``name``, ``[names]`` or nothing (its own)."""
    if value is None:
        return (str(name),)
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, bool) or not isinstance(item, (str, int)) for item in items):
        raise ConfigError(f"{path}: {name}: expected category names or ids, got {value!r}")
    return tuple(items)


def read_class_names(path: str) -> list[str]:
    """Read the names of classes in the order of their train ids.

    Names of ignored pixels are left out: those of 255 or 65535, of -1, and ``__ignore__`` at the
    head of the list, where labelme has it.

    Raises
    ------
    ConfigError
        If the file cannot be read, or leaves a train id without a name, or two with the same.
    """
    content = read_yaml(path)
    if isinstance(content, dict):
        content = _in_order(path, content)
    elif isinstance(content, list) and len(content) > 1 and _is_ignored(content[0]):
        content = content[1:]
    if not isinstance(content, list) or len(content) < 2:
        raise ConfigError(
            f"{path}: expected the names of two or more classes in the order of the train ids, "
            "'- background' first, or lines 'train id: name'"
        )
    if len(content) > MOST_CLASSES:
        raise ConfigError(f"{path}: {len(content)} classes; at most {MOST_CLASSES}")
    ids: dict[str, int] = {}
    for train_id, name in enumerate(content):
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"{path}: train id {train_id}: {name!r} is not a name; quote it")
        if ids.setdefault(name, train_id) < train_id:
            both = f"{ids[name]} and {train_id}"
            raise ConfigError(f"{path}: train ids {both} are both called {name!r}")
    return list(content)


def _is_ignored(name: object) -> bool:
    return isinstance(name, str) and name.strip().casefold() in IGNORE_NAMES


def _in_order(path: str, names: Mapping[object, object]) -> list[object]:
    """Turn train id → name into a list; JSON knows no keys but strings."""
    expected = (
        "expected a list of names, or lines 'train id: name' for 0, 1, 2 … without gaps (the "
        "ignore index, 255 or beyond 254 classes 65535, needs no name)"
    )
    by_id: dict[int, object] = {}
    for key, name in names.items():
        if str(key) == "-1" and _is_ignored(name):
            continue
        if not str(key).isdecimal() or int(str(key)) in by_id:
            raise ConfigError(f"{path}: {key!r} is not a train id, or is given twice; {expected}")
        by_id[int(str(key))] = name
    for ignore_index in (255, 65535):
        if ignore_index - 1 not in by_id and _is_ignored(by_id.get(ignore_index)):
            del by_id[ignore_index]
    missing = next(train_id for train_id in range(len(by_id) + 1) if train_id not in by_id)
    if missing < len(by_id):
        raise ConfigError(f"{path}: train id {missing} has no name; {expected}")
    return [by_id[train_id] for train_id in range(missing)]


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping."""
        content = super().construct_mapping(node, deep)
        if len(content) < len(node.value):
            keys = Counter(self.construct_object(key, deep=True) for key, _ in node.value)
            raise yaml.constructor.ConstructorError(
                None, None, f"{keys.most_common(1)[0][0]!r} is given twice", node.start_mark
            )
        return content


def read_yaml(path: str) -> Any:
    """Return the content of a YAML or JSON file in which no key is given twice.

    Raises
    ------
    ConfigError
        If it cannot be read.
    """
    try:
        return parse_yaml(locate(path).read_bytes(), _UniqueKeys)
    except ConfigError as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from None
