"""Classes: the map from category ids (COCO's have gaps) to train ids, with names and ignoring.

A *category id* is what an annotation names; a *train id* is what a mask holds: 0 is background,
1…N are the classes. Categories can be merged into one class, dropped to background or ignored.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .classes_file import (
    BACKGROUND,
    BACKGROUND_BIN,
    BACKGROUND_NAMES,
    IGNORE_BIN,
    IGNORE_NAMES,
    MOST_CLASSES,
    ClassRules,
    read_class_names,
    read_class_rules,
)
from .errors import ConfigError, DataError

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
    rules = None if classes == "auto" else read_class_rules(classes)
    kept, notes = [], []
    for source in sources:
        dummy = _dummy(source)
        if dummy is not None and rules is not None and _is_named(dummy, source, rules):
            dummy = None
        kept.append([c for c in source if c is not dummy])
        if dummy is not None:
            notes.append(
                f"category {dummy.name!r} (id 0) is left out: nothing is annotated as it, it is "
                "only their parent (Roboflow adds it)"
            )
    if rules is None:
        class_map = _own_classes(kept)
        notes += [note for source in kept for note in _notes_of_bins(source)]
    else:
        class_map = _from_rules(classes, rules, kept)
    if class_map.taxonomy.num_classes > MOST_CLASSES:
        raise ConfigError(
            f"--classes {classes}: {class_map.taxonomy.num_classes:,} classes with background; "
            f"a mask holds at most {MOST_CLASSES:,}: merge some in a classes file"
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
    return Taxonomy(tuple(SemanticClass(name) for name in read_class_names(classes)))


def is_coco(source: Sequence[Category]) -> bool:
    """Return whether these are exactly COCO's 80 categories, ids and names."""
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
                f"--classes coco: {', '.join(map(repr, strange[:5]))} is not a COCO category; "
                "use --classes auto, or a file that says where it goes"
            )
    maps = tuple({c.id: train_ids[c.name] for c in source} for source in sources)
    return ClassMap(coco_taxonomy(), maps)


def _is_named(dummy: Category, source: Sequence[Category], rules: ClassRules) -> bool:
    """Return whether a classes file speaks of Roboflow's head, and not of a child of its name."""
    alone = sum(c.name == dummy.name for c in source) == 1
    names = {dummy.id, _with_id(dummy), *([dummy.name] if alone else [])}
    return not names.isdisjoint(rules.members)


def _bin(category: Category) -> str | None:
    """Return where a category goes that only exists to name pixels of no class."""
    name = category.name.strip().casefold()
    if name in BACKGROUND_NAMES:
        return BACKGROUND_BIN
    return IGNORE_BIN if name in IGNORE_NAMES else None


def _notes_of_bins(source: Sequence[Category]) -> Iterator[str]:
    for category in source:
        place = _bin(category)
        if place is not None:
            means = "background (train id 0)" if place == BACKGROUND_BIN else "ignored"
            used = "its annotations are" if category.used else "no annotation has it; it is"
            yield (
                f"category {category.name!r} (id {category.id}) is not a class: {used} {means}; a "
                "classes file can make it one"
            )


def _with_id(category: Category) -> str:
    return f"{category.name} (id {category.id})"


def _distinct_names(source: Sequence[Category]) -> dict[int, str]:
    """Name the categories of one source apart: a doubled name gets its id behind it."""
    names = Counter(c.name for c in source)
    return {
        c.id: c.name if names[c.name] == 1 and c.name != BACKGROUND else _with_id(c)
        for c in sorted(source, key=lambda c: c.id)
    }


def _own_classes(sources: Sequence[Sequence[Category]]) -> ClassMap:
    ids_of: dict[str, set[int]] = {}  # insertion order is the order of train ids
    by_source = [_distinct_names([c for c in source if _bin(c) is None]) for source in sources]
    for names in by_source:
        for category_id, name in names.items():
            ids_of.setdefault(name, set()).add(category_id)
    things = (SemanticClass(name, tuple(sorted(ids))) for name, ids in ids_of.items())
    taxonomy = Taxonomy((SemanticClass(BACKGROUND), *things))
    train_ids = {name: i for i, name in enumerate(ids_of, start=1)}
    bins = {BACKGROUND_BIN: 0, IGNORE_BIN: taxonomy.ignore_index}
    maps = []
    for source, names in zip(sources, by_source, strict=True):
        one = {category_id: train_ids[name] for category_id, name in names.items()}
        one |= {c.id: bins[place] for c in source if (place := _bin(c)) is not None}
        maps.append(one)
    return ClassMap(taxonomy, tuple(maps))


def _spoken_of(source: Sequence[Category]) -> dict[str | int, list[Category]]:
    """Return what a classes file may call the categories of one source: id, name, name and id."""
    called: dict[str | int, list[Category]] = {}
    for category in source:
        for member in (category.id, category.name, _with_id(category)):
            called.setdefault(member, []).append(category)
    return called


def _from_rules(path: str, rules: ClassRules, sources: Sequence[Sequence[Category]]) -> ClassMap:
    by_source = [_distinct_names(source) for source in sources]
    called = [_spoken_of(source) for source in sources]
    target: dict[str | int, str] = {}  # what a category is called → class, or a bin
    for class_name, members in (*rules.classes.items(), *rules.bins.items()):
        for member in members:
            meant = [names.get(member, []) for names in called]
            if not any(meant):
                raise ConfigError(
                    f"{path}: {class_name}: unknown category {member!r}; there are "
                    f"{_listed(name for names in by_source for name in names.values())}"
                )
            if several := next((found for found in meant if len(found) > 1), None):
                raise ConfigError(
                    f"{path}: {class_name}: {len(several)} categories are called {member!r}: write "
                    f"{_listed(_with_id(category) for category in several)}"
                )
            if member in target:
                raise ConfigError(f"{path}: category {member!r} is in two places")
            target[member] = class_name
    train_ids = {name: i for i, name in enumerate(rules.classes, start=1)}
    draft = Taxonomy(tuple(SemanticClass(name) for name in (BACKGROUND, *rules.classes)))
    train_ids[BACKGROUND_BIN] = 0
    train_ids[IGNORE_BIN] = draft.ignore_index
    maps, painted = [], [set[int]() for _ in draft.classes]
    for source in sources:
        one: dict[int, int] = {}
        for category in sorted(source, key=lambda c: c.id):
            shown = f"category {category.name!r} (id {category.id})"
            members = (category.id, category.name, _with_id(category))
            places = {target[member] for member in members if member in target}
            if len(places) > 1:
                raise ConfigError(f"{path}: {shown} is in two places")
            place = places.pop() if places else rules.others
            if place is None:
                raise ConfigError(
                    f"{path}: says nothing of {shown}: put it into a class, or write 'others: "
                    "background' or 'others: ignore'"
                )
            one[category.id] = train_ids[place]
            if 0 < train_ids[place] < len(painted):
                painted[train_ids[place]].add(category.id)
        maps.append(one)
    classes = (
        SemanticClass(entry.name, tuple(sorted(ids)))
        for entry, ids in zip(draft.classes, painted, strict=True)
    )
    ranks = range(len(rules.priority), 0, -1)  # the first one named is on top
    priorities = {train_ids[name]: rank for name, rank in zip(rules.priority, ranks, strict=True)}
    return ClassMap(Taxonomy(tuple(classes)), tuple(maps), priorities)


def _listed(names: Iterable[str]) -> str:
    found = list(dict.fromkeys(names))
    more = f" and {len(found) - 20} more" if len(found) > 20 else ""
    return ", ".join(map(repr, found[:20])) + more
