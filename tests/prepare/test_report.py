"""The reports of ``prepare`` and ``index``: true pictures and numbers, whatever is in the data."""

import base64
import io
import json
import re
import tarfile
from html.parser import HTMLParser

import numpy as np
import pytest
from cocoseg.colors import distinct_colormap
from cocoseg.shards.config import IndexConfig
from cocoseg.shards.index import index_shards
from msgspec.structs import replace
from PIL import Image

HOSTILE = "<script>alert(1)</script>"
POLYGON = [[1, 1, 15, 1, 15, 11, 1, 11]]
GRAY = 120


class Report(HTMLParser):
    """A report, taken apart."""

    def __init__(self, folder, name="prepare-report.html"):
        super().__init__()
        self.bytes = (folder / name).read_bytes()
        self.images, self.tags, self.rows, self.missing, self.figures = {}, [], [], [], []
        self._cells = self._open = None
        self.feed(self.bytes.decode())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        self._open = tag
        if tag == "img":
            content = base64.b64decode(attributes["src"].partition("base64,")[2])
            with Image.open(io.BytesIO(content)) as image:
                self.images[attributes["alt"]] = np.asarray(image).astype(int)
        elif attributes.get("class") == "missing":
            self.missing.append(attributes["aria-label"])
        elif tag == "tr":
            self._cells = []
            self.rows.append(self._cells)
        elif tag in ("td", "th"):
            self._cells.append("")

    def handle_endtag(self, tag):
        self._open = None
        if tag == "tr":
            self._cells = None

    def handle_data(self, data):
        if self._cells:
            self._cells[-1] += data
        if self._open in ("dt", "dd"):
            self.figures.append(data)

    def figure(self, label):
        return self.figures[self.figures.index(label) + 1]

    def row(self, start):
        (row,) = (row for row in self.rows if row[0] == start)
        return row


def gray_photo(coco_set, image_id, size=(16, 12)):
    """Draw a plain photograph, so that a painted pixel has a known color."""
    path = coco_set.photo(image_id, *size)
    Image.new("RGB", size, (GRAY, GRAY, GRAY)).save(path, quality=95)
    return path


def painted(train_id):
    return 0.45 * GRAY + 0.55 * distinct_colormap(65536)[train_id].astype(float)


def test_a_sample_is_shown_with_its_mask(coco_set, tmp_path):
    gray_photo(coco_set, 1)
    coco_set.annotate(1, POLYGON, category_id=2)
    gray_photo(coco_set, 2)
    coco_set.prepare(tmp_path / "out")
    report = Report(tmp_path / "out")
    assert sorted(report.images) == ["000000000001: dog", "000000000002: no instances"]
    np.testing.assert_allclose(report.images["000000000001: dog"][6, 8], painted(2), atol=8)
    np.testing.assert_allclose(report.images["000000000002: no instances"][6, 8], GRAY, atol=8)
    assert report.row("2")[1:4] == ["dog", "1", "140"]
    assert report.figure("samples") == "2"
    assert report.figure("classes seen") == "1"
    assert report.row("16 × 12")[1:] == ["2", "100.0%"]
    assert report.row("overlap")[1] == "area"


def test_masks_of_16_bits_are_shown(coco_set, tmp_path):
    coco_set.content["categories"] = [{"id": i, "name": f"c{i}"} for i in range(1, 301)]
    gray_photo(coco_set, 1)
    coco_set.annotate(1, POLYGON, category_id=299)
    coco_set.annotate(1, [[0, 0, 8, 0, 8, 12, 0, 12]], category_id=5, iscrowd=1)
    coco_set.prepare(tmp_path / "out", crowd="ignore")
    report = Report(tmp_path / "out")
    (shown,) = report.images.values()
    np.testing.assert_allclose(shown[6, 12], painted(299), atol=10)
    assert report.row("299")[1] == "c299"
    assert report.row("65,535")[1] == "(ignored)"


def test_quarantined_images_are_listed_and_shown_if_they_can_be(coco_set, tmp_path):
    gray_photo(coco_set, 1)
    gray_photo(coco_set, 2)
    coco_set.annotate(2, [[1, 1, 5, 5]])
    whole = gray_photo(coco_set, 3).read_bytes()
    (coco_set.images / "3.jpg").write_bytes(whole[:-20])
    coco_set.entry(4, "absent.jpg")
    result = coco_set.prepare(tmp_path / "out")
    assert len(result.quarantined) == 3
    report = Report(tmp_path / "out")
    assert report.row("2.jpg")[1:4] == ["2", "1", "bad-polygon"]
    assert report.row("3.jpg")[1:4] == ["3", "", "truncated-image"]
    assert report.row("absent.jpg")[3] == "missing-file"
    np.testing.assert_allclose(report.images["bad-polygon: 2.jpg"][6, 8], GRAY, atol=8)
    assert len(report.images) == 2  # the one sample, and the one that decodes
    assert report.missing == [report.row("3.jpg")[4]]
    assert report.figure("quarantined") == "3"


