"""Folders of label images: every kind of pixel, every way of naming, and what is refused."""

import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
from cocoseg.errors import ConfigError, DataError
from cocoseg.prepare.build import prepare_shards
from cocoseg.prepare.config import PrepareConfig
from cocoseg.shards.manifest import read_manifest
from cocoseg.shards.verify import verify
from cocoseg.storage import locate
from PIL import Image

HEIGHT, WIDTH = 12, 16


class LabelSet:
    """Images and label images in the making."""

    def __init__(self, folder):
        self.folder = folder
        self.images, self.masks = folder / "images", folder / "masks"

    def image(self, name, size=(WIDTH, HEIGHT), orientation=1):
        path = self.images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(len(name)).integers(0, 256, (size[1], size[0], 3), np.uint8)
        exif = Image.Exif()
        exif[0x0112] = orientation
        more = {"exif": exif} if orientation != 1 else {}
        Image.fromarray(noise).save(path, **more)
        return path

    def mask(self, name, picture):
        path = self.masks / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(picture, np.ndarray):
            picture = Image.fromarray(picture)
        picture.save(path)
        return path

    def classes(self, text, name="classes.yaml"):
        path = self.folder / name
        path.write_text(text)
        return str(path)

    def config(self, **settings):
        given = {"images": (str(self.images),), "masks": (str(self.masks),), "engine": "inline"}
        return PrepareConfig(**{**given, "output": str(self.folder / "shards"), **settings})

    def prepare(self, **settings):
        return prepare_shards(self.config(**settings))


@pytest.fixture
def label_set(tmp_path):
    return LabelSet(tmp_path)


def drawn(values, dtype=np.uint8):
    """Return labels that contain all these values, each in a stripe of its own width."""
    labels = np.zeros((HEIGHT, WIDTH), dtype)
    for row, value in enumerate(values):
        labels[row, : row + 3] = value
    return labels


def mapped(labels, table):
    out = np.zeros(labels.shape, np.int64)
    for value, train_id in table.items():
        out[labels == value] = train_id
    return out


def only(stored, label_set):
    (sample,) = stored(label_set.folder / "shards").values()
    return sample


def names(result):
    return result.manifest.classes.names


# ---- kinds of pixels


def png_of_bits(labels, bits):
    """Write a gray PNG of 1, 2 or 4 bits with a writer of its own (W3C PNG, 7.2 and 11.2)."""
    import struct
    import zlib

    rows = b""
    for row in labels:
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", labels.shape[1], labels.shape[0], bits, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_gray_of_few_bits_gives_its_values(label_set, stored, bits):
    labels = drawn(range(1, min(2**bits, 10)))
    label_set.image("a.jpg")
    label_set.mask("a.png", labels).write_bytes(png_of_bits(labels, bits))
    label_set.prepare()
    assert np.array_equal(only(stored, label_set).mask, labels)


def test_gray_of_8_bits_is_taken_for_train_ids_and_255_ignored(label_set, stored):
    labels = drawn([1, 2, 4, 255])
    label_set.image("a.jpg")
    label_set.mask("a.png", labels)
    result = label_set.prepare()
    sample = only(stored, label_set)
    assert sample.mask.dtype == np.uint8
    assert np.array_equal(sample.mask, labels)
    assert names(result) == ("background", "class 1", "class 2", "class 3", "class 4")
    assert result.manifest.ignored_pixels == int((labels == 255).sum())
    assert result.manifest.class_pixels == tuple(int((labels == v).sum()) for v in range(5))
    assert verify(str(label_set.folder / "shards")).problems == ()


def test_gray_of_16_bits_ignores_65535_and_255_is_a_value(label_set, stored):
    labels = drawn([1, 255, 65535], np.uint16)
    classes = label_set.classes("1: cat\n255: dog\n")
    label_set.image("a.jpg")
    label_set.mask("a.png", labels)
    label_set.prepare(classes=classes)
    expected = mapped(labels, {1: 1, 255: 2, 65535: 255})
    assert np.array_equal(only(stored, label_set).mask, expected)


