"""What the values, or colors, of label images mean: the table between them and train ids."""

import csv
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..classes_file import (
    BACKGROUND,
    BACKGROUND_NAMES,
    IGNORE_NAMES,
    read_class_rules,
    read_yaml,
)
from ..colors import VOID_COLOR, voc_colormap
from ..errors import ConfigError
from ..shards.png import Mask
from ..storage import locate
from ..taxonomy import ClassMap, SemanticClass, Taxonomy
from .label_presets import CITYSCAPES, CITYSCAPES_IDS, CITYSCAPES_IGNORED_COLORS, VOC
from .outlines import BadAnnotation

PRESETS = ("voc", "cityscapes")
_IGNORE = "ignore"
_MAX_VALUE = 65535
_NO_COLOR = 0xFFFFFFFF  # above every 0xRRGGBB
_SHOWN = 4  # unknown values in a message


class LabelValues(msgspec.Struct, frozen=True):
    """Where the values and colors of label images go."""

    values: Mapping[int, int]
    """Gray value or palette index → train id; empty where only colors have a meaning."""
    colors: Mapping[int, int]
    """0xRRGGBB → train id; empty where only values have a meaning."""
    others: int | None
    """Train id of everything else; None: an image that contains it is quarantined."""
    ignores_largest: bool
    """Whether 255 in 8 bits, and 65535 in 16 bits, is ignored where it is not in `values`."""
    ignore_index: int

    def to_mask(self, labels: NDArray[np.uint8] | NDArray[np.uint16]) -> Mask:
        """Map gray values or palette indices to train ids.

        Parameters
        ----------
        labels
            Shape (H, W).

        Returns
        -------
        ndarray
            Train ids, shape (H, W), uint8, or uint16 when the ignore index is 65535.

        Raises
        ------
        BadAnnotation
            ``unknown-value``.
        """
        largest = int(np.iinfo(labels.dtype).max)
        known = dict(self.values)
        if self.ignores_largest:
            known.setdefault(largest, self.ignore_index)
        found = np.flatnonzero(np.bincount(labels.ravel(), minlength=1)).tolist()
        self._refuse_unlisted(str(value) for value in found if value not in known)
        table = np.full(largest + 1, self.others or 0, self._dtype)
        for value in found:
            table[value] = known.get(value, table[value])
        mask: Any = table[labels]
        return cast(Mask, mask)

    def to_mask_by_color(self, colors: NDArray[np.uint32]) -> Mask:
        """Map colors to train ids.

        Parameters
        ----------
        colors
            0xRRGGBB, shape (H, W).

        Returns
        -------
        ndarray
            As `to_mask`.

        Raises
        ------
        BadAnnotation
            ``unknown-value``.
        """
        known = np.array([*sorted(self.colors), _NO_COLOR], np.uint32)
        places = np.searchsorted(known, colors)
        unlisted = known[places] != colors
        if unlisted.any():
            self._refuse_unlisted(map(color_text, np.unique(colors[unlisted]).tolist()))
            places[unlisted] = len(known) - 1
        table = [*(self.colors[color] for color in sorted(self.colors)), self.others or 0]
        mask: Any = np.array(table, self._dtype)[places]
        return cast(Mask, mask)

    @property
    def _dtype(self) -> type[np.uint8] | type[np.uint16]:
        return np.uint8 if self.ignore_index == 255 else np.uint16

    def _refuse_unlisted(self, values: Iterable[str]) -> None:
        unlisted = list(values)
        if unlisted and self.others is None:
            more = f" and {len(unlisted) - _SHOWN} more" if len(unlisted) > _SHOWN else ""
            raise BadAnnotation(
                "unknown-value",
                f"the mask contains {', '.join(unlisted[:_SHOWN])}{more}, not listed in --classes",
            )


@dataclass(frozen=True, slots=True)
class LabelClasses:
    """Classes of label images."""

    class_map: ClassMap
    """`ClassMap.train_ids` holds the gray values, once for each source."""
    values: LabelValues


def color_text(color: int) -> str:
    """Write 0xRRGGBB as ``#rrggbb``."""
    return f"#{color:06x}"


def classes_of_values(largest: int, sources: int, notes: Iterable[str] = ()) -> LabelClasses:
    """Take the values for train ids: 0 is background, the others are classes up to `largest`."""
    names = {value: f"class {value}" for value in range(1, largest + 1)}
    return _from_table({0: BACKGROUND, **names}, {}, sources, notes)