def test_an_image_that_ends_processes_is_not_opened_again(coco_set, tmp_path, monkeypatch):
    from cocoseg.prepare import publish

    gray_photo(coco_set, 1)
    gray_photo(coco_set, 2)
    coco_set.annotate(2, [[1, 1, 5, 5]])
    write = publish.write_report

    def convict(*parts):
        *others, (shard,) = parts
        (bad,) = shard.quarantined
        write(*others, [replace(shard, quarantined=(replace(bad, reason="worker-died"),))])

    monkeypatch.setattr(publish, "write_report", convict)
    coco_set.prepare(tmp_path / "out")
    report = Report(tmp_path / "out")
    assert report.row("2.jpg")[3] == "worker-died"
    assert len(report.images) == 1
    assert report.missing == ["not opened: a worker died of it"]


@pytest.mark.parametrize("limit", ["MAX_PIXELS", "_MAX_BYTES"])
def test_giant_photographs_are_not_decoded(coco_set, tmp_path, monkeypatch, limit):
    from cocoseg.prepare import report as written

    gray_photo(coco_set, 1)
    path = gray_photo(coco_set, 2, (40, 30))
    coco_set.annotate(2, [[1, 1, 5, 5]])
    monkeypatch.setattr(written, limit, 1199 if limit == "MAX_PIXELS" else path.stat().st_size - 1)
    coco_set.prepare(tmp_path / "out")
    report = Report(tmp_path / "out")
    assert list(report.images) == ["000000000001: no instances"]
    assert len(report.missing) == 1


def test_hostile_names_are_inert(coco_set, tmp_path):
    coco_set.content["categories"] = [{"id": 1, "name": HOSTILE}]
    gray_photo(coco_set, 1)
    coco_set.annotate(1, POLYGON)
    coco_set.photo(2, name="<img src=x onerror=alert(1)>&quot;.jpg")
    coco_set.annotate(2, [[1, 1, 5, 5]])
    coco_set.prepare(tmp_path / "out")
    report = Report(tmp_path / "out")
    assert [tag for tag, _ in report.tags].count("script") == 1
    assert all(not name.startswith("on") for _, attributes in report.tags for name in attributes)
    assert f"000000000001: {HOSTILE}" in report.images
    assert report.row("1")[1] == HOSTILE
    assert report.row("<img src=x onerror=alert(1)>&quot;.jpg")[3] == "bad-polygon"


def test_a_report_stands_alone_and_names_no_folder_of_the_machine(coco_set, tmp_path):
    for image_id in range(1, 5):
        coco_set.photo(image_id)
        coco_set.annotate(image_id, POLYGON)
    coco_set.prepare(tmp_path / "out", samples_per_shard=2)
    report = Report(tmp_path / "out")
    for _, attributes in report.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/jpeg;base64,"))
    text = report.bytes.decode()
    assert "://" not in text
    assert str(tmp_path) not in text


def test_the_same_data_set_gives_the_same_report_whatever_the_workers(coco_set, tmp_path):
    for image_id in range(1, 9):
        coco_set.photo(image_id, 16 + image_id)
        coco_set.annotate(image_id, POLYGON if image_id != 5 else [[1, 1, 5, 5]], 1 + image_id % 2)
    ways = ({}, {}, {"engine": "local", "workers": 2})
    for number, way in enumerate(ways):
        coco_set.prepare(tmp_path / str(number), samples_per_shard=3, **way)
    assert len({Report(tmp_path / str(number)).bytes for number in range(len(ways))}) == 1


def test_splits_are_told_apart(coco_set, tmp_path):
    for image_id in range(1, 21):
        coco_set.photo(image_id)
        coco_set.annotate(image_id, POLYGON)
    coco_set.prepare(tmp_path / "out", split="train=0.7,val=0.3", samples_per_shard=4)
    report = Report(tmp_path / "out")
    counts = {
        name: json.loads((tmp_path / "out" / name / "manifest.json").read_text())["samples"]
        for name in ("train", "val")
    }
    assert [report.row(name)[1] for name in counts] == [str(n) for n in counts.values()]
    assert report.row("1")[2:5] == ["20", *(str(n) for n in counts.values())]
    assert ["split", "train=0.7,val=0.3"] in [row[:2] for row in report.rows]
    assert len(report.images) == 12


def test_images_without_annotations_are_shown_as_they_are(coco_set, tmp_path):
    gray_photo(coco_set, 1, (40, 30))
    coco_set.prepare(tmp_path / "out", annotations=())
    report = Report(tmp_path / "out")
    (shown,) = report.images.values()
    np.testing.assert_allclose(shown[15, 20], GRAY, atol=8)
    assert "train id" not in [cell for row in report.rows for cell in row]
    assert "infer" in report.bytes.decode()


