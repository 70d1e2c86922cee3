"""The classes of a data set: how many pixels and instances each has, and its color."""

from collections.abc import Iterator, Mapping, Sequence

from ..colors import VOID_COLOR, distinct_colormap
from ..taxonomy import Taxonomy
from .blocks import Block, Cell, Number, Paragraph, Table, Tag
from .charts import Bar, Bars
from .markup import shortened

_ROWS = 2000  # of the table: 280 bytes each
_UNSEEN = 40  # names in the sentence of those without instances
_LETTERS = 120  # of a name


def class_tag(taxonomy: Taxonomy, train_id: int) -> Tag:
    """Return the name and the color that a train id, or the ignore index, has in the pictures."""
    if train_id == taxonomy.ignore_index:
        return Tag("(ignored)", _hex(VOID_COLOR))
    color = distinct_colormap(taxonomy.ignore_index + 1)[train_id].tolist()
    return Tag(shortened(taxonomy.classes[train_id].name, _LETTERS), _hex(color))


def _hex(color: Sequence[int]) -> str:
    return f"#{bytes(color).hex()}"


def class_overview(
    taxonomy: Taxonomy,
    pixels: Sequence[int],
    ignored: int,
    instances: Mapping[str, Sequence[int]],
) -> Iterator[Block]:
    """Yield bars of the pixels, a table of everything, and what never occurs.

    Parameters
    ----------
    pixels
        By train id; `ignored` are those of the ignore index.
    instances
        Column heading → instances by train id. The first column counts all; without any, pixels
        decide what never occurs.
    """
    falling = sorted(range(1, taxonomy.num_classes), key=lambda train_id: -pixels[train_id])
    bars = [
        Bar(tag.text, pixels[train_id], tag.color)
        for train_id in falling
        if pixels[train_id]
        for tag in [class_tag(taxonomy, train_id)]
    ]
    if bars:
        yield Bars("Pixels by class, without background.", bars, log=True)
    listed = [0, *sorted(falling[: _ROWS - 1])]
    yield _table(taxonomy, listed, pixels, ignored, instances)
    if len(listed) < taxonomy.num_classes:
        hidden = taxonomy.num_classes - len(listed)
        yield Paragraph(f"Not listed: {hidden:,} classes with the fewest pixels.")
    counted = next(iter(instances.values()), pixels)
    unseen = [i for i in range(1, taxonomy.num_classes) if not counted[i]]
    if unseen:
        names = ", ".join(class_tag(taxonomy, train_id).text for train_id in unseen[:_UNSEEN])
        more = " …" if len(unseen) > _UNSEEN else ""
        what = "instances" if instances else "pixels"
        yield Paragraph(f"Without {what}: {len(unseen):,} ({names}{more}).")


def _table(
    taxonomy: Taxonomy,
    train_ids: Sequence[int],
    pixels: Sequence[int],
    ignored: int,
    instances: Mapping[str, Sequence[int]],
) -> Table:
    total = max(1, sum(pixels) + ignored)

    def row(train_id: int, counts: Sequence[Cell], covered: int) -> list[Cell]:
        share = Number(covered / total, f"{covered / total:.3%}")
        return [train_id, class_tag(taxonomy, train_id), *counts, covered, share]

    rows = [row(i, [counts[i] for counts in instances.values()], pixels[i]) for i in train_ids]
    if ignored:
        rows.append(row(taxonomy.ignore_index, [""] * len(instances), ignored))
    columns = ("train id", "class", *instances, "pixels", "share of pixels")
    return Table("Classes; click a heading to sort", columns, rows)
