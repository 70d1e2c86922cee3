"""What the page asks for, from opened sources: JSON, text and pictures."""

import secrets
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from .. import __version__, photo
from ..errors import CocosegError, ConfigError
from ..printable import redacted
from ..report.classes import class_tag
from ..shards.decode import decode_mask, of_bits
from ..shards.png import Mask
from ..shards.reader import ShardSet
from .evaluations import compare
from .pictures import jpeg, label_png
from .quarantine import read_left_out, read_quarantine
from .runs import list_pictures, read_metrics, read_picture, read_settings
from .samples import Query, SampleTable, orders
from .sources import PictureFolder, Sources

Answer: TypeAlias = Callable[[Request], Response]
Box: TypeAlias = tuple[int, int, int, int]
"""Left, top, width, height [pixels]."""
_LONGEST = 4096  # pixels; of a side that may be asked for
_AT_ONCE = 500  # samples of one request for facts
_PAIRED_CLASSES = 100  # of the map of classes that occur together: the most frequent
_MOST_MASK_BYTES = 2**28
_DIGITS = 18  # of a number that may be asked for


class Answers:
    """Answers from opened sources; every method may be called by several threads."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._session = secrets.token_hex(4)
        """In the addresses of pictures: a browser must not show those of another server."""
        self._table_of_samples = (
            None if sources.shards is None else SampleTable(sources.shards, sources.evaluations)
        )

    @property
    def table(self) -> SampleTable:
        """The samples.

        Raises
        ------
        ConfigError
            If there are none.
        """
        if self._table_of_samples is None:
            raise ConfigError("this needs samples: add the folder of shards to 'cocoseg view'")
        return self._table_of_samples

    @property
    def _shards(self) -> ShardSet:
        assert self._sources.shards is not None
        return self._sources.shards

    # ---- what there is

    def overview(self, request: Request) -> Response:
        """Describe what is shown: classes, evaluations, predictions, runs, orders."""
        return JSONResponse(self.describe())

    def describe(self) -> dict[str, Any]:
        """Return the content of `overview`."""
        sources = self._sources
        return {
            "version": __version__,
            **(self._of_shards() if sources.shards is not None else {}),
            "session": self._session,
            "orders": orders(len(sources.evaluations)),
            "evaluations": [
                {
                    "name": one.name,
                    "mIoU": one.metrics.get("mIoU"),
                    "prediction": one.prediction,
                }
                for one in sources.evaluations
            ],
            "predictions": [one.name for one in sources.predictions],
            "runs": [one.name for one in sources.runs],
            "left_out": len(self._left_out),
        }

    def _of_shards(self) -> dict[str, Any]:
        shards = self._shards
        pixels = np.sum([one.class_pixels for one in shards.manifests], axis=0).tolist()
        images = self.table.images_by_class()
        taxonomy = shards.taxonomy
        return {
            "samples": len(self.table),
            "shards": [redacted(folder) for folder in shards.folders],
            "ignore_index": taxonomy.ignore_index,
            "bits": taxonomy.bits,
            "classes": [
                {
                    "name": name,
                    "color": class_tag(taxonomy, i).color,
                    "pixels": pixels[i],
                    "images": images[i],
                }
                for i, name in enumerate(taxonomy.names)
            ],
        }

    def classes(self, request: Request) -> Response:
        """Return in how many samples each two of the most frequent classes occur together."""
        images = np.array(self.table.images_by_class())
        images[0] = 0  # the background is everywhere
        frequent = np.argsort(-images, kind="stable")[:_PAIRED_CLASSES]
        shown = sorted(int(train_id) for train_id in frequent if images[train_id])
        pairs = self.table.images_by_pair(shown)
        return JSONResponse({"train_ids": shown, "images": pairs.tolist()})

    # ---- samples

    def samples(self, request: Request) -> Response:
        """Return the positions of the samples that the address asks for."""
        positions = self.table.select(Query.from_parameters(request.query_params))
        return JSONResponse({"positions": positions.tolist()})

    def facts(self, request: Request) -> Response:
        """Return what is known of several samples, `_AT_ONCE` at most."""
        positions = self._positions(request)
        if len(positions) > _AT_ONCE:
            raise ConfigError(f"at most {_AT_ONCE} samples at once")
        return JSONResponse({"facts": [self.table.facts(position) for position in positions]})

    def listed(self, request: Request) -> Response:
        """Return ``SHARDS/KEY`` of samples, or ``KEY``: those named, or those asked for."""
        if "positions" in request.query_params:
            positions = self._positions(request)
        else:
            positions = self.table.select(Query.from_parameters(request.query_params)).tolist()
        told = self.table.keys.__getitem__ if "keys" in request.query_params else self.table.path
        return PlainTextResponse("".join(f"{redacted(told(p))}\n" for p in positions))

    def sample(self, request: Request) -> Response:
        """Return what is known of one sample."""
        return JSONResponse(self.describe_sample(self._position(request)))

    def describe_sample(self, position: int) -> dict[str, Any]:
        """Return the content of `sample`."""
        return {
            **self.table.facts(position),
            "meta": self._shards.read_meta(position),
            "path": redacted(self.table.path(position)),
            "regions": [
                [region for region in one.regions if region["position"] == position]
                for one in self.table.evaluations
            ],
        }

    def pictures(self, request: Request) -> Response:
        """Return pictures of one sample; see `encode_layers`."""
        layers = request.query_params.get("layers", "image").split(",")
        content = self.encode_layers(self._position(request), layers, _side(request), _box(request))
        return _kept(content, "application/octet-stream")

    def encode_layers(
        self, position: int, layers: Sequence[str], side: int | None = None, box: Box | None = None
    ) -> bytes:
        """Return pictures of one sample, all of one size.

        Parameters
        ----------
        layers
            ``image`` (a JPEG), ``truth`` (the mask, see `label_png`), ``prediction-N``.
        side
            Of the longer side at most [pixels]; None: as they are.
        box
            The part that is shown; None: all.

        Returns
        -------
        bytes
            For each layer a byte (0: a picture, 1: a message in UTF-8, why there is none), the
            length of what follows (uint32, little-endian), and that.
        """
        return b"".join(
            struct.pack("<BI", isinstance(part, str), len(content)) + content
            for part in self._encoded(position, layers, side, box)
            for content in [part.encode() if isinstance(part, str) else part]
        )

    def _encoded(
        self, position: int, layers: Sequence[str], side: int | None, box: Box | None
    ) -> Iterator[bytes | str]:
        sample = None
        for layer in layers:
            kind, _, number = layer.partition("-")
            try:
                if kind == "prediction" and number.isdecimal() and len(number) <= _DIGITS:
                    mask = self._read_prediction(int(number), position)
                    yield label_png(_part(mask, box), side)
                elif layer in ("image", "truth"):
                    sample = sample or self._shards.read(position)  # neighbors in the shard
                    yield (
                        jpeg(_part(sample.image, box), side)
                        if layer == "image"
                        else label_png(_part(sample.mask, box), side)
                    )
                else:
                    raise ConfigError(f"layers={layer[:40]}: image, truth or prediction-N")
            except CocosegError as error:
                yield redacted(str(error))

    def _read_prediction(self, number: int, position: int) -> Mask:
        folder = cast(PictureFolder, _entry(self._sources.predictions, number, "predictions"))
        row = self._shards.row(position)
        try:
            content = folder.read(f"{row.key}.png", _MOST_MASK_BYTES)
        except ConfigError:
            raise ConfigError(f"no prediction in {folder.name}") from None
        mask = decode_mask(content, f"{row.key}.png", expected=(row.height, row.width))
        return of_bits(mask, self._shards.taxonomy.bits)

    # ---- evaluations

    def evaluation(self, request: Request) -> Response:
        """Return the scores of an evaluation."""
        scored = self.table.evaluation(int(request.path_params["number"]))
        return JSONResponse(scored.describe())

    def comparison(self, request: Request) -> Response:
        """Return how scores change from one evaluation to another."""
        before, after = (self.table.evaluation(_integer(request, name)) for name in ("a", "b"))
        return JSONResponse(compare(before, after))

    def labels(self, request: Request) -> Response:
        """Return the regions whose labels may be wrong, the most suspicious first."""
        scored = self.table.evaluation(int(request.path_params["number"]))
        return JSONResponse({"regions": scored.regions})

    # ---- images that were left out

    @cached_property
    def _left_out(self) -> list[dict[str, Any]]:
        return read_quarantine(self._shards.folders) if self._sources.shards is not None else []

    def left_out(self, request: Request) -> Response:
        """Return the images that `prepare` left out."""
        return JSONResponse({"images": self._left_out})

    def left_out_image(self, request: Request) -> Response:
        """Return the picture of an image that was left out, if it can be decoded."""
        entry = _entry(self._left_out, int(request.path_params["number"]), "image")
        content = read_left_out(str(entry.get("file_name", "")), self._sources.images)
        return _kept(jpeg(photo.decode(content), _side(request) or _LONGEST), "image/jpeg")

    # ---- runs

    def run(self, request: Request) -> Response:
        """Return what a run recorded since ``from`` [bytes], and its settings."""
        run = _chosen(self._sources.runs, request, "run").folder
        start = _integer(request, "from") if "from" in request.query_params else 0
        found = read_metrics(run, start)
        if not found["start"]:
            found |= {"settings": read_settings(run)}
        return JSONResponse(found)

    def run_pictures(self, request: Request) -> Response:
        """Return names and steps of a run's validation pictures."""
        run = _chosen(self._sources.runs, request, "run").folder
        return JSONResponse({"pictures": list_pictures(run)})

    def run_picture(self, request: Request) -> Response:
        """Return a validation picture of a run: ``name`` and ``step``."""
        run = _chosen(self._sources.runs, request, "run").folder
        name = request.query_params.get("name", "")
        return _kept(read_picture(run, name, _integer(request, "step")), "image/png")

    def _position(self, request: Request) -> int:
        return self._valid(int(request.path_params["position"]))

    def _positions(self, request: Request) -> list[int]:
        text = request.query_params.get("positions", "")
        try:
            return [self._valid(int(part)) for part in text.split(",") if part]
        except ValueError:
            raise ConfigError(f"positions={text[:40]}: are no numbers") from None

    def _valid(self, position: int) -> int:
        if not 0 <= position < len(self.table):
            raise ConfigError(f"there are {len(self.table):,} samples")
        return position


