"""``report.html``: the scores, which classes are confused, and where the worst mistakes are."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ...colors import VOID_COLOR
from ...metrics import mean
from ...model.counts import BINS
from ...report.blocks import (
    Beside,
    Block,
    Cell,
    Figure,
    Figures,
    Note,
    Number,
    Paragraph,
    Table,
    Tag,
)
from ...report.charts import Bar, Bars
from ...report.classes import class_tag
from ...report.comparison import Comparison, Comparisons, Panel
from ...report.confusion import ConfusionMap
from ...report.page import PageSection, render
from ...report.reliability import ReliabilityBin, ReliabilityDiagram
from ...storage import last_parts
from .calibration import Calibration
from .images import ShownImage
from .result import NO_PREDICTION, Evaluation
from .scored import ScoredNetwork

_WORST_OF_CLASS = 3
_TAGS = 5  # class names under a picture
_ABSENT = 40  # names of classes that are nowhere
_SUSPECTED = 20  # regions
_STEPS = 10  # bars of the images by mIoU


def render_evaluation(result: Evaluation) -> str:
    """Return the report as the text of one HTML file that needs no other."""
    checkpoint = result.checkpoint
    what = _checkpoint(checkpoint) if checkpoint else last_parts(str(result.predictions))
    title = f"Evaluation of {what} on {', '.join(map(last_parts, result.shards))}"
    return render(title, list(_sections(result)))


def _checkpoint(checkpoint: ScoredNetwork) -> str:
    """Return which checkpoint of which run it is."""
    given = last_parts(checkpoint.path)
    return given if given.endswith(checkpoint.name) else f"{given} ({checkpoint.name})"


def _sections(result: Evaluation) -> Iterator[PageSection]:
    yield PageSection("Overview", list(_overview(result)))
    yield PageSection("Classes", list(_classes(result)))
    yield PageSection("Confusions", list(_confusions(result)))
    yield PageSection("Images", list(_images(result)))
    if result.regions:
        yield PageSection("Labels to check", list(_labels(result)))
    if result.calibration is not None:
        yield PageSection("Calibration", list(_calibration(result.calibration)))
    yield PageSection("What was scored", list(_inputs(result)))


# ---- overview


def _overview(result: Evaluation) -> Iterator[Block]:
    scores, seen = result.scores, len(result.seen)
    classes = f"over {seen:,} of {len(result.names):,} classes"
    figures = [
        Figure("mIoU", _percent(scores.miou), classes),
        Figure("mIoU without background", _percent(scores.miou_foreground)),
        Figure("mean Dice", _percent(scores.mean_dice)),
        Figure("frequency-weighted IoU", _percent(scores.frequency_weighted_iou)),
        Figure(
            "pixel accuracy",
            _percent(scores.pixel_accuracy),
            f"mean over classes {_percent(scores.mean_accuracy)}",
        ),
    ]
    if not result.quick:
        detail = "agreement along object boundaries"
        figures.insert(2, Figure("boundary mIoU", _percent(mean(result.boundary_iou)), detail))
    if result.without_tta is not None:
        gain = 100 * (scores.miou - result.without_tta.miou)
        detail = f"with augmentation {gain:+.2f} points"
        figures.append(Figure("mIoU without TTA", _percent(result.without_tta.miou), detail))
    if result.calibration is not None:
        detail = "distance of probability and ground truth"
        figures.append(Figure("calibration error", _percent(result.calibration.ece), detail))
    figures.append(Figure("images", f"{result.samples:,}"))
    yield Figures(figures)
    if result.without_prediction:
        share = result.without_prediction / int(result.tally.confusion.sum())
        yield Note(
            f"{result.without_prediction:,} pixels ({share:.2%}) have no prediction: they count as "
            "misses of their classes."
        )


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.2%}"


# ---- classes


def _classes(result: Evaluation) -> Iterator[Block]:
    scores = result.scores
    falling = sorted(result.seen, key=lambda train_id: -scores.iou[train_id])
    bars = [
        Bar(tag.text, float(scores.iou[train_id]), tag.color, f"{scores.iou[train_id]:.1%}")
        for train_id in falling
        for tag in [class_tag(result.taxonomy, train_id)]
    ]
    yield Bars("IoU by class, the best first.", bars, most=1)
    fractions = ("IoU", "boundary IoU", "accuracy", "Dice")
    values = (scores.iou, result.boundary_iou, scores.accuracy, scores.dice)
    rows: list[list[Cell]] = [
        [
            train_id,
            class_tag(result.taxonomy, train_id),
            *(_score(float(column[train_id])) for column in values),
            int(scores.pixels[train_id]),
            int(scores.predicted[train_id]),
        ]
        for train_id in result.seen
    ]
    columns = ("train id", "class", *fractions, "true pixels", "predicted pixels")
    yield Table("Classes; click a heading to sort", columns, rows)
    absent = sorted(set(range(len(result.names))) - set(result.seen))
    if absent:
        names = ", ".join(class_tag(result.taxonomy, i).text for i in absent[:_ABSENT])
        more = " …" if len(absent) > _ABSENT else ""
        yield Paragraph(
            "Absent from ground truth and predictions; excluded from the means: "
            f"{len(absent):,} classes ({names}{more})."
        )


def _score(share: float) -> Cell:
    return "" if math.isnan(share) else Number(share, f"{share:.2%}")


# ---- confusions


def _confusions(result: Evaluation) -> Iterator[Block]:
    tags = [class_tag(result.taxonomy, i) for i in range(len(result.names))]
    predicted = [*tags, Tag(NO_PREDICTION, f"#{bytes(VOID_COLOR).hex()}")]
    if result.seen:
        yield ConfusionMap(
            "What becomes of the pixels of each class: blue is right, red is wrong; the stronger, "
            "the larger the share of the class. Point at a cell for its numbers.",
            tags,
            predicted,
            result.tally.confusion,
        )
    rows: list[list[Cell]] = [
        [
            tags[one.truth],
            predicted[one.predicted],
            one.pixels,
            Number(one.share, f"{one.share:.1%}"),
        ]
        for one in result.confusions
    ]
    if rows:
        columns = ("ground truth", "predicted", "pixels", "share of the class")
        yield Table("The most frequent confusions", columns, rows)
    else:
        yield Paragraph("Not a single pixel is wrong.")


# ---- labels


def _labels(result: Evaluation) -> Iterator[Block]:
    yield Paragraph(
        "Regions where the network contradicts the annotation and is sure of it: a label that is "
        f"wrong, or a mistake of the network. The first {_SUSPECTED} are shown; labels.csv lists "
        f"{len(result.regions):,}."
    )
    rows: list[list[Cell]] = [
        [
            Number(one.suspicion, f"{one.suspicion:.2f}"),
            one.kind,
            class_tag(result.taxonomy, one.annotated),
            class_tag(result.taxonomy, one.predicted),
            one.key,
            one.file_name,
            "{2} × {3} at {0}, {1}".format(*one.box),
        ]
        for one in result.regions[:_SUSPECTED]
    ]
    columns = ("suspicion", "kind", "annotated", "predicted", "key", "file", "pixels")
    yield Table("Labels to check first", columns, rows)


# ---- images


def _images(result: Evaluation) -> Iterator[Block]:
    known = np.array([one.miou for one in result.images if not math.isnan(one.miou)])
    steps = np.minimum((known * _STEPS).astype(int), _STEPS - 1)
    counts = np.bincount(steps, minlength=_STEPS).tolist()
    bars = [
        Bar(f"{i / _STEPS:.0%} – {(i + 1) / _STEPS:.0%}", count, text=f"{count:,}")
        for i, count in enumerate(counts)
    ]
    yield Bars("Images by their own mIoU, over the classes that are there or predicted.", bars)
    if result.worst:
        yield Paragraph(
            f"The {len(result.worst):,} worst of {result.samples:,}, the worst first; images.csv "
            "lists all. The command cocoseg view SHARDS SCORES shows every image in a browser, "
            "with its prediction if it was made with --save-predictions."
        )
        yield Comparisons([_comparison(result, shown) for shown in result.worst])
    rows: list[list[Cell]] = [
        [
            class_tag(result.taxonomy, train_id),
            image.key,
            image.file_name,
            Number(iou, f"{iou:.1%}"),
        ]
        for train_id in result.seen
        for image, iou in result.worst_of_class(train_id, _WORST_OF_CLASS)
    ]
    if rows:
        columns = ("class", "key", "file name", "IoU in this image")
        yield Table("The worst images of each class", columns, rows)


def _comparison(result: Evaluation, shown: ShownImage) -> Comparison:
    score = shown.score
    panels = (
        Panel("image", shown.image),
        Panel("ground truth", shown.truth, _tags(result, shown.true_classes)),
        Panel("prediction", shown.prediction, _tags(result, shown.predicted_classes)),
        Panel("errors (red)", shown.errors),
    )
    detail = f"mIoU {score.miou:.1%}, {score.pixel_accuracy:.1%} of the pixels right"
    return Comparison(f"{score.key} · {score.file_name}", detail, panels)


def _tags(result: Evaluation, train_ids: Sequence[int]) -> list[Tag]:
    things = [i for i in train_ids if i]  # background has no color
    tags = [class_tag(result.taxonomy, i) for i in things[:_TAGS]]
    return tags + [Tag(f"+{len(things) - _TAGS}")] * (len(things) > _TAGS)


# ---- calibration


def _calibration(calibration: Calibration) -> Iterator[Block]:
    bins = [
        ReliabilityBin(
            i / BINS,
            (i + 1) / BINS,
            int(calibration.pixels[i]),
            float(calibration.accuracy[i]),
            float(calibration.confidence[i]),
        )
        for i in range(BINS)
    ]
    diagram = ReliabilityDiagram(
        "How often pixels are right, by the probability of their class. Below the dashed line the "
        "network is surer than it should be. The stronger a bar, the more pixels.",
        bins,
    )
    rows: list[list[Cell]] = [
        [
            Number(one.low, f"{one.low:.1%} – {one.high:.1%}"),
            one.pixels,
            _score(one.confidence),
            _score(one.accuracy),
        ]
        for one in bins
        if one.pixels
    ]
    columns = ("probability", "pixels", "mean probability", "right")
    yield Beside((diagram, Table("Bins of probability", columns, rows)))


# ---- what was scored


def _inputs(result: Evaluation) -> Iterator[Block]:
    rows: list[tuple[Cell, ...]] = []
    if result.checkpoint is not None:
        rows += [
            ("checkpoint", _checkpoint(result.checkpoint)),
            ("digest of its weights (XXH3-128)", result.checkpoint.digest),
            ("views of each image", str(result.views)),
        ]
    else:
        rows.append(("masks", last_parts(str(result.predictions))))
    rows += [("shards", last_parts(folder)) for folder in result.shards]
    rows.append(("pixels that were scored", f"{int(result.tally.confusion.sum()):,}"))
    yield Table("Inputs", ("what", "which"), rows)
    yield Paragraph(
        "Scores are those of all pixels together, at the masks' own resolution; metrics.json has "
        "them in full, classes.csv, images.csv and image_classes.csv as tables."
    )
