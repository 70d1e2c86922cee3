"""`cocoseg infer`: one mask for every photograph, and nothing lost, mixed up or overwritten."""

import io
import json
import os
import re
import struct
import zlib
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
import yaml
from cocoseg.model.predictor import Predictor
from cocoseg.storage import LocalPath
from cocoseg.taxonomy import coco_taxonomy
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import SegformerForSemanticSegmentation, SegformerImageProcessorPil

HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


@pytest.fixture
def put(photos, draw):
    """Write a photograph under `photos`; `image` is an array, or a size to draw."""

    def write(name, image=(30, 44), **save):
        path = photos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(image, tuple):
            image = draw(*image, seed=len(name))
        Image.fromarray(image).save(path, **save)
        return path

    return write


@pytest.fixture
def infer(run_cocoseg, checkpoint, photos, tmp_path):
    """Run `cocoseg infer` on `photos`, into `out`."""

    def run(*more, source=photos, output=tmp_path / "out", checkpoint=checkpoint):
        paths = ("--checkpoint", checkpoint, "--input", source, "--output", output)
        return run_cocoseg("infer", *paths, *more)

    return run


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


BESIDE = {"config.yaml", "classes.json", "predictions.jsonl", ".files.json"}
"""What lies beside the masks."""


def files(folder):
    """Everything below a folder, but what is always beside the masks."""
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return sorted(found - BESIDE)


def mask_of(path):
    """Decode a mask, which must be a single-channel 8-bit PNG."""
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        return np.array(image)


def masks_in(folder):
    return {name: mask_of(folder / name) for name in files(folder) if name.endswith(".png")}


def expected_mask(checkpoint, pixels):
    """What transformers predicts by itself, and where that is beyond doubt."""
    network = SegformerForSemanticSegmentation.from_pretrained(checkpoint).eval()
    processor = SegformerImageProcessorPil.from_pretrained(checkpoint)
    with torch.no_grad():
        out = network(**processor(pixels, input_data_format="channels_last", return_tensors="pt"))
        logits = F.interpolate(out.logits, pixels.shape[:2], mode="bilinear")[0]
    best = logits.topk(2, dim=0).values
    return logits.argmax(0).numpy(), ((best[0] - best[1]) > 1e-3).numpy()


def assert_predicts(checkpoint, mask, pixels):
    expected, sure = expected_mask(checkpoint, pixels)
    assert mask.shape == expected.shape
    assert np.array_equal(mask[sure], expected[sure])


# --- what goes in


@pytest.mark.usefixtures("image_processor")
def test_a_folder_is_predicted_and_nested_names_are_kept(infer, put, out, checkpoint):
    paths = [put(name) for name in ("a.jpg", "b/c/d.png", "b/a.JPG", "x.y.webp")]
    ran = infer("--no-tta")
    assert ran.code == 0, ran.err
    assert files(out) == ["a.png", "b/a.png", "b/c/d.png", "x.y.png"]
    for path, name in zip(paths, ("a.png", "b/c/d.png", "b/a.png", "x.y.png"), strict=True):
        with Image.open(path) as image:
            assert_predicts(checkpoint, mask_of(out / name), np.array(image.convert("RGB")))


def test_the_masks_of_the_test_photographs_differ(infer, put, out):
    put("a.png"), put("bb.png")
    assert infer("--no-tta").code == 0
    a, b = mask_of(out / "a.png"), mask_of(out / "bb.png")
    assert len(np.unique(a)) > 2
    assert not np.array_equal(a, b)


def test_files_that_are_no_images_by_name_are_passed_over(infer, put, photos, out):
    put("a.png")
    (photos / "notes.txt").write_text("no image")
    (photos / "instances.json").write_text("{}")
    (photos / "._a.png").write_bytes(b"litter")
    put("b.jfif")
    ran = infer("--no-tta", "--json")
    assert ran.code == 0
    assert files(out) == ["a.png", "b.png"]
    assert json.loads(ran.out)["skipped"] == ["instances.json", "notes.txt"]


def test_a_single_image_is_predicted(infer, put, out):
    path = put("deep/one.png")
    assert infer("--no-tta", source=path).code == 0
    assert files(out) == ["one.png"]