def test_more_than_254_classes_give_16_bit_masks(label_set, stored):
    values = [*range(1, 300)]
    labels = np.resize(np.array(values, np.uint16), (20, 20))
    label_set.image("a.jpg", (20, 20))
    label_set.mask("a.png", labels)
    result = label_set.prepare()
    sample = only(stored, label_set)
    assert sample.mask.dtype == np.uint16
    assert np.array_equal(sample.mask, labels)
    assert result.manifest.classes.ignore_index == 65535


def palette(labels, colors):
    image = Image.fromarray(labels, "P")
    image.putpalette(colors)
    return image


def test_a_palette_gives_its_indices_whatever_its_colors(label_set, stored):
    labels = drawn([1, 3, 255])
    label_set.image("a.jpg")
    label_set.mask("a.png", palette(labels, [9, 9, 9] * 256))
    label_set.prepare()
    assert np.array_equal(only(stored, label_set).mask, labels)


def test_the_colors_of_a_palette_count_where_the_table_lists_colors(label_set, stored):
    labels = drawn([1, 2])
    label_set.image("a.jpg")
    label_set.mask("a.png", palette(labels, [0, 0, 0, 255, 0, 0, 0, 0, 255] + [7] * 759))
    classes = label_set.classes('"#0000ff": sea\n"#ff0000": fire\n')
    result = label_set.prepare(classes=classes)
    assert names(result) == ("background", "sea", "fire")
    assert np.array_equal(only(stored, label_set).mask, mapped(labels, {1: 2, 2: 1}))


def painted(labels, colors):
    """Return an RGB image of labels."""
    image = np.zeros((*labels.shape, 3), np.uint8)
    for value, color in colors.items():
        image[labels == value] = color
    return image


COLORS = {0: (0, 0, 0), 1: (128, 64, 128), 2: (10, 10, 10), 3: (0, 0, 255)}


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize(
    "table",
    [
        '"#804080": road\n"#0a0a0a": roof\n"#0000ff": sea\n',
        '"128, 64, 128": road\n"10 10 10": roof\n"(0, 0, 255)": sea\n',
        "road: [128, 64, 128]\nroof: [10, 10, 10]\nsea: [0, 0, 255]\nvoid: [0, 0, 0]\n",
        '{"background": "#000000", "sea": "#0000ff", "roof": "#0A0A0A", "road": "#804080"}',
        'classes:\n  road: "#804080"\n  roof: ["#0a0a0a"]\n  sea: "0,0,255"\n',
    ],
)
def test_colors_become_classes_by_a_table(label_set, stored, table, mode):
    labels = drawn([1, 2, 3])
    label_set.image("a.jpg")
    label_set.mask("a.png", Image.fromarray(painted(labels, COLORS)).convert(mode))
    found = names(label_set.prepare(classes=label_set.classes(table)))
    ids = {value: found.index(name) for value, name in ((1, "road"), (2, "roof"), (3, "sea"))}
    ids[0] = 255 if "void" in table else found.index("background")
    assert np.array_equal(only(stored, label_set).mask, mapped(labels, ids))


def test_rgb_of_equal_channels_is_gray(label_set, stored):
    labels = drawn([1, 2])
    label_set.image("a.jpg")
    label_set.mask("a.png", np.repeat(labels[:, :, None], 3, axis=2))
    label_set.prepare()
    assert np.array_equal(only(stored, label_set).mask, labels)


def test_gray_pixels_are_colors_where_the_table_lists_colors(label_set, stored):
    """An RGB mask that contains nothing but VOC's black and its bus (128, 128, 128)."""
    labels = drawn([6])
    label_set.image("a.jpg")
    label_set.mask("a.png", painted(labels, {6: (0, 128, 128)}))
    label_set.image("b.jpg")
    gray = drawn([7])
    label_set.mask("b.png", painted(gray, {7: (128, 128, 128)}))
    result = label_set.prepare(classes="voc")
    found = {s.meta["file_name"]: s.mask for s in stored(label_set.folder / "shards").values()}
    assert np.array_equal(found["a.jpg"], labels)
    assert np.array_equal(found["b.jpg"], gray)
    assert names(result)[6:8] == ("bus", "car")