def named_classes(classes: str, mask_suffix: str, sources: int) -> LabelClasses:
    """Read the classes of label images from ``--classes``.

    Parameters
    ----------
    classes
        ``voc``, ``cityscapes``, or a file (docs/classes.md): a table of values or colors and
        names in YAML, JSON or CSV, CVAT's ``labelmap.txt``, or a classes file whose members are
        values or colors.
    mask_suffix
        Of the file names; it tells Cityscapes' ``labelTrainIds`` from ``labelIds``.
    sources
        Number of folders.

    Raises
    ------
    ConfigError
        If the file cannot be read, or gives a value twice.
    """
    if classes == "voc":
        names = {**dict(enumerate((BACKGROUND, *VOC))), 255: _IGNORE}
        palette = {_packed(voc_colormap()[value]): names[value] for value in range(1 + len(VOC))}
        return _from_table(names, {**palette, _packed(VOID_COLOR): _IGNORE}, sources, ())
    if classes == "cityscapes":
        return _cityscapes("labelTrainIds" in mask_suffix, sources)
    if classes.lower().endswith((".csv", ".txt")):
        pairs = _read_rows(classes)
    else:
        content = read_yaml(classes)
        if isinstance(content, dict) and isinstance(content.get("classes"), dict):
            return _from_rules(classes, sources)
        pairs = _pairs(classes, content)
    values: dict[int, str] = {}
    colors: dict[int, str] = {}
    for key, name in pairs:
        _enter(classes, values, colors, key, name)
    notes = []
    for table, what in ((values, "value 0"), (colors, "color #000000")):
        if table and 0 not in table:
            table[0] = BACKGROUND
            notes.append(f"{what} is not in {classes}: it is background")
    return _from_table(values, colors, sources, notes)


def _cityscapes(train_ids: bool, sources: int) -> LabelClasses:
    if train_ids:
        values = {number: name for number, (name, *_) in enumerate(CITYSCAPES)}
        values[255] = _IGNORE
    else:
        values = dict.fromkeys(CITYSCAPES_IDS, _IGNORE)
        values |= {label: name for name, label, _ in CITYSCAPES}
    colors = {color: name for name, _, color in CITYSCAPES}
    colors |= dict.fromkeys(CITYSCAPES_IGNORED_COLORS, _IGNORE)
    order = [name for name, *_ in CITYSCAPES]
    # labelIds have no 255, labelTrainIds do: only this tells that one was taken for the other.
    return _from_table(values, colors, sources, (), order, ignores_largest=False)


def _from_table(
    values: Mapping[int, str],
    colors: Mapping[int, str],
    sources: int,
    notes: Iterable[str],
    order: Iterable[str] = (),
    ignores_largest: bool = True,
) -> LabelClasses:
    """Give train ids to the names: background first if there is one, then by their values."""
    values = {value: _plain(values[value]) for value in sorted(values)}
    colors = {color: _plain(name) for color, name in colors.items()}  # in the order of the file
    names = list(dict.fromkeys((*order, *values.values(), *colors.values())))
    names = [name for name in names if name != _IGNORE]
    names.sort(key=lambda name: name != BACKGROUND)  # stable
    return _classes(names, values, colors, sources, notes, None, ignores_largest)


def _classes(
    names: list[str],
    values: Mapping[int, str],
    colors: Mapping[int, str],
    sources: int,
    notes: Iterable[str],
    others: str | None,
    ignores_largest: bool = True,
) -> LabelClasses:
    members: dict[str, list[int]] = {name: [] for name in (*names, _IGNORE)}
    for value, name in values.items():
        members[name].append(value)
    taxonomy = Taxonomy(
        tuple(
            SemanticClass(name, () if name == BACKGROUND else tuple(sorted(members[name])))
            for name in names
        )
    )
    train_ids = {name: number for number, name in enumerate(names)}
    train_ids[_IGNORE] = taxonomy.ignore_index
    by_value = {value: train_ids[name] for value, name in values.items()}
    by_color = {color: train_ids[name] for color, name in colors.items()}
    return LabelClasses(
        ClassMap(taxonomy, (by_value,) * sources, notes=tuple(notes)),
        LabelValues(
            by_value,
            by_color,
            None if others is None else train_ids[others],
            ignores_largest,
            taxonomy.ignore_index,
        ),
    )