def test_shards_are_predicted_under_their_keys(infer, golden, stored, out, checkpoint):
    assert infer("--no-tta", source=golden.shards("val")).code == 0
    samples = stored(golden.shards("val"))
    assert set(masks_in(out)) == {f"{key}.png" for key in samples}
    for key, sample in samples.items():
        assert mask_of(out / f"{key}.png").shape == sample.mask.shape


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**/*.jpg", ["a.png", "b/c.png", "b/d/e.png"]),
        ("*.jpg", ["a.png"]),
        ("b/*.jpg", ["c.png"]),
        ("[ab]*/**/?.jpg", ["b/c.png", "b/d/e.png"]),
    ],
)
def test_a_pattern_names_images(infer, put, photos, out, pattern, expected):
    for name in ("a.jpg", "b/c.jpg", "b/d/e.jpg", "b/d/f.png"):
        put(name)
    ran = infer("--no-tta", source=photos / pattern)
    assert ran.code == 0, ran.err
    assert files(out) == expected


def test_a_pattern_that_matches_nothing_is_refused(infer, put, photos, out):
    put("a.jpg")
    refused(infer(source=photos / "*.webp"), out, "matches no file")


def test_a_pattern_that_matches_nothing_but_masks_is_refused(infer, put, photos, tmp_path):
    assert infer("--no-tta", source=put("a.jpg"), output=photos).code == 0
    ran = infer(source=photos / "*.png", output=photos)
    assert ran.code == 2
    assert "matches nothing but files of --output" in ran.err


def test_a_list_of_windows_counts_each_file_once(infer, put, photos, out):
    put("a.jpg")
    (photos / "list.txt").write_bytes(b"\xef\xbb\xbfa.jpg\r\n./a.jpg\r\n")
    assert json.loads(infer("--no-tta", "--json", source=photos / "list.txt").out)["images"] == 1
    assert files(out) == ["a.png"]


def test_no_scale_at_all_is_refused(infer, put, out):
    put("a.jpg")
    refused(infer("--set=infer.tta_scales=[]"), out, "tta_scales", "a list of 1 or more values")


def test_logits_that_are_no_numbers_are_bad_data(infer, put, make_checkpoint, out):
    put("a.jpg")
    broken = make_checkpoint(coco_taxonomy())
    weights = load_file(broken / "model.safetensors")
    weights["decode_head.classifier.bias"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    ran = infer(checkpoint=broken)
    assert ran.code == 3
    assert "not finite" in ran.err
    assert not list(out.glob("*.png"))


def test_a_list_names_images(infer, put, photos, out, tmp_path):
    paths = [put(name) for name in ("a.jpg", "b/c.jpg", "b/d.jpg")]
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "some.txt").write_text(f"../photos/b/c.jpg\n\n{paths[0]}\n{paths[0]}\n")
    assert infer("--no-tta", source=lists / "some.txt").code == 0
    assert files(out) == ["a.png", "b/c.png"]
    (lists / "one.txt").write_text("../photos/b/d.jpg\n../photos/b/gone.jpg\n")
    ran = infer("--no-tta", source=lists / "one.txt", output=tmp_path / "other")
    assert ran.code == 4
    assert ran.out.count("gone.jpg") == 1
    assert files(tmp_path / "other") == ["d.png"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "lists no file"),
        (b"\xff\xfe", "is not a list in UTF-8"),
        (b"a.jpg\ns3://b/c.jpg", "two lists"),
        (b"a.jpg\n/\n", "is not an image file"),
    ],
)
def test_a_list_that_is_none_is_refused(infer, put, photos, out, text, said):
    put("a.jpg")
    (photos / "list.txt").write_bytes(text)
    refused(infer(source=photos / "list.txt"), out, said)


def test_a_list_on_an_object_store_names_urls(infer, put, out):
    store = fsspec.filesystem("memory")
    for name in ("a.png", "b/c.png"):
        store.pipe_file(f"/infer-list/{name}", put(name).read_bytes())
    lines = "memory://infer-list/a.png\nmemory://infer-list/b/c.png\n"
    store.pipe_file("/infer-list/list.txt", lines.encode())
    ran = infer("--no-tta", source="memory://infer-list/list.txt")
    assert ran.code == 0, ran.err
    assert files(out) == ["a.png", "b/c.png"]