def _entry(entries: Any, number: int, what: str) -> Any:
    if number >= len(entries):
        raise ConfigError(f"no such {what}")
    return entries[number]


def _chosen(folders: tuple[PictureFolder, ...], request: Request, what: str) -> PictureFolder:
    return cast(PictureFolder, _entry(folders, int(request.path_params["number"]), what))


def _integer(request: Request, name: str) -> int:
    text = request.query_params.get(name, "")
    if not text.isdecimal() or len(text) > _DIGITS:
        raise ConfigError(f"{name}={text[:40]}: is no number")
    return int(text)


def _side(request: Request) -> int | None:
    if "side" not in request.query_params:
        return None
    return min(max(_integer(request, "side"), 16), _LONGEST)


def _box(request: Request) -> Box | None:
    """Return what ``box=left,top,width,height`` names [pixels]."""
    text = request.query_params.get("box")
    if text is None:
        return None
    try:
        left, top, width, height = (max(0, int(part)) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"box={text[:40]}: write left,top,width,height") from None
    return left, top, width, height


def _part(pixels: NDArray[Any], box: Box | None) -> NDArray[Any]:
    if box is None:
        return pixels
    left, top, width, height = box
    part = pixels[top : top + height, left : left + width]
    if not part.size:
        raise ConfigError(f"box={box}: lies outside of the image")
    return np.ascontiguousarray(part)


def _kept(content: bytes, media_type: str) -> Response:
    return Response(content, media_type=media_type, headers={"Cache-Control": "max-age=3600"})