def _plain(name: str) -> str:
    """Return one spelling of what means background, and of what means ignored."""
    lower = name.strip().lower()
    if lower in IGNORE_NAMES:
        return _IGNORE
    return BACKGROUND if lower in BACKGROUND_NAMES else name.strip()


# ---- files


def _from_rules(path: str, sources: int) -> LabelClasses:
    """Read a classes file whose members are values and colors instead of categories."""
    rules = read_class_rules(path)
    if rules.priority:
        raise ConfigError(f"{path}: priority: label images do not overlap")
    values: dict[int, str] = {}
    colors: dict[int, str] = {}
    for name, members in (*rules.classes.items(), *rules.bins.items()):
        for member in members:
            _enter(path, values, colors, member, name.removesuffix(":"))
    names = [BACKGROUND, *rules.classes]
    for table in (values, colors):
        if table:
            table.setdefault(0, BACKGROUND)
    others = rules.others.removesuffix(":") if rules.others else None
    return _classes(names, values, colors, sources, (), others)


def _pairs(path: str, content: object) -> list[tuple[object, str]]:
    """Return (value or color, name) of a list of names, or of a mapping in either direction."""
    if isinstance(content, list):
        content = dict(enumerate(content))
    if not isinstance(content, dict) or not content:
        raise ConfigError(
            f"{path}: expected lines 'value: name' or '\"#rrggbb\": name', a list of names in the "
            "order of their values, or 'classes:' with 'name: [values]'"
        )
    if all(_key(key) is not None for key in content):
        pairs = list(content.items())
    else:
        pairs = [(key, name) for name, key in content.items()]
    for key, name in pairs:
        if not isinstance(name, (str, int, float)) or not str(name).strip():
            raise ConfigError(f"{path}: {key!r}: {name!r} is not a name")
    return [(key, str(name)) for key, name in pairs]


def _enter(
    path: str, values: dict[int, str], colors: dict[int, str], key: object, name: str
) -> None:
    parsed = _key(key)
    if parsed is None:
        raise ConfigError(
            f"{path}: {name}: {key!r} is neither a value (0 to {_MAX_VALUE}) nor a color "
            "('#rrggbb' or [r, g, b])"
        )
    is_color, number = parsed
    table = colors if is_color else values
    if table.setdefault(number, name) != name:
        raise ConfigError(f"{path}: {key!r} is given to both {table[number]!r} and {name!r}")


_COLOR = re.compile(r"#([0-9a-fA-F]{6})|[(\[]?\s*(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})\s*[)\]]?")


def _key(key: object) -> tuple[bool, int] | None:
    """Read a value or a color; return whether it is a color, and its number."""
    if isinstance(key, (list, tuple)):
        if len(key) != 3 or not all(isinstance(part, int) for part in key):
            return None
        key = " ".join(map(str, key))
    if isinstance(key, bool) or not isinstance(key, (int, str)):
        return None
    text = str(key).strip()
    if text.isascii() and text.isdecimal():
        return (False, int(text)) if len(text) <= 5 and int(text) <= _MAX_VALUE else None
    match = _COLOR.fullmatch(text)
    if match is None:
        return None
    if match[1]:
        return True, int(match[1], 16)
    parts = [int(match[place]) for place in (2, 3, 4)]
    return (True, _packed(parts)) if max(parts) <= 255 else None


def _packed(color: Iterable[Any]) -> int:
    red, green, blue = map(int, color)
    return red << 16 | green << 8 | blue


_CVAT_LINE = re.compile(r"([^:]+):(\d+,\s*\d+,\s*\d+):[^:]*:[^:]*")


def _read_rows(path: str) -> list[tuple[object, str]]:
    """Return (value or color, name) of the lines of a CSV, or of CVAT's ``labelmap.txt``."""
    try:
        text = locate(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not valid UTF-8") from None
    pairs: list[tuple[object, str]] = []
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    for number, line in enumerate(lines):
        if match := _CVAT_LINE.fullmatch(line.strip()):
            pairs.append((match[2], match[1]))
        else:
            cells = [cell.strip() for cell in next(csv.reader(io.StringIO(line)))]
            numbers = [cell for cell in cells if _key(cell) is not None]
            names = [cell for cell in cells if cell and _key(cell) is None]
            if number == 0 and not numbers:
                continue  # the titles of the columns
            if len(names) != 1 or len(numbers) not in (1, 3):
                raise ConfigError(
                    f"{path}: {line[:80]!r}: expected a name with a value, or with red, green, blue"
                )
            pairs.append((" ".join(numbers), names[0]))
    return pairs