def test_what_was_no_plain_rgb_is_counted(infer, put, photos, draw):
    put("rgb.png"), put("gray.png", draw(30, 44)[..., 0]), put("gray.jpg", draw(30, 44)[..., 1])
    Image.fromarray(draw(30, 44)).convert("CMYK").save(photos / "c.jpg")
    clear = Image.fromarray(draw(30, 44))
    clear.putalpha(128)
    clear.save(photos / "a.webp")
    Image.fromarray(draw(30, 44)).convert("P").save(photos / "p.gif")
    Image.fromarray(draw(30, 44)[..., 0].astype(np.uint16) << 8).save(photos / "w.tif")
    (photos / "gray.jpg").rename(photos / "gray2.jpg")
    for _ in range(2):  # a finished run knows it, too
        told = json.loads(infer("--no-tta", "--json").out)
        expected = {"gray": 2, "CMYK": 1, "alpha": 1, "palette": 1, "16 bits": 1}
        assert told["converted"] == expected
        assert told["images"] == 7


def test_of_an_animation_the_first_picture_counts(infer, photos, draw, out):
    frames = [Image.fromarray(draw(30, 44, seed=i)).quantize(64) for i in range(3)]
    frames[0].save(photos / "a.gif", save_all=True, append_images=frames[1:], duration=50)
    frames[0].save(photos / "b.gif")
    assert infer("--no-tta").code == 0
    assert np.array_equal(mask_of(out / "a.png"), mask_of(out / "b.png"))


def test_a_pixel_bomb_is_listed_and_never_decoded(infer, put, photos, out):
    put("a.png")
    size = struct.pack(">II", 60_000, 60_000)
    header = b"IHDR" + size + b"\x08\x00\x00\x00\x00"
    content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header
    content += struct.pack(">I", zlib.crc32(header)) + struct.pack(">I", 0) + b"IDAT"
    (photos / "bomb.png").write_bytes(content + struct.pack(">I", zlib.crc32(b"IDAT")))
    ran = infer("--no-tta", "--json")
    assert ran.code == 4
    (line,) = json.loads(ran.out)["unreadable"]
    assert "bomb.png" in line
    assert "3600000000 pixels" in line
    assert files(out) == ["a.png"]


def test_images_that_are_too_large_for_the_memory_end_nothing(infer, put, photos, out):
    put("a.png")
    (photos / "wide.png").write_bytes(one_row_png(178_000_000))  # in Pillow alone, a MemoryError
    with (photos / "sparse.jpg").open("wb") as file:
        file.truncate(40 << 30)
    ran = infer("--no-tta", "--json")
    assert ran.code == 4
    sparse, wide = json.loads(ran.out)["unreadable"]
    assert "sparse.jpg: 42949672960 bytes; at most 1073741824" in sparse
    assert "wide.png: 178,000,000 x 1 pixels; at most 67,108,864 on a side" in wide
    assert files(out) == ["a.png"]


@pytest.mark.parametrize("where", ["decode", "resize"])
def test_want_of_memory_for_one_image_is_its_error(infer, put, out, monkeypatch, where):
    put("a.png"), put("b.png")
    put("c.png", (31, 44))
    owner, name = (Predictor, "resize") if where == "resize" else (Image.Image, "load")
    plain = getattr(owner, name)

    def lacking(self, *image):
        if (image[0].shape[0] if image else self.size[1]) == 31:
            raise MemoryError
        return plain(self, *image)

    monkeypatch.setattr(owner, name, lacking)
    ran = infer("--no-tta", "--json")
    assert ran.code == 4
    (line,) = json.loads(ran.out)["unreadable"]
    assert "c.png: not enough memory" in line
    assert files(out) == ["a.png", "b.png"]


def one_row_png(width):
    """Return a gray PNG of one row, all of one value."""
    deflater = zlib.compressobj(1)
    body = deflater.compress(bytes(1 + width)) + deflater.flush()
    header = struct.pack(">IIBBBBB", width, 1, 8, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, part in ((b"IHDR", header), (b"IDAT", body), (b"IEND", b"")):
        content += struct.pack(">I", len(part)) + kind + part
        content += struct.pack(">I", zlib.crc32(kind + part))
    return content


def test_an_output_that_cannot_be_written_is_told(infer, put, tmp_path):
    put("a.png")
    (tmp_path / "file").write_text("")
    ran = infer("--no-tta", output=tmp_path / "file" / "out")
    assert ran.code in (1, 2)
    assert "Traceback" not in ran.err
    assert str(tmp_path / "file") in ran.err


@pytest.mark.usefixtures("image_processor")
@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_photograph_that_exif_turns_gets_an_upright_mask(
    infer, photos, draw, out, checkpoint, orientation
):
    upright = draw(30, 44)
    turn = {  # how an upright picture is stored under each orientation
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(upright).transpose(turn[orientation]).save(photos / "t.png", exif=exif)
    assert infer("--no-tta", "--overlay", "--set=infer.legend=false").code == 0
    assert_predicts(checkpoint, mask_of(out / "t.png"), upright)
    with Image.open(out / "overlay" / "t.png") as image:
        assert image.size == (44, 30)


@pytest.mark.usefixtures("image_processor")
@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_every_kind_of_photograph_is_predicted(infer, photos, draw, out, checkpoint, mode):
    gray = draw(30, 44)[..., 0]
    if mode == "I;16":
        image, shown = (
            Image.fromarray(gray.astype(np.uint16) << 8),
            np.repeat(gray[..., None], 3, 2),
        )
    else:
        image = Image.fromarray(draw(30, 44)).convert(mode)
        shown = np.array(image.convert("RGB"))
    image.save(photos / "a.tif")
    ran = infer("--no-tta")
    assert ran.code == 0, ran.err
    assert_predicts(checkpoint, mask_of(out / "a.png"), shown)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (64, 64), (7, 3), (1, 20_000)])