@pytest.mark.parametrize("extension", ["tif", "bmp", "gif"])
def test_other_lossless_formats(label_set, stored, extension):
    labels = drawn([1, 2])
    image = palette(labels, list(range(256)) * 3) if extension == "gif" else labels
    label_set.image("a.jpg")
    label_set.mask(f"a.{extension}", image)
    label_set.prepare()
    assert np.array_equal(only(stored, label_set).mask, labels)


# ---- tables


@pytest.mark.parametrize(
    ("table", "file", "classes", "train_ids"),
    [
        ("255: lesion", "c.yaml", ("background", "lesion"), {0: 0, 255: 1}),
        ('{"255": "lesion"}', "c.json", ("background", "lesion"), {0: 0, 255: 1}),
        ("lesion: 255", "c.yaml", ("background", "lesion"), {0: 0, 255: 1}),
        ("0: ignore\n1: wall\n2: tree", "c.yaml", ("wall", "tree"), {0: 255, 1: 0, 2: 1}),
        ("- ignore\n- wall\n- tree", "c.yaml", ("wall", "tree"), {0: 255, 1: 0, 2: 1}),
        ("- road\n- tree", "c.yaml", ("road", "tree"), {0: 0, 1: 1}),
        ("1: a\n2: b\n3: a", "c.yaml", ("background", "a", "b"), {0: 0, 1: 1, 2: 2, 3: 1}),
        ("3: _background_\n1: a\n0: Void", "c.yaml", ("background", "a"), {0: 255, 1: 1, 3: 0}),
        (
            "classes:\n  b: 2\n  a: [1, 5]\nbackground: [3]\nignore: [4]\n",
            "c.yaml",
            ("background", "b", "a"),
            {0: 0, 1: 2, 2: 1, 3: 0, 4: 255, 5: 2},
        ),
        (
            "classes:\n  a: 1\nothers: ignore\n",
            "c.yaml",
            ("background", "a"),
            {0: 0, 1: 1, 9: 255, 200: 255},
        ),
        (
            "Pixel Value, Class\n0, background\n1, crack\n2, hole\n",
            "_classes.csv",
            ("background", "crack", "hole"),
            {0: 0, 1: 1, 2: 2},
        ),
    ],
)
def test_a_table_gives_classes_and_train_ids(label_set, stored, table, file, classes, train_ids):
    labels = drawn(train_ids)
    label_set.image("a.jpg")
    label_set.mask("a.png", labels)
    result = label_set.prepare(classes=label_set.classes(table, file))
    assert names(result) == classes
    assert np.array_equal(only(stored, label_set).mask, mapped(labels, train_ids))


@pytest.mark.parametrize(
    ("table", "file"),
    [
        (
            "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\n"
            "roof:10,10,10::\nsea:0,0,255::\n",
            "labelmap.txt",
        ),
        ("name,r,g,b\nroad,128,64,128\nroof,10,10,10\nsea,0,0,255\n", "class_dict.csv"),
    ],
)
def test_tables_of_other_programs(label_set, stored, table, file):
    """CVAT's labelmap.txt, and the class_dict.csv of CamVid's and others' data sets."""
    labels = drawn([1, 2, 3])
    label_set.image("a.jpg")
    label_set.mask("a.png", painted(labels, COLORS))
    found = names(label_set.prepare(classes=label_set.classes(table, file)))
    assert set(found) == {"background", "road", "roof", "sea"}
    ids = {value: found.index(name) for value, name in ((1, "road"), (2, "roof"), (3, "sea"))}
    assert np.array_equal(only(stored, label_set).mask, mapped(labels, ids))


