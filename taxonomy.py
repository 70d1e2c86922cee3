"""Classes: the map from category ids (COCO's have gaps) to train ids, with names and ignoring.

A *category id* is what an annotation names; a *train id* is what a mask holds: 0 is background,
1…N are the classes. Categories can be merged into one class, dropped to background or ignored.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from .config import parse_yaml
from .errors import ConfigError, DataError
from .storage import locate

BACKGROUND = "background"
_MOST_CLASSES = 65535  # in 16 bits, beside the ignore index

# COCO's 80 "thing" categories: id, name, supercategory, ascending by id.
# Source: `categories` of instances_{train,val}{2014,2017}.json (cocodataset.org).
COCO_CATEGORIES: tuple[tuple[int, str, str], ...] = (
    (1, "person", "person"),
    (2, "bicycle", "vehicle"),
    (3, "car", "vehicle"),
    (4, "motorcycle", "vehicle"),
    (5, "airplane", "vehicle"),
    (6, "bus", "vehicle"),
    (7, "train", "vehicle"),
    (8, "truck", "vehicle"),
    (9, "boat", "vehicle"),
    (10, "traffic light", "outdoor"),
    (11, "fire hydrant", "outdoor"),
    (13, "stop sign", "outdoor"),
    (14, "parking meter", "outdoor"),
    (15, "bench", "outdoor"),
    (16, "bird", "animal"),
    (17, "cat", "animal"),
    (18, "dog", "animal"),
    (19, "horse", "animal"),
    (20, "sheep", "animal"),
    (21, "cow", "animal"),
    (22, "elephant", "animal"),
    (23, "bear", "animal"),
    (24, "zebra", "animal"),
    (25, "giraffe", "animal"),
    (27, "backpack", "accessory"),
    (28, "umbrella", "accessory"),
    (31, "handbag", "accessory"),
    (32, "tie", "accessory"),
    (33, "suitcase", "accessory"),
    (34, "frisbee", "sports"),
    (35, "skis", "sports"),
    (36, "snowboard", "sports"),
    (37, "sports ball", "sports"),
    (38, "kite", "sports"),
    (39, "baseball bat", "sports"),
    (40, "baseball glove", "sports"),
    (41, "skateboard", "sports"),
    (42, "surfboard", "sports"),
    (43, "tennis racket", "sports"),
    (44, "bottle", "kitchen"),
    (46, "wine glass", "kitchen"),
    (47, "cup", "kitchen"),
    (48, "fork", "kitchen"),
    (49, "knife", "kitchen"),
    (50, "spoon", "kitchen"),
    (51, "bowl", "kitchen"),
    (52, "banana", "food"),
    (53, "apple", "food"),
    (54, "sandwich", "food"),
    (55, "orange", "food"),
    (56, "broccoli", "food"),
    (57, "carrot", "food"),
    (58, "hot dog", "food"),
    (59, "pizza", "food"),
    (60, "donut", "food"),
    (61, "cake", "food"),
    (62, "chair", "furniture"),
    (63, "couch", "furniture"),
    (64, "potted plant", "furniture"),
    (65, "bed", "furniture"),
    (67, "dining table", "furniture"),
    (70, "toilet", "furniture"),
    (72, "tv", "electronic"),
    (73, "laptop", "electronic"),
    (74, "mouse", "electronic"),
    (75, "remote", "electronic"),
    (76, "keyboard", "electronic"),
    (77, "cell phone", "electronic"),
    (78, "microwave", "appliance"),
    (79, "oven", "appliance"),
    (80, "toaster", "appliance"),
    (81, "sink", "appliance"),
    (82, "refrigerator", "appliance"),
    (84, "book", "indoor"),
    (85, "clock", "indoor"),
    (86, "vase", "indoor"),
    (87, "scissors", "indoor"),
    (88, "teddy bear", "indoor"),
    (89, "hair drier", "indoor"),
    (90, "toothbrush", "indoor"),
)


@dataclass(frozen=True, slots=True)
class Category:
    """A category as one annotation file names it."""

    id: int
    name: str
    supercategory: str | None = None
    used: bool = True
    """Whether any annotation is of it."""


@dataclass(frozen=True, slots=True)
class SemanticClass:
    """One class of the masks; its train id is its place in `Taxonomy.classes`."""

    name: str
    category_ids: tuple[int, ...] = ()
    """Category ids that were painted as this class, ascending; several when merged."""


@dataclass(frozen=True, slots=True)
class Taxonomy:
    """The classes of a data set, background first."""

    classes: tuple[SemanticClass, ...]

    @property
    def num_classes(self) -> int:
        """Number of train ids, background included (81 for COCO)."""
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names by train id."""
        return tuple(entry.name for entry in self.classes)

    @property
    def ignore_index(self) -> int:
        """Mask value of pixels that count neither in the loss nor in a score."""
        return 255 if self.num_classes <= 255 else 65535

    @property
    def bits(self) -> int:
        """Bits a mask pixel: 8, or 16 beyond 254 classes."""
        return 8 if self.ignore_index == 255 else 16

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that manifests and checkpoints hold."""
        return {
            "ignore_index": self.ignore_index,
            "classes": [
                {"train_id": train_id, "name": entry.name, "category_ids": list(entry.category_ids)}
                for train_id, entry in enumerate(self.classes)
            ],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Taxonomy":
        """Read what `to_dict` wrote.

        Raises
        ------
        DataError
            If train ids are not 0, 1, 2 … in order or a field is missing.
        """
        try:
            entries = content["classes"]
            classes = tuple(
                SemanticClass(str(entry["name"]), tuple(int(c) for c in entry["category_ids"]))
                for entry in entries
            )
            train_ids = [entry["train_id"] for entry in entries]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"taxonomy: cannot be read: {error!r}") from None
        if not classes or train_ids != list(range(len(classes))):
            raise DataError(f"taxonomy: train ids must be 0, 1, 2 … in order, not {train_ids}")
        return cls(classes)


def coco_taxonomy() -> Taxonomy:
    """Return COCO's 81 classes: background and 1…80 in ascending category id."""
    things = (SemanticClass(name, (category_id,)) for category_id, name, _ in COCO_CATEGORIES)
    return Taxonomy((SemanticClass(BACKGROUND), *things))