@pytest.mark.parametrize("keep_ratio", [False, True])
def test_any_size_gets_a_mask_of_that_size(infer, put, out, make_checkpoint, size, keep_ratio):
    from cocoseg.taxonomy import coco_taxonomy

    put("a.png", size)
    folder = make_checkpoint(coco_taxonomy(), keep_ratio=keep_ratio)
    assert infer(checkpoint=folder).code == 0
    assert mask_of(out / "a.png").shape == size


def test_masks_hold_train_ids_alone(infer, put, out, three_classes):
    for i in range(4):
        put(f"{'x' * i}_.png")
    assert infer(checkpoint=three_classes).code == 0
    values = np.unique(np.concatenate([mask.ravel() for mask in masks_in(out).values()]))
    assert set(values) == {0, 1, 2}


@pytest.mark.parametrize(
    "name",
    [
        "with space.jpg", "-dash.jpg", "--json.jpg", "%41%2F.jpg", "a*b?[c].jpg", "q'u\"o.jpg",
        "ü–漢字–🐈.jpg", "new\nline.jpg", "tab\t.jpg", "{x}.jpg", "$HOME `id`.jpg", ".hidden.jpg",
        "dots...jpg", "no:colon|.jpg", "back\\slash.jpg", "…/…/~.jpg",
    ],
)  # fmt: skip
@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_hostile_names_are_names(infer, put, out, name, flags):
    put(name)
    ran = infer("--no-tta", "--set", "infer.batch_size=1", *flags)
    assert ran.code == 0, ran.err
    assert files(out) == sorted([name.removesuffix(".jpg") + ".png"])


@pytest.mark.parametrize(
    "readable",
    [
        True,
        False,
    ],
)
def test_a_name_that_is_not_utf_8_is_a_name(infer, put, photos, readable):
    put("good.jpg")
    odd = os.path.join(os.fsencode(photos), b"\xff\xfe.jpg")
    Path(os.fsdecode(odd)).write_bytes((photos / "good.jpg").read_bytes() * readable)
    ran = infer("--no-tta", "--json")
    assert ran.code == (0 if readable else 4)
    json.loads(ran.out)


def test_the_longest_name_that_a_disk_takes_is_a_name(infer, put, out):
    put("x" * 251 + ".jpg")
    assert infer("--no-tta", "--json").code == 0
    assert files(out) == ["x" * 251 + ".png"]


def test_a_link_to_a_folder_of_photographs_is_that_folder(infer, put, photos, out, tmp_path):
    put("a.jpg")
    (tmp_path / "link").symlink_to(photos)
    assert infer("--no-tta", source=tmp_path / "link").code == 0
    assert files(out) == ["a.png"]


def test_photographs_and_masks_may_lie_on_an_object_store(infer, put, out):
    store = fsspec.filesystem("memory")
    for name in ("a.png", "b/c.png"):
        store.pipe_file(f"/infer-test/photos/{name}", put(name).read_bytes())
    assert infer("--no-tta").code == 0
    ran = infer(
        "--no-tta", "--color", source="memory://infer-test/photos", output="memory://infer-test/out"
    )
    assert ran.code == 0, ran.err
    written = {path.removeprefix("/infer-test/out/") for path in store.find("/infer-test/out")}
    assert written == {"a.png", "b/c.png", "color/a.png", "color/b/c.png", *BESIDE}
    for name in ("a.png", "b/c.png"):
        assert store.cat_file(f"/infer-test/out/{name}") == (out / name).read_bytes()
    store.pipe_file("/infer-test/photos/a.png", put("other.png", (31, 45)).read_bytes())
    ran = infer(
        "--no-tta", "--color", source="memory://infer-test/photos", output="memory://infer-test/out"
    )
    with Image.open(io.BytesIO(store.cat_file("/infer-test/out/a.png"))) as mask:
        assert mask.size == (45, 31)  # it has changed
    inside = "memory://infer-test/photos/masks"
    for _ in range(2):
        ran = infer("--no-tta", "--json", source="memory://infer-test/photos", output=inside)
        assert json.loads(ran.out)["images"] == 2
    ran = infer(source="memory://infer-test/photos/", output="memory://infer-test/photos")
    assert (ran.code, "give the masks their own folder" in ran.err) == (2, True)