def test_cityscapes_label_ids(label_set, stored):
    label_set.image("leftImg8bit/aachen/aachen_1_leftImg8bit.png")
    labels = drawn([7, 8, 26, 33, 4, 29])
    label_set.mask("gtFine/aachen/aachen_1_gtFine_labelIds.png", labels)
    label_set.mask("gtFine/aachen/aachen_1_gtFine_instanceIds.png", labels)
    suffixes = {"image_suffix": "_leftImg8bit", "mask_suffix": "_gtFine_labelIds"}
    result = label_set.prepare(classes="cityscapes", **suffixes)
    expected = mapped(labels, {0: 255, 7: 0, 8: 1, 26: 13, 33: 18, 4: 255, 29: 255})
    sample = only(stored, label_set)
    assert np.array_equal(sample.mask, expected)
    assert sample.meta["file_name"] == "leftImg8bit/aachen/aachen_1_leftImg8bit.png"
    assert len(names(result)) == 19
    assert names(result)[0] == "road"
    assert names(result)[13] == "car"


def test_cityscapes_train_ids_are_told_by_their_suffix(label_set, stored):
    label_set.image("a_leftImg8bit.png")
    labels = drawn([1, 7, 18, 255])
    label_set.mask("a_gtFine_labelTrainIds.png", labels)
    suffixes = {"image_suffix": "_leftImg8bit", "mask_suffix": "_gtFine_labelTrainIds"}
    label_set.prepare(classes="cityscapes", **suffixes)
    assert np.array_equal(only(stored, label_set).mask, labels)


def test_cityscapes_train_ids_are_not_taken_for_label_ids(label_set):
    label_set.image("a.png")
    label_set.mask("a.png", drawn([1, 7, 18, 255]))
    with pytest.raises(DataError, match="unknown-value: the mask contains 255"):
        label_set.prepare(classes="cityscapes")


def test_cityscapes_colors(label_set, stored):
    label_set.image("a.png")
    labels = drawn([1, 2, 3])
    label_set.mask("a.png", painted(labels, {1: (128, 64, 128), 2: (0, 0, 142), 3: (0, 0, 90)}))
    label_set.prepare(classes="cityscapes")
    expected = mapped(labels, {0: 255, 1: 0, 2: 13, 3: 255})
    assert np.array_equal(only(stored, label_set).mask, expected)


