"""Photographs: every mode becomes uint8 RGB, and what is no whole photograph is refused."""

import io
import pickle
import struct
import sys
import zlib

import numpy as np
import pytest
from cocoseg import photo
from cocoseg.photo import BadPhoto
from PIL import Image, ImageOps

WIDTH, HEIGHT = 6, 4
RGB = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def encoded(image, form="PNG", **save):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, form, **save)
    return buffer.getvalue()


def png_header(width, height, data=b"\0"):
    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
def test_rgb_comes_back_as_it_is(form):
    pixels = photo.decode(encoded(RGB, form))
    assert (pixels.dtype, pixels.flags.c_contiguous, pixels.flags.writeable) == (
        np.uint8, True, True,
    )  # fmt: skip
    assert np.array_equal(pixels, RGB)


def test_gray_is_repeated():
    assert np.array_equal(photo.decode(encoded(RGB[..., 0])), RGB[..., [0, 0, 0]])


def test_black_and_white_is_0_and_255():
    bits = RGB[..., 0] > 128
    assert np.array_equal(photo.decode(encoded(bits)), np.repeat(bits[..., None] * 255, 3, 2))


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_a_palette_is_looked_up(form):
    palette = Image.fromarray(RGB).quantize(8)
    expected = np.array(palette.convert("RGB"))
    assert np.array_equal(photo.decode(encoded(palette, form)), expected)


@pytest.mark.parametrize("alpha", [0, 77, 255])
def test_alpha_is_dropped_not_blended(alpha):
    rgba = np.dstack([RGB, np.full((HEIGHT, WIDTH), alpha, np.uint8)])
    assert np.array_equal(photo.decode(encoded(rgba)), RGB)
    gray_alpha = np.dstack([RGB[..., 0], rgba[..., 3]])
    assert np.array_equal(
        photo.decode(encoded(Image.fromarray(gray_alpha, "LA")))[..., 0], RGB[..., 0]
    )


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bits_keep_their_upper_byte(form):
    deep = (RGB[..., 0].astype(np.uint16) << 8) | 0x9C
    assert np.array_equal(photo.decode(encoded(deep, form)), RGB[..., [0, 0, 0]])


def test_cmyk_is_converted():
    flat = Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0))
    red = photo.decode(encoded(flat, "JPEG", quality=100)).reshape(-1, 3).mean(0)
    assert red[0] > 240
    assert red[1:].max() < 15


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_samples_are_refused_rather_than_clipped(mode):
    with pytest.raises(BadPhoto) as bad:
        photo.check(encoded(Image.new(mode, (WIDTH, HEIGHT)), "TIFF"))
    assert bad.value.reason == "unsupported-format"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_is_what_pillow_calls_upright_and_1_is_as_stored(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(RGB, form, exif=exif)
    info = photo.inspect(content)
    assert (info.width, info.height, info.orientation) == (WIDTH, HEIGHT, orientation)
    upright, stored = photo.decode(content), photo.decode(content, orientation=1)
    assert np.array_equal(photo.decode(content, orientation=orientation), upright)
    assert info.size(orientation) == upright.shape[1::-1]
    assert info.size(1) == stored.shape[1::-1] == (WIDTH, HEIGHT)
    with Image.open(io.BytesIO(content)) as image:
        assert np.array_equal(upright, np.array(ImageOps.exif_transpose(image).convert("RGB")))
    if form in ("PNG", "TIFF"):
        assert np.array_equal(stored, RGB)


@pytest.mark.parametrize(
    ("form", "extension"),
    [("JPEG", "jpg"), ("PNG", "image.png"), ("WEBP", "webp"), ("TIFF", "tif"), ("BMP", "bmp"),
     ("GIF", "gif"), ("MPO", "jpg")],
)  # fmt: skip
def test_the_extension_goes_by_content(form, extension):
    save = {"save_all": True, "append_images": [Image.fromarray(RGB)]} if form == "MPO" else {}
    content = encoded(RGB, form, **save)
    assert photo.check(content).extension == extension
    assert photo.decode(content).shape == (HEIGHT, WIDTH, 3)


noise = np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty-file"),
        (b"\0" * 500, "undecodable-image"),
        (b"<!DOCTYPE html><html>404</html>", "undecodable-image"),
        (b"\xff\xd8\xff", "undecodable-image"),
        (b"\x89PNG\r\n\x1a\n", "undecodable-image"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "undecodable-image"),
        (encoded(noise, "JPEG")[:-100], "truncated-image"),
        (encoded(noise, "JPEG")[:900], "truncated-image"),
        (encoded(noise)[:-100], "truncated-image"),
        (encoded(noise, "TIFF")[:-1000], "truncated-image"),
        (encoded(noise, "BMP")[:-100], "truncated-image"),
        (encoded(noise, "WEBP")[:-100], "undecodable-image"),
        (png_header(1000, 1000), "damaged-image"),
        (png_header(0, 0), "undecodable-image"),
        (png_header(100_000, 100_000), "image-too-large"),
        (encoded(RGB, "PPM")[:-10], "truncated-image"),
        (encoded(RGB, "EPS"), "unsupported-format"),
    ],
)
def test_what_is_no_whole_photograph_has_a_reason(content, reason):
    with pytest.raises(BadPhoto) as bad:
        photo.check(content, full=True)
    assert bad.value.reason == reason
    assert bad.value.detail
    with pytest.raises(BadPhoto):
        photo.decode(content)