def test_a_bare_file_of_weights_predicts_as_its_folder_does(infer, put, checkpoint, tmp_path):
    put("a.png")
    assert infer("--no-tta", output=tmp_path / "by-folder").code == 0
    network = SegformerForSemanticSegmentation.from_pretrained(checkpoint)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "w.pt")
    sets = (f"model.name={checkpoint}", "model.input_size=64")
    flags = [part for text in sets for part in ("--set", text)]
    ran = infer("--no-tta", *flags, checkpoint=tmp_path / "w.pt", output=tmp_path / "by-file")
    assert ran.code == 0, ran.err
    assert np.array_equal(
        mask_of(tmp_path / "by-folder" / "a.png"), mask_of(tmp_path / "by-file" / "a.png")
    )
    recorded = {name: tmp_path / name / "config.yaml" for name in ("by-folder", "by-file")}
    used = {name: yaml.safe_load(path.read_text()) for name, path in recorded.items()}
    assert [set(used[name]) for name in recorded] == [{"model", "infer"}] * 2
    assert used["by-folder"]["model"] == {"inference_precision": "auto", "tf32": False}
    assert used["by-file"]["model"]["name"] == str(checkpoint)


def test_a_bare_file_without_its_network_asks_for_it(infer, put, out, tmp_path):
    put("a.png")
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "w.pt")
    refused(infer(checkpoint=tmp_path / "w.pt"), out, "contains weights alone", "--set model.name=")


# --- what comes out


def test_pictures_are_written_where_they_were_asked_for_and_only_then(infer, put, out, tmp_path):
    put("a.jpg"), put("b/c.jpg")
    masks = ["a.png", "b/c.png"]
    assert infer("--no-tta").code == 0
    assert files(out) == masks
    for flags, kinds in (
        (("--color",), ["color"]),
        (("--overlay",), ["overlay"]),
        (("--color", "--overlay"), ["color", "overlay"]),
    ):
        output = tmp_path / "-".join(kinds)
        assert infer("--no-tta", *flags, output=output).code == 0
        pictures = [f"{kind}/{name}" for kind in kinds for name in ("a.png", "b/c.png")]
        assert files(output) == sorted(masks + pictures)


def test_pictures_show_the_mask(infer, put, photos, out):
    put("a.png")
    assert infer("--no-tta", "--color", "--overlay", "--set=infer.palette=voc").code == 0
    mask = mask_of(out / "a.png")
    voc = np.zeros((256, 3), np.uint8)  # VOClabelcolormap.m: bits dealt to R, G, B from the top
    for i in range(256):
        for bit in range(8):
            for channel in range(3):
                voc[i, channel] |= (i >> (3 * bit + channel) & 1) << (7 - bit)
    with Image.open(out / "color" / "a.png") as image:
        assert np.array_equal(np.array(image), voc[mask])
    with Image.open(out / "overlay" / "a.png") as image, Image.open(photos / "a.png") as photo:
        overlay, pixels = np.array(image), np.array(photo)
    assert overlay.shape[0] > pixels.shape[0]  # the legend is below
    overlay = overlay[: pixels.shape[0]]
    assert np.array_equal(overlay[mask == 0], pixels[mask == 0])
    assert (overlay[mask > 0] != pixels[mask > 0]).any(axis=1).mean() > 0.9


def test_the_settings_lie_beside_the_masks(infer, put, out, checkpoint):
    put("a.png")
    assert infer("--no-tta", "--batch-size", 3).code == 0
    saved = yaml.safe_load((out / "config.yaml").read_text())["infer"]
    assert (saved["checkpoint"], saved["use_tta"], saved["batch_size"]) == (
        str(checkpoint), False, 3,
    )  # fmt: skip