@dataclass(frozen=True, slots=True)
class ClassMap:
    """A taxonomy and, for each source, where its category ids go."""

    taxonomy: Taxonomy
    train_ids: tuple[Mapping[int, int], ...]
    """By source: category id → train id (0 background, or the ignore index)."""
    priorities: Mapping[int, int] = field(default_factory=dict)
    """Train id → rank in painting: a higher one is on top whatever its area. Absent: 0."""
    notes: tuple[str, ...] = ()
    """What was decided and may surprise, for people."""


def resolve_classes(classes: str, sources: Sequence[Sequence[Category]]) -> ClassMap:
    """Decide the classes of a data set from ``--classes`` and its sources' categories.

    Parameters
    ----------
    classes
        ``auto`` (COCO's 80 when every source has exactly these, else the sources' own in ascending
        id), ``coco`` (by name, whatever the ids), or the path of a classes file
        (``docs/classes.md``).
    sources
        The categories of each annotation file. The same name in two sources is the same class.

    Raises
    ------
    ConfigError
        If a classes file names an unknown category, leaves one out, or cannot be read; if there
        are more classes than a mask of 16 bits holds.
    DataError
        If ``coco`` meets a name that is not COCO's.
    """
    if classes == "coco":
        return _by_coco_name(sources)
    if classes == "auto" and all(is_coco(source) for source in sources):
        return _by_coco_name(sources)
    rules = None if classes == "auto" else _read_classes_file(classes)
    kept, notes = [], []
    for source in sources:
        dummy = _dummy(source)
        if dummy is not None and rules is not None and rules.names(dummy):
            dummy = None
        kept.append([c for c in source if c is not dummy])
        if dummy is not None:
            notes.append(
                f"category {dummy.name!r} (id 0) is left out: nothing is annotated as it, it only "
                "heads the others (Roboflow adds it)"
            )
    class_map = _own_classes(kept) if rules is None else _from_rules(classes, rules, kept)
    if class_map.taxonomy.num_classes > _MOST_CLASSES:
        raise ConfigError(
            f"--classes {classes}: {class_map.taxonomy.num_classes:,} classes with background; "
            f"a mask holds at most {_MOST_CLASSES:,}: merge some in a classes file"
        )
    return replace(class_map, notes=tuple(dict.fromkeys(notes)))