def test_a_bad_photo_travels_between_processes_with_its_reason():
    bad = pickle.loads(pickle.dumps(BadPhoto("empty-file", "the file has 0 bytes")))
    assert (bad.reason, bad.detail) == ("empty-file", "the file has 0 bytes")


def test_a_large_photograph_below_pillows_limit_is_no_warning(recwarn):
    content = encoded(Image.new("1", (12_000, 8_000)))  # 96 Mpx: Pillow would warn
    assert photo.inspect(content).width == 12_000
    assert not recwarn.list


def test_a_flipped_bit_in_a_png_is_found_by_its_checksum():
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    assert photo.check(bytes(content), full=True).width == 40
    found = set()
    for place in range(100, len(content) - 100, 97):
        content[place] ^= 4
        with pytest.raises(photo.BadPhoto) as bad:
            photo.check(bytes(content), full=True)
        found.add(bad.value.reason)
        content[place] ^= 4
    assert "damaged-image" in found


# ---- cut, half copied, and broken further on

BLOCKS = np.kron(np.random.default_rng(2).integers(0, 256, (3, 4, 3)), np.ones((8, 8, 1)))
PICTURE = Image.fromarray(BLOCKS.astype(np.uint8))
TWO = {"save_all": True, "append_images": [PICTURE.rotate(180)]}


def with_thumbnail():
    """A JPEG whose EXIF holds a JPEG: an end-of-image marker long before the end."""
    thumbnail = encoded(PICTURE.resize((8, 6)), "JPEG")
    entries = struct.pack(">HHII", 0x201, 4, 1, 44) + struct.pack(
        ">HHII", 0x202, 4, 1, len(thumbnail)
    )
    tiff = b"MM\0*" + struct.pack(">IHI", 8, 0, 14) + struct.pack(">H", 2) + entries
    exif = b"Exif\0\0" + tiff + struct.pack(">I", 0) + thumbnail
    return encoded(PICTURE, "JPEG", exif=exif)