def test_the_result_is_one_json_object_on_stdout(infer, put, photos, out):
    put("a.png"), put("b.png")
    (photos / "empty.jpg").write_bytes(b"")
    ran = infer("--no-tta", "--json")
    result = json.loads(ran.out)
    assert (result["output"], result["images"]) == (str(out), 2)
    assert len(result["unreadable"]) == 1
    assert "empty.jpg" in result["unreadable"][0]


def test_running_again_gives_the_same_files(infer, put, out):
    put("a.jpg"), put("b/a.jpg")
    assert infer("--color").code == 0
    before = {name: (out / name).read_bytes() for name in files(out)}
    assert infer("--color").code == 0
    assert {name: (out / name).read_bytes() for name in files(out)} == before


def test_the_batch_size_changes_no_mask(infer, put, tmp_path):
    """But for ties in the last bits of the logits, which these photographs do not have."""
    for i in range(5):
        put(f"{'x' * i}_.png", (30 + i, 44))
    outputs = []
    for size in (1, 3):
        outputs.append(tmp_path / f"by-{size}")
        assert infer("--batch-size", size, output=outputs[-1]).code == 0
    one, three = map(masks_in, outputs)
    assert one.keys() == three.keys()
    wrong = sum(int((one[name] != three[name]).sum()) for name in one)
    assert wrong <= 1e-3 * sum(mask.size for mask in one.values())


# --- test-time augmentation


def test_tta_is_on_unless_it_is_turned_off(infer, put, tmp_path):
    put("a.png", (60, 80))
    outputs = {
        "default": (), "tta": ("--tta",), "no-tta": ("--no-tta",),
        "set": ("--set", "infer.use_tta=false"), "flag wins": ("--set", "infer.use_tta=true",
        "--no-tta"), "one view": ("--set", "infer.tta_scales=[1.0]",
        "--set", "infer.tta_flip=false"),
    }  # fmt: skip
    masks = {}
    for name, flags in outputs.items():
        assert infer(*flags, output=tmp_path / name).code == 0
        masks[name] = mask_of(tmp_path / name / "a.png").tobytes()
    assert masks["default"] == masks["tta"]
    assert masks["no-tta"] == masks["set"] == masks["flag wins"] == masks["one view"]
    assert masks["default"] != masks["no-tta"]


# --- refused before anything is written


def refused(ran, out, *said):
    assert ran.code == 2
    assert ran.out == ""
    assert "Traceback" not in ran.err
    for text in said:
        assert text in ran.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("one", "other"),
    [("a.jpg", "a.png"), ("b/a.jpg", "b/a.webp"), ("a.jpg", "A.jpg"), ("B/a.jpg", "b/a.png")],
)
def test_photographs_that_would_share_a_mask_are_refused(infer, put, out, one, other):
    put(one), put(other)
    refused(infer(), out, one, other, "would both become")


def test_photographs_of_one_name_in_two_folders_are_no_clash(infer, put, out):
    put("a.jpg"), put("b/a.jpg"), put("a/a.jpg")
    assert infer("--no-tta").code == 0
    assert len(masks_in(out)) == 3


@pytest.mark.parametrize(("one", "other"), [("a.jpg", "a.png/b.jpg"), ("b/A.jpg", "b/a.png/c.jpg")])
def test_a_mask_where_a_folder_is_needed_is_refused(infer, put, out, one, other):
    put(one), put(other)
    refused(infer(), out, one, other, "a folder of that name")


@pytest.mark.parametrize(
    "folder",
    ["color", "overlay", "Color", "color/deeper", "config.yaml", "predictions.jsonl", "coco.json"],
)
def test_photographs_where_something_else_goes_are_refused(infer, put, out, folder):
    put(f"{folder}/a.jpg")
    refused(infer(), out, "rename that folder")


def test_a_photograph_called_color_is_no_clash(infer, put, out):
    put("color.jpg"), put("b/color/x.jpg")
    assert infer("--no-tta", "--color").code == 0
    assert files(out) == [
        "b/color/x.png", "color.png", "color/b/color/x.png", "color/color.png",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["...jpg", "..jpg", ".jpg"])
def test_a_name_of_dots_is_a_name(infer, put, photos, out, name):
    put("a.jpg").rename(photos / name)
    assert infer("--no-tta").code == 0
    assert files(out) == [f"{name}.png"]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "b/a.png"])