def mask_taxonomy(classes: str) -> Taxonomy:
    """Return the classes of masks that hold train ids already.

    Parameters
    ----------
    classes
        ``coco`` (81 classes), or the path of a YAML or JSON file: the names in train-id order,
        background first, or a mapping of train ids to names without gaps.

    Raises
    ------
    ConfigError
        If the file cannot be read, or leaves a train id without a name, or two with the same.
    """
    if classes == "coco":
        return coco_taxonomy()
    content = _read_yaml(classes)
    if isinstance(content, dict):
        content = _in_order(classes, content)
    if not isinstance(content, list) or len(content) < 2:
        raise ConfigError(
            f"{classes}: expected the names of two or more classes in the order of the train ids, "
            "'- background' first, or lines 'train id: name'"
        )
    if len(content) > _MOST_CLASSES:
        raise ConfigError(f"{classes}: {len(content)} classes; at most {_MOST_CLASSES}")
    ids: dict[str, int] = {}
    for train_id, name in enumerate(content):
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"{classes}: train id {train_id}: {name!r} is no name; quote it")
        if ids.setdefault(name, train_id) < train_id:
            both = f"{ids[name]} and {train_id}"
            raise ConfigError(f"{classes}: train ids {both} are both called {name!r}")
    return Taxonomy(tuple(SemanticClass(name) for name in content))


def _in_order(path: str, names: Mapping[object, object]) -> list[object]:
    """Turn train id → name into a list; JSON knows no keys but strings."""
    expected = (
        "expected a list of names, or lines 'train id: name' for 0, 1, 2 … without gaps (the "
        "ignore index, 255 or beyond 254 classes 65535, has no name)"
    )
    by_id: dict[int, object] = {}
    for key, name in names.items():
        if not str(key).isdecimal() or int(str(key)) in by_id:
            raise ConfigError(f"{path}: {key!r} is no train id, or is given twice; {expected}")
        by_id[int(str(key))] = name
    missing = next(train_id for train_id in range(len(by_id) + 1) if train_id not in by_id)
    if missing < len(by_id):
        raise ConfigError(f"{path}: train id {missing} has no name; {expected}")
    return [by_id[train_id] for train_id in range(missing)]


def is_coco(source: Sequence[Category]) -> bool:
    """Tell whether these are exactly COCO's 80 categories, ids and names."""
    coco = {(category_id, name) for category_id, name, _ in COCO_CATEGORIES}
    return {(c.id, c.name) for c in source} == coco


def _dummy(source: Sequence[Category]) -> Category | None:
    """Return the unused category 0 under which Roboflow's exports put all the others."""
    head = next((c for c in source if c.id == 0 and not c.used), None)
    others = [c for c in source if c is not head]
    if head is None or not others or any(c.supercategory != head.name for c in others):
        return None
    return head


def _by_coco_name(sources: Sequence[Sequence[Category]]) -> ClassMap:
    train_ids = {name: i for i, (_, name, _) in enumerate(COCO_CATEGORIES, start=1)}
    for source in sources:
        strange = [c.name for c in source if c.name not in train_ids]
        if strange:
            raise DataError(
                f"--classes coco: {', '.join(map(repr, strange[:5]))} is no COCO category; "
                "use --classes auto, or a file that says where it goes"
            )
    maps = tuple({c.id: train_ids[c.name] for c in source} for source in sources)
    return ClassMap(coco_taxonomy(), maps)


def _distinct_names(source: Sequence[Category]) -> dict[int, str]:
    """Name the categories of one source apart: a doubled name gets its id behind it."""
    names = Counter(c.name for c in source)
    return {
        c.id: c.name if names[c.name] == 1 and c.name != BACKGROUND else f"{c.name} (id {c.id})"
        for c in sorted(source, key=lambda c: c.id)
    }