WHOLE = {
    "JPEG": encoded(PICTURE, "JPEG"),
    "progressive JPEG": encoded(PICTURE, "JPEG", progressive=True),
    "JPEG with thumbnail": with_thumbnail(),
    "CMYK JPEG": encoded(PICTURE.convert("CMYK"), "JPEG"),
    "MPO": encoded(PICTURE, "MPO", **TWO),
    "PNG": encoded(PICTURE),
    "palette PNG": encoded(PICTURE.quantize(16)),
    "16-bit PNG": encoded(BLOCKS[..., 0].astype(np.uint16) << 8),
    "animated PNG": encoded(PICTURE, **TWO),
    "WebP": encoded(PICTURE, "WEBP"),
    "lossless WebP": encoded(PICTURE, "WEBP", lossless=True),
    "animated WebP": encoded(PICTURE, "WEBP", **TWO),
    "GIF": encoded(PICTURE, "GIF"),
    "animated GIF": encoded(PICTURE, "GIF", **TWO),
    "TIFF": encoded(PICTURE, "TIFF"),
    "LZW TIFF": encoded(PICTURE, "TIFF", compression="tiff_lzw"),
    "JPEG TIFF": encoded(PICTURE, "TIFF", compression="jpeg"),
    "BMP": encoded(PICTURE, "BMP"),
    "1-bit BMP": encoded(PICTURE.convert("1"), "BMP"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow, of cut EXIF and TIFF tags
@pytest.mark.parametrize("content", WHOLE.values(), ids=WHOLE)
def test_a_file_cut_anywhere_is_refused_or_its_first_picture_is_whole(content):
    pixels = photo.decode(content)
    refused = 0
    for length in range(len(content)):
        try:
            photo.check(content[:length])
        except BadPhoto:
            refused += 1
        else:
            assert np.array_equal(photo.decode(content[:length]), pixels)
    assert refused > 0.4 * len(content)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["JPEG", "progressive JPEG", "JPEG with thumbnail", "CMYK JPEG"])
def test_a_half_copied_jpeg_that_ends_in_zeros_is_refused(name):
    content = WHOLE[name]
    for length in range(len(content)):
        with pytest.raises(BadPhoto):
            photo.check(content[:length] + bytes(4096))
    assert photo.check(content + bytes(4096)).width == PICTURE.width  # whole, and padded


def test_a_jpeg_may_have_anything_behind_it():
    for behind in (b"x", b"\xff\xd8\xff", b"\xff\xda", bytes(9) + b"ftypmp42", WHOLE["PNG"]):
        content = WHOLE["JPEG with thumbnail"] + behind
        assert photo.check(content).size(1) == PICTURE.size
        assert np.array_equal(photo.decode(content), photo.decode(WHOLE["JPEG with thumbnail"]))


def test_damage_inside_a_png_is_found_without_decoding_and_never_decoded():
    broken = bytearray(WHOLE["PNG"])
    middle = broken.index(b"IDAT") + 40
    broken[middle : middle + 20] = bytes(20)
    for look in (photo.check, photo.decode):
        with pytest.raises(BadPhoto) as bad:
            look(bytes(broken))
        assert bad.value.reason == "damaged-image"


def test_a_broken_second_page_does_not_take_the_place_of_the_first():
    pages = [Image.new("RGB", PICTURE.size, "teal")]
    content = bytearray(encoded(PICTURE.copy(), "TIFF", save_all=True, append_images=pages))
    first = struct.unpack_from("<I", content, 4)[0]
    entries = struct.unpack_from("<H", content, first)[0]
    second = struct.unpack_from("<I", content, first + 2 + 12 * entries)[0]
    assert struct.unpack_from("<H", content, second + 2) == (256,)  # ImageWidth
    struct.pack_into("<H", content, second + 2, 255)
    assert photo.check(bytes(content)).frames == 1
    assert np.array_equal(photo.decode(bytes(content)), np.array(PICTURE))


def test_gray_with_premultiplied_alpha_is_decoded():
    gray = Image.fromarray(np.dstack([RGB[..., 0], np.full((HEIGHT, WIDTH), 255, np.uint8)]), "LA")
    content = bytearray(encoded(gray, "TIFF"))
    kind = content.index(struct.pack("<HHI", 338, 3, 1)) + 8  # the tag ExtraSamples
    content[kind] = 1  # associated alpha
    assert photo.check(bytes(content)).mode == "La"
    assert np.array_equal(photo.decode(bytes(content)), RGB[..., [0, 0, 0]])


LOSSLESS = ("DIB", "GIF", "ICO", "PCX", "PPM", "QOI", "SGI", "TGA", "DDS")


@pytest.mark.parametrize("form", [*LOSSLESS, "JPEG2000", "AVIF", "HEIF"])
def test_every_format_of_images_is_read(form):
    if form == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    flat = np.zeros((48, 48, 3), np.uint8)
    flat[:20] = (200, 30, 90)
    content = encoded(flat, form)
    info = photo.check(content)
    assert info.size(info.orientation) == (48, 48)
    assert info.extension == photo.EXTENSIONS[form]
    difference = np.abs(photo.decode(content).astype(int) - flat)[4:16].max()
    assert difference <= (0 if form in LOSSLESS else 12)


@pytest.mark.parametrize("form", ["PPM", "TGA", "PCX", "SGI", "QOI", "JPEG2000", "AVIF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_other_formats_that_were_cut_are_refused(form, share):
    content = encoded(np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8), form)
    with pytest.raises(BadPhoto):
        photo.check(content[: int(len(content) * share)])


def test_heic_without_its_plugin_names_it(monkeypatch):
    content = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)
    monkeypatch.setattr(Image, "OPEN", {k: v for k, v in Image.OPEN.items() if k != "HEIF"})
    monkeypatch.setattr(Image, "ID", [form for form in Image.ID if form != "HEIF"])
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(BadPhoto, match=r"pip install 'cocoseg\[heic\]'") as bad:
        photo.check(content)
    assert bad.value.reason == "unsupported-format"


@pytest.mark.parametrize(
    "name",
    [
        "a.jpg",
        "A.JFIF",
        "x/a.jpe",
        "a.heic",
        "a.PPM",
        "a.avif",
        "a.jp2",
        "a.tga",
        "a.apng",
        "a.dib",
    ],
)
def test_names_of_images(name):
    assert photo.is_image_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("._a.jpg", "__MACOSX/x/a.jpg", "x/@eaDir/a.jpg", ".ipynb_checkpoints/a.png"),
        *("$RECYCLE.BIN/a.jpg", ".Trashes/a.png", "Thumbs.db", "x/.DS_Store"),
    ],
)
def test_litter_is_no_image(name):
    assert photo.is_litter(name)
    assert not photo.is_image_name(name)


@pytest.mark.parametrize("name", ["a.txt", "a.eps", "a.pdf", "a.mpg", "a", "a.jpg.part", "jpg"])
def test_names_of_other_files(name):
    assert not photo.is_image_name(name)
    assert not photo.is_litter(name)