@pytest.mark.parametrize("spelled", ["{}", "{}/", "{}/../photos", "{}/../link", "file://{}"])
def test_photographs_are_never_overwritten(infer, put, photos, tmp_path, name, spelled):
    path = put(name)
    before = path.read_bytes()
    (tmp_path / "link").symlink_to(photos)
    ran = infer("--no-tta", output=spelled.format(photos))
    assert ran.code == 2
    assert "give the masks their own folder" in ran.err
    assert files(photos) == [name]
    assert path.read_bytes() == before


def test_a_single_photograph_is_never_overwritten(infer, put, photos):
    path = put("a.png")
    ran = infer("--no-tta", source=path, output=photos)
    assert ran.code == 2
    assert "is an image of --input" in ran.err
    assert files(photos) == ["a.png"]


def test_the_mask_of_one_photograph_never_overwrites_another(infer, put, photos, tmp_path):
    """photos/photos/x.png would become photos/x.png in the folder above."""
    put("x.png"), put("photos/x.png")
    before = {name: (photos / name).read_bytes() for name in files(photos)}
    ran = infer("--no-tta", output=tmp_path)
    assert ran.code == 2
    assert {name: (photos / name).read_bytes() for name in files(photos)} == before


@pytest.mark.parametrize("kind", ["color", "overlay"])
def test_a_picture_never_overwrites_a_photograph(infer, put, photos, kind):
    path = put(f"{kind}/x.png")
    before = path.read_bytes()
    ran = infer("--no-tta", f"--{kind}", source=photos / kind, output=photos)
    assert ran.code == 2
    assert path.read_bytes() == before


@pytest.mark.parametrize("spelled", ["{}/masks", "{}/masks/", "{}/../link/masks", "{}/deep/masks"])
def test_an_output_inside_the_input_is_not_read_again(infer, put, photos, tmp_path, spelled):
    put("a.jpg"), put("b/a.jpg"), put("masks-of-carnival.jpg")
    (tmp_path / "link").symlink_to(photos)
    output = spelled.format(photos)
    for _ in range(2):
        ran = infer("--no-tta", "--color", "--json", output=output)
        assert ran.code == 0, ran.err
        assert json.loads(ran.out)["images"] == 3
    assert len(files(Path(output))) == 6


def test_what_another_inference_wrote_is_no_photograph(infer, put, photos, out):
    put("a.jpg"), put("masks/mine.jpg")
    assert infer("--no-tta", "--color", output=photos / "masks").code == 0
    (photos / "results").symlink_to(out)
    for output in (out, photos / "more", out):
        ran = infer("--no-tta", "--color", "--json", output=output)
        assert (ran.code, json.loads(ran.out)["images"]) == (0, 2)
    assert files(out) == ["a.png", "color/a.png", "color/masks/mine.png", "masks/mine.png"]


def test_a_folder_whose_name_only_begins_as_the_outputs_is_read(infer, put, photos):
    put("masks2/a.jpg"), put("a.jpg")
    ran = infer("--no-tta", "--json", output=photos / "masks")
    assert json.loads(ran.out)["images"] == 2


def test_an_absent_input_is_refused(infer, out, tmp_path):
    refused(infer(source=tmp_path / "absent"), out, "absent: no such file or folder")


def test_an_absent_checkpoint_is_refused(infer, put, out, tmp_path):
    put("a.png")
    refused(infer(checkpoint=tmp_path / "absent"), out, "absent")


def test_an_absent_file_of_weights_is_refused(infer, put, out, tmp_path):
    put("a.png")
    refused(infer(checkpoint=tmp_path / "w.pt"), out, "w.pt: no such file")


def test_a_folder_without_images_is_refused(infer, photos, out):
    (photos / "notes.txt").write_text("no image")
    refused(infer(), out, "contains no image")


def test_a_folder_that_cannot_be_listed_is_told(infer, put, out, monkeypatch):
    put("a.png")

    def denied(self, **_):
        raise PermissionError(13, os.strerror(13), self.url)

    monkeypatch.setattr(LocalPath, "walk_files", denied)
    ran = infer("--no-tta")
    assert ran.code == 3
    assert re.search(r"put .*photos: cannot be listed: .*Permission denied", ran.err)
    assert not out.exists()


@pytest.mark.parametrize("left_out", ["--checkpoint", "--input", "--output"])
def test_a_path_left_out_is_asked_for(run_cocoseg, checkpoint, put, photos, out, left_out):
    put("a.png")
    paths = {"--checkpoint": checkpoint, "--input": photos, "--output": out}
    del paths[left_out]
    ran = run_cocoseg("infer", *(part for pair in paths.items() for part in pair))
    refused(ran, out, left_out)