def test_voc_by_index_and_by_color(label_set, stored):
    labels = drawn([1, 15, 20, 255])
    label_set.image("index.jpg")
    label_set.mask("index.png", palette(labels, [3] * 768))
    colors = {1: (128, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    label_set.image("color.jpg")
    label_set.mask("color.png", painted(labels, colors))
    result = label_set.prepare(classes="voc")
    for sample in stored(label_set.folder / "shards").values():
        assert np.array_equal(sample.mask, labels)
    assert names(result)[15] == "person"
    assert len(names(result)) == 21


@pytest.mark.parametrize(
    ("table", "file", "message"),
    [
        ("255: a\n'255': b", "c.yaml", "is given to both 'a' and 'b'"),
        ("70000: a", "c.yaml", "70000"),
        ("cat: dog", "c.yaml", "'dog' is neither a value"),
        ("5", "c.yaml", "expected lines 'value: name'"),
        ("[]", "c.yaml", "expected lines 'value: name'"),
        ("1: [x]", "c.yaml", "is not a name"),
        ("classes:\n  cat:\n", "c.yaml", "'cat' is neither a value"),
        ("classes:\n  cat: 1\n  dog: 1\n", "c.yaml", "is given to both 'cat' and 'dog'"),
        ("classes:\n  cat: 1\npriority: [cat]\n", "c.yaml", "label images do not overlap"),
        ("a,b,c,d,e\n1,2\n", "c.csv", "expected a name with a value"),
        ("a:1,2,300::", "c.txt", "'1,2,300' is neither"),
        ('"#12345": a', "c.yaml", "neither a value"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(label_set, table, file, message):
    label_set.image("a.jpg")
    label_set.mask("a.png", drawn([1]))
    with pytest.raises(ConfigError) as refused:
        label_set.prepare(classes=label_set.classes(table, file))
    assert message in str(refused.value)
    assert file in str(refused.value)


# ---- which image belongs to which mask


@pytest.mark.parametrize(
    ("image", "mask", "settings"),
    [
        ("a.jpg", "a.png", {}),
        ("x/a.jpeg", "x/a.PNG", {}),
        ("a_sat.jpg", "a_mask.png", {"image_suffix": "_sat", "mask_suffix": "_mask"}),
        ("a.b.c.png", "a.b.c.png", {}),
        ("train/x/a.jpg", "x/a.png", {}),
        ("A.JPG", "a.png", {}),
        ("a.jpg", "labels/deep/a.png", {}),
    ],
)
def test_names_are_matched_by_stem_and_suffix(label_set, stored, image, mask, settings):
    label_set.image(image)
    label_set.image("other/b_sat.jpg")
    label_set.mask(mask, drawn([1]))
    result = label_set.prepare(**settings)
    sample = only(stored, label_set)
    assert sample.meta["file_name"] == image
    moved = image.lower().rsplit(".", 1)[0] != mask.rsplit(".", 1)[0] and not settings
    assert result.manifest.counts.get("found_elsewhere", 0) == (moved or image == "A.JPG")
    assert result.manifest.counts["without_mask"] == 1
    assert "1 images have no mask: they are left out" in result.notes


def test_images_and_masks_may_share_a_folder(label_set, stored):
    """Roboflow's semantic segmentation export: a.jpg, a_mask.png and _classes.csv in one folder."""
    label_set.masks = label_set.images
    label_set.image("a.jpg")
    labels = drawn([1])
    label_set.mask("a_mask.png", labels)
    classes = label_set.classes("Pixel Value, Class\n0, background\n1, crack\n", "_classes.csv")
    result = label_set.prepare(mask_suffix="_mask", classes=classes)
    assert np.array_equal(only(stored, label_set).mask, labels)
    assert "without_mask" not in result.manifest.counts
    label_set.mask("a_mask.png", labels).rename(label_set.images / "a.png")
    again = label_set.prepare(output=str(label_set.folder / "again"))
    assert again.manifest.samples == 1


def test_masks_may_lie_below_the_images(label_set):
    label_set.masks = label_set.images / "labels"
    label_set.image("photos/a.jpg")
    label_set.mask("a.png", drawn([1]))
    assert label_set.prepare().manifest.samples == 1


def test_archives_and_several_sources(label_set, stored):
    for name in ("a", "b"):
        label_set.image(f"{name}.jpg")
        label_set.mask(f"{name}.png", drawn([1, 2] if name == "a" else [3]))
    tar, archive = label_set.folder / "masks.tar", label_set.folder / "images.zip"
    with tarfile.open(tar, "w") as file:
        file.add(label_set.masks, "masks")
    with zipfile.ZipFile(archive, "w") as file:
        for path in label_set.images.iterdir():
            file.write(path, path.name)
    whole = label_set.prepare()
    packed = label_set.prepare(
        masks=(str(tar),), images=(str(archive),), output=str(label_set.folder / "packed")
    )
    assert whole.manifest.class_pixels == packed.manifest.class_pixels
    masks = [
        [sample.mask.tolist() for sample in stored(label_set.folder / name).values()]
        for name in ("shards", "packed")
    ]
    assert sorted(masks[0]) == sorted(masks[1])
    twice = label_set.prepare(
        masks=(str(label_set.masks), str(tar)),
        images=(str(label_set.images), str(archive)),
        output=str(label_set.folder / "twice"),
    )
    assert twice.manifest.samples == 4


# ---- what is left out, and what is refused


def test_what_cannot_be_trusted_is_left_out_whole(label_set):
    good = drawn([1])
    for name in ("good", "small", "unknown", "colors", "cut", "jpeg", "twice"):
        label_set.image(f"{name}.png")
    label_set.mask("good.png", good)
    label_set.mask("small.png", good[:-1])
    label_set.mask("unknown.png", drawn([1, 9, 11]))
    label_set.mask("colors.png", painted(good, {1: (1, 2, 3)}))
    cut = label_set.mask("cut.png", good)
    cut.write_bytes(cut.read_bytes()[:-9])
    jpeg = io.BytesIO()
    Image.fromarray(good).save(jpeg, "JPEG")
    label_set.mask("jpeg.png", good).write_bytes(jpeg.getvalue())
    label_set.mask("twice.png", good)
    label_set.mask("twice.tif", good)
    label_set.mask("gone.png", good)
    result = label_set.prepare(classes=label_set.classes("- background\n- cat"))
    reasons = sorted((entry.file_name, entry.reason) for entry in result.quarantined)
    assert reasons == [
        ("colors.png", "unexpected-colors"),
        ("cut.png", "truncated-image"),
        ("gone.png", "missing-file"),
        ("jpeg.png", "lossy-mask"),
        ("small.png", "size-mismatch"),
        ("twice.png", "shared-file"),
        ("twice.tif", "shared-file"),
        ("unknown.png", "unknown-value"),
    ]
    details = {entry.file_name: entry.detail for entry in result.quarantined}
    assert details["unknown.png"] == "the mask contains 9, 11, not listed in --classes"
    assert "#010203" in details["colors.png"]
    assert result.manifest.samples == 1


def test_exif_is_settled_by_the_size_of_the_mask(label_set, stored):
    """Stored as 16 x 12 and turned by EXIF; one mask lies like the stored pixels, one upright."""
    label_set.image("stored.jpg", orientation=6)
    label_set.mask("stored.png", drawn([1]))
    label_set.image("upright.jpg", orientation=6)
    label_set.mask("upright.png", np.ascontiguousarray(drawn([1]).T))
    label_set.prepare()
    found = {s.meta["file_name"]: s.meta for s in stored(label_set.folder / "shards").values()}
    assert found["stored.jpg"]["orientation"] == 1
    assert found["upright.jpg"]["orientation"] == 6


def test_binary_masks_whose_foreground_is_ignored_are_warned_of(label_set, run_cocoseg):
    label_set.image("a.jpg")
    label_set.mask("a.png", drawn([255]))
    flags = ("--images", label_set.images, "--masks", label_set.masks)
    classes = label_set.classes("0: background\n1: fruit\n")
    ran = run_cocoseg(
        "prepare", *flags, "--classes", classes, "--output", label_set.folder / "shards"
    )
    assert ran.code == 0
    assert "warning: the masks look like binary masks" in ran.err


def test_values_with_gaps_are_told(label_set):
    label_set.image("a.jpg")
    label_set.mask("a.png", drawn([64, 128, 255]))
    notes = label_set.prepare().notes
    assert "3 of the values 0 to 128 occur" in notes[0]
    assert notes[1].startswith("the value 255 is ignored")


def test_lossy_masks_beside_others_are_left_out_as_such(label_set):
    for name in ("a", "b"):
        label_set.image(f"{name}.png")
        label_set.mask(f"{name}.{'png' if name == 'a' else 'jpg'}", drawn([1]))
    result = label_set.prepare()
    assert [(entry.file_name, entry.reason) for entry in result.quarantined] == [
        ("b.png", "lossy-mask")
    ]
    assert "without_mask" not in result.manifest.counts


@pytest.mark.parametrize(
    ("name", "saved"),
    [
        ("b.jp2", {"format": "JPEG2000"}),
        ("b.avif", {"format": "AVIF"}),
        ("b.webp", {"format": "WEBP"}),
        ("b.png", {"format": "AVIF"}),
        ("b.tif", {"format": "TIFF", "compression": "jpeg"}),
    ],
)
def test_no_lossy_format_is_taken_for_labels(label_set, name, saved):
    for each in ("a", "b"):
        label_set.image(f"{each}.png")
        label_set.mask(f"{each}.png", drawn([1]))
    (label_set.masks / "b.png").unlink()
    Image.fromarray(drawn([1])).save(label_set.masks / name, **saved)
    (entry,) = label_set.prepare().quarantined
    assert (entry.file_name, entry.reason) == ("b.png", "lossy-mask")


def test_a_mask_may_keep_the_extension_of_its_image(label_set, stored):
    label_set.image("a.jpg")
    label_set.image("a.png")
    label_set.mask("a.jpg.png", drawn([1]))
    label_set.prepare()
    assert only(stored, label_set).meta["file_name"] == "a.jpg"


def test_images_of_one_stem_are_ambiguous(label_set):
    for name in ("a.jpg", "a.jpeg", "b.jpg"):
        label_set.image(name)
    label_set.mask("a.png", drawn([1]))
    label_set.mask("b.png", drawn([1]))
    (entry,) = label_set.prepare().quarantined
    assert (entry.reason, "several images: a.jpeg, a.jpg" in entry.detail) == (
        "ambiguous-file",
        True,
    )


def test_colors_become_train_ids_in_the_order_of_the_file(label_set):
    label_set.image("a.jpg")
    label_set.mask("a.png", painted(drawn([1, 2, 3]), COLORS))
    table = '"#804080": road\n"#0000ff": sea\n"#0a0a0a": roof\n'
    found = names(label_set.prepare(classes=label_set.classes(table)))
    assert found == ("background", "road", "sea", "roof")


def test_binary_masks_are_named_as_such(label_set):
    label_set.image("a.jpg")
    label_set.mask("a.png", drawn([255]))
    with pytest.raises(DataError, match=r"look like binary masks: .* only 0 and 255"):
        label_set.prepare()
    label_set.mask("a.png", drawn([0]))
    with pytest.raises(DataError, match="contain no class"):
        label_set.prepare()


def test_colors_without_a_table_are_refused(label_set):
    label_set.image("a.jpg")
    label_set.mask("a.png", painted(drawn([1]), COLORS))
    with pytest.raises(ConfigError, match=r"a\.png contains colors \(#000000, #804080\)"):
        label_set.prepare()


def test_instance_ids_are_not_taken_for_classes(label_set):
    label_set.image("a.jpg")
    label_set.mask("a.png", drawn([24001, 24002, 26003], np.uint16))
    with pytest.raises(ConfigError, match="are these instance ids"):
        label_set.prepare()


def test_a_damaged_mask_ends_no_reading_of_values(label_set):
    for name in ("a", "b"):
        label_set.image(f"{name}.jpg")
        label_set.mask(f"{name}.png", drawn([1]))
    (label_set.masks / "b.png").write_bytes(b"no image")
    result = label_set.prepare()
    assert [entry.reason for entry in result.quarantined] == ["undecodable-image"]
    assert names(result) == ("background", "class 1")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"annotations": ("a.json",)}, "give one of them"),
        ({"skip_empty": True}, "--skip-empty: is for --annotations"),
        ({"images": ("a", "b")}, "come in pairs: got 1 and 2"),
        ({"classes": "coco"}, "--classes coco: is for --annotations"),
        ({"masks": (), "mask_suffix": "_m"}, "are for --masks"),
        ({"masks": ("/nowhere",)}, "--masks /nowhere: no such folder"),
    ],
)
def test_settings_that_contradict_are_refused(label_set, settings, message):
    label_set.image("a.jpg")
    label_set.mask("a.png", drawn([1]))
    with pytest.raises(ConfigError) as refused:
        label_set.prepare(**settings)
    assert message in str(refused.value)


def test_folders_that_do_not_belong_together_are_named(label_set):
    label_set.image("photo_1.jpg")
    label_set.mask("mask_1.png", drawn([1]))
    with pytest.raises(DataError, match="none of the 1 masks has an image in") as refused:
        label_set.prepare()
    assert "--mask-suffix" in str(refused.value)
    with pytest.raises(DataError, match="no file with a name that ends in _x"):
        label_set.prepare(mask_suffix="_x")
    (label_set.masks / "mask_1.png").rename(label_set.masks / "mask_1.jpg")
    with pytest.raises(DataError, match="not exact labels"):
        label_set.prepare()


# ---- the same plan, splits, report, dry run and resume as of annotations


def test_splits_and_the_report_and_a_second_run(label_set):
    for number in range(30):
        label_set.image(f"{number}.jpg")
        label_set.mask(f"{number}.png", drawn([1, 2]))
    first = label_set.prepare(split="train=0.7,val=0.3", samples_per_shard=4)
    assert [split.name for split in first.splits] == ["train", "val"]
    assert sum(split.manifest.samples for split in first.splits) == 30
    shards = label_set.folder / "shards"
    assert "class 2" in (shards / "prepare-report.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in shards.rglob("*.tar")}
    label_set.prepare(split="train=0.7,val=0.3", samples_per_shard=4)
    assert before == {path: path.stat().st_mtime_ns for path in shards.rglob("*.tar")}
    place = {path.name for path in (label_set.images).iterdir()}
    assert len(place) == 30


def test_one_more_image_changes_no_split(label_set, stored):
    for number in range(20):
        label_set.image(f"{number:02}.jpg")
        label_set.mask(f"{number:02}.png", drawn([1]))
    split = {"split": "train=0.5,val=0.5"}
    label_set.prepare(**split)
    label_set.image("000.jpg")
    label_set.mask("000.png", drawn([1]))
    label_set.prepare(**split, output=str(label_set.folder / "more"))

    def members(folder):
        samples = stored(label_set.folder / folder / "train").values()
        return {sample.meta["file_name"] for sample in samples}

    assert members("more") - {"000.jpg"} == members("shards")


def test_other_masks_or_tables_are_refused(label_set):
    label_set.image("a.jpg")
    label_set.mask("a.png", drawn([1]))
    label_set.prepare(classes=label_set.classes("1: cat"))
    with pytest.raises(ConfigError, match="made from other inputs or settings"):
        label_set.prepare(classes=label_set.classes("1: dog"))
    label_set.mask("a.png", drawn([1, 1, 1, 1]))
    with pytest.raises(ConfigError, match="made from other inputs or settings"):
        label_set.prepare(classes=label_set.classes("1: cat"))
    label_set.prepare(classes=label_set.classes("1: cat"), overwrite=True)


def test_the_manifest_tells_the_table(label_set):
    label_set.image("a.jpg")
    label_set.mask("a.png", painted(drawn([1]), COLORS))
    table = 'classes:\n  road: ["#804080", 7]\nothers: background\n'
    label_set.prepare(classes=label_set.classes(table), mask_suffix="")
    settings = read_manifest(locate(str(label_set.folder / "shards"))).settings
    assert settings["colors"] == {"#000000": 0, "#804080": 1}
    assert settings["train_ids"] == [{"0": 0, "7": 1}]
    assert settings["other_values"] == "0"
    assert settings["masks"] is True


def test_shrinking_takes_the_pixel_under_each_center(label_set, stored):
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 32:] = 1
    label_set.image("a.png", (64, 64))
    label_set.mask("a.png", labels)
    label_set.prepare(max_side=16)
    assert np.array_equal(only(stored, label_set).mask, labels[2::4, 2::4])


def test_a_dry_run_counts_masks(label_set, run_cocoseg):
    label_set.image("a.jpg")
    label_set.image("b.jpg")
    label_set.mask("a.png", drawn([1]))
    label_set.mask("b.png", drawn([3]))
    flags = ("--images", label_set.images, "--masks", label_set.masks)
    classes = label_set.classes("- background\n- cat")
    ran = run_cocoseg("prepare", *flags, "--classes", classes, "--dry-run", "--json")
    assert ran.code == 4, ran.err
    told = json.loads(ran.out)
    assert told["masks"] == told["images"] == 2
    assert told["problems"] == {"unknown-value": 1}
    assert "annotations" not in told
    ran = run_cocoseg(
        "prepare", *flags, "--classes", classes, "--output", label_set.folder / "shards"
    )
    assert ran.code == 4