def _own_classes(sources: Sequence[Sequence[Category]]) -> ClassMap:
    ids_of: dict[str, set[int]] = {}  # insertion order is the order of train ids
    by_source = [_distinct_names(source) for source in sources]
    for names in by_source:
        for category_id, name in names.items():
            ids_of.setdefault(name, set()).add(category_id)
    things = (SemanticClass(name, tuple(sorted(ids))) for name, ids in ids_of.items())
    train_ids = {name: i for i, name in enumerate(ids_of, start=1)}
    maps = tuple(
        {category_id: train_ids[name] for category_id, name in n.items()} for n in by_source
    )
    return ClassMap(Taxonomy((SemanticClass(BACKGROUND), *things)), maps)


def _from_rules(path: str, rules: "_Rules", sources: Sequence[Sequence[Category]]) -> ClassMap:
    by_source = [_distinct_names(source) for source in sources]
    known: set[str | int] = {name for names in by_source for name in names.values()}
    known |= {category_id for names in by_source for category_id in names}
    target: dict[str | int, str] = {}  # category name or id → class, or a bin
    for class_name, members in (*rules.classes.items(), *rules.bins.items()):
        for member in members:
            if member not in known:
                raise ConfigError(f"{path}: {class_name}: unknown category {member!r}")
            if member in target:
                raise ConfigError(f"{path}: category {member!r} is in two places")
            target[member] = class_name
    train_ids = {name: i for i, name in enumerate(rules.classes, start=1)}
    draft = Taxonomy(tuple(SemanticClass(name) for name in (BACKGROUND, *rules.classes)))
    train_ids[_BACKGROUND_BIN] = 0
    train_ids[_IGNORE_BIN] = draft.ignore_index
    maps, painted = [], [set[int]() for _ in draft.classes]
    for names in by_source:
        one: dict[int, int] = {}
        for category_id, name in names.items():
            by_name, by_id = target.get(name), target.get(category_id)
            if by_name and by_id and by_name != by_id:
                raise ConfigError(f"{path}: category {name!r} (id {category_id}) is in two places")
            place = by_name or by_id or rules.others
            if place is None:
                raise ConfigError(
                    f"{path}: says nothing of category {name!r} (id {category_id}): put it into a "
                    "class, or write 'others: background' or 'others: ignore'"
                )
            one[category_id] = train_ids[place]
            if 0 < train_ids[place] < len(painted):
                painted[train_ids[place]].add(category_id)
        maps.append(one)
    classes = (
        SemanticClass(entry.name, tuple(sorted(ids)))
        for entry, ids in zip(draft.classes, painted, strict=True)
    )
    ranks = range(len(rules.priority), 0, -1)  # the first one named is on top
    priorities = {train_ids[name]: rank for name, rank in zip(rules.priority, ranks, strict=True)}
    return ClassMap(Taxonomy(tuple(classes)), tuple(maps), priorities)


_BACKGROUND_BIN, _IGNORE_BIN = "background:", "ignore:"  # a colon keeps them apart from names


@dataclass(frozen=True, slots=True)
class _Rules:
    classes: Mapping[str, tuple[str | int, ...]]
    """By class, the names or ids of its categories."""
    bins: Mapping[str, tuple[str | int, ...]]
    others: str | None
    priority: tuple[str, ...]

    def names(self, category: Category) -> bool:
        """Tell whether a category is spoken of."""
        members = {
            member for part in (self.classes, self.bins) for m in part.values() for member in m
        }
        return category.name in members or category.id in members


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


def _read_yaml(path: str) -> Any:
    try:
        return parse_yaml(locate(path).read_bytes(), _UniqueKeys)
    except ConfigError as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from None


def _read_classes_file(path: str) -> _Rules:
    content = _read_yaml(path)
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
            raise ConfigError(f"{path}: priority: {name!r} is no class above, or is named twice")
    return _Rules(classes, bins, f"{others}:" if others else None, priority)


def _members(path: str, name: object, value: object) -> tuple[str | int, ...]:
    """Return category names or ids from ``name``, ``[names]`` or nothing (its own)."""
    if value is None:
        return (str(name),)
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, bool) or not isinstance(item, (str, int)) for item in items):
        raise ConfigError(f"{path}: {name}: expected category names or ids, got {value!r}")
    return tuple(items)