@pytest.mark.parametrize("device", ["cuda:77", "warp"])
def test_an_absent_device_is_refused(infer, put, out, device):
    put("a.png")
    refused(infer("--set", f"infer.device={device}"), out, device)


def test_a_dry_run_writes_nothing(infer, put, out):
    put("a.jpg"), put("b.jpg")
    ran = infer("--dry-run", "--json")
    assert ran.code == 0
    plan = json.loads(ran.out)
    assert (plan["images"], plan["views"], plan["output"]) == (2, 6, str(out))
    assert not out.exists()
    assert json.loads(infer("--dry-run", "--json", "--no-tta").out)["views"] == 1


def test_a_dry_run_refuses_what_the_run_would(infer, put, out):
    put("a.jpg")
    refused(infer("--dry-run", checkpoint="/absent"), out, "/absent: no such folder")
    refused(infer("--dry-run", checkpoint="absent.pt"), out, "absent.pt: no such file")
    put("a.png")
    refused(infer("--dry-run"), out, "would both become")


# --- photographs that cannot be read


def spoiled(photos, jpeg):
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (photos / "page.jpg").write_bytes(HTML)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_photographs_that_cannot_be_read_are_listed_and_the_rest_is_done(
    infer, put, photos, out, batch_size
):
    jpeg = put("a.jpg").read_bytes()
    put("d.jpg"), put("z.jpg")
    spoiled(photos, jpeg)
    ran = infer("--no-tta", "--json", "--batch-size", batch_size)
    assert ran.code == 4
    result = json.loads(ran.out)
    assert result["images"] == 3
    for name in ("empty.jpg", "cut.jpg", "page.jpg"):
        assert sum(name in line for line in result["unreadable"]) == 1
    assert "3 images could not be read" in ran.err
    assert files(out) == ["a.png", "d.png", "z.png"]


def test_of_many_that_cannot_be_read_the_first_are_told(infer, put, photos, out):
    put("a.jpg")
    for i in range(25):
        (photos / f"bad{i:02d}.jpg").write_bytes(b"")
    ran = infer("--no-tta")
    assert ran.code == 4
    lines = [line for line in ran.out.splitlines() if "bad" in line]
    assert len(lines) == 20
    assert ran.out.splitlines()[-1].strip() == "… and 5 more"
    assert "25 images could not be read" in ran.err
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 26


def test_when_no_photograph_can_be_read_it_is_bad_data(infer, photos, draw, out):
    buffer = io.BytesIO()
    Image.fromarray(draw(30, 44)).save(buffer, "JPEG")
    spoiled(photos, buffer.getvalue())
    ran = infer("--no-tta")
    assert ran.code == 3
    assert "empty.jpg" in ran.err
    assert masks_in(out) == {}


def test_a_photograph_that_vanishes_is_listed(infer, put, photos, out):
    put("a.jpg")
    (photos / "gone.jpg").symlink_to(photos / "never")
    (photos / "circle.jpg").symlink_to(photos / "circle.jpg")
    (photos / "folder.jpg").mkdir()
    for source in (photos, f"{photos}/*.jpg"):
        ran = infer("--no-tta", "--json", source=source)
        assert ran.code == 4
        assert [line.rsplit("/")[-1] for line in json.loads(ran.out)["unreadable"]] == [
            "circle.jpg: Too many levels of symbolic links",
            "gone.jpg: no such file",
        ]
        assert files(out) == ["a.png"]


def test_a_damaged_sample_of_a_shard_is_listed(infer, golden, tmp_path, out):
    for file in golden.shards("val").iterdir():
        content = bytearray(file.read_bytes())
        if file.name == "shard-000000.tar":
            content[700] ^= 255
        (tmp_path / "shards").mkdir(exist_ok=True)
        (tmp_path / "shards" / file.name).write_bytes(content)
    ran = infer("--no-tta", "--json", source=tmp_path / "shards")
    assert ran.code == 4
    (line,) = json.loads(ran.out)["unreadable"]
    assert "shard-000000.tar: sample" in line
    assert len(masks_in(out)) == 3


def test_damaged_weights_are_bad_data(infer, put, out, checkpoint, tmp_path):
    put("a.png")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in checkpoint.iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[:3000])
    ran = infer(checkpoint=broken)
    assert ran.code in (2, 3)
    assert "Traceback" not in ran.err
    assert not out.exists()