def test_turned_photographs_are_shown_upright(coco_set, tmp_path):
    path = coco_set.photo(1, 40, 30, orientation=6, annotated=(30, 40))
    stored = np.full((30, 40, 3), 30, np.uint8)
    stored[:, :20] = 220  # the left half: upright, the upper one
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(path, quality=95, exif=exif)
    coco_set.prepare(tmp_path / "out")
    (shown,) = Report(tmp_path / "out").images.values()
    assert shown.shape == (40, 30, 3)
    assert shown[5, 15].min() > 200
    assert shown[35, 15].max() < 50


def test_a_shard_that_cannot_be_read_costs_a_picture_alone(coco_set, tmp_path, monkeypatch):
    from cocoseg.shards import report as written

    def broken(url, row, names):
        raise OSError("Input/output error")

    coco_set.photo(1)
    monkeypatch.setattr(written, "read_members", broken)
    coco_set.prepare(tmp_path / "out")
    report = Report(tmp_path / "out")
    assert report.missing == ["cannot be shown: Input/output error"]


def test_long_lists_are_cut_and_say_so(coco_set, tmp_path):
    gray_photo(coco_set, 1)
    for image_id in range(2, 560):
        coco_set.entry(image_id, f"absent-{image_id}.jpg")
    coco_set.prepare(tmp_path / "out")
    report = Report(tmp_path / "out")
    assert sum(row[0].startswith("absent-") for row in report.rows) == 500
    assert re.search(r"Not listed: 58 more", report.bytes.decode())
    assert report.missing == []


def test_a_real_report_shows_most_classes_and_is_small(real_data, tmp_path):
    from cocoseg.prepare.build import prepare_shards
    from cocoseg.prepare.config import PrepareConfig

    annotations = real_data / "coco" / "annotations" / "instances_val2017.json"
    prepare_shards(
        PrepareConfig(
            annotations=(str(annotations),),
            images=(str(real_data / "coco" / "val2017"),),
            output=str(tmp_path / "out"),
            samples_per_shard=10,
            engine="inline",
        )
    )
    report = Report(tmp_path / "out")
    assert len(report.images) == 12
    assert len(report.bytes) < 1_500_000
    assert all(max(image.shape) <= 320 for image in report.images.values())


# --- shards of other programs


def foreign(folder, *samples):
    """Pack (key, train ids of the mask's halves) with a gray photograph, and index them."""
    folder.mkdir()
    photo = io.BytesIO()
    Image.new("RGB", (16, 12), (GRAY, GRAY, GRAY)).save(photo, "JPEG", quality=95)
    with tarfile.open(folder / "a.tar", "w") as tar:
        for key, (left, right) in samples:
            mask, pixels = io.BytesIO(), np.full((12, 16), left, np.uint8)
            pixels[:, 8:] = right
            Image.fromarray(pixels).save(mask, "PNG")
            for extension, content in (("jpg", photo), ("png", mask)):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content.getvalue())
                tar.addfile(info, io.BytesIO(content.getvalue()))
    (folder / "classes.json").write_text(json.dumps(["background", "cat", HOSTILE]))
    config = IndexConfig(classes=str(folder / "classes.json"), workers=1)
    result = index_shards(str(folder), config)
    assert result.report == str(folder / "index-report.html")
    return Report(folder, "index-report.html")


def test_shards_of_other_programs_are_shown_with_their_masks(tmp_path):
    report = foreign(tmp_path / "s", ("b", (0, 1)), ("a/<i>", (1, 255)))
    assert sorted(report.images) == ["a/<i>: cat, (ignored)", "b: cat"]
    np.testing.assert_allclose(report.images["b: cat"][6, 12], painted(1), atol=8)
    np.testing.assert_allclose(report.images["b: cat"][6, 3], GRAY, atol=8)
    assert report.row("1")[1:3] == ["cat", "192"]  # no column of instances: nobody counted them
    assert report.row("255")[2] == "96"
    assert report.figure("samples") == "2"
    assert report.figure("classes seen") == "1"
    assert report.row("exif")[1] == "auto"
    assert "instances" not in report.figures
    assert "quarantined" not in report.figures
    text = report.bytes.decode()
    assert HOSTILE not in text
    assert "1 of 2 classes have no pixel" in text


def test_binary_masks_are_told_in_the_report(tmp_path):
    report = foreign(tmp_path / "s", ("a", (0, 255)))
    assert "the masks look like binary masks" in report.bytes.decode()


def test_prepares_report_has_the_warnings_too(coco_set, tmp_path):
    coco_set.photo(1)
    coco_set.prepare(tmp_path / "out")
    text = Report(tmp_path / "out").bytes.decode()
    assert "no mask has a pixel of any class" in text
