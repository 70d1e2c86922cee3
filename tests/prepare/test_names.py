"""Names that exporters write, and the one file in the image folder that each of them means."""

import json
import unicodedata

import pytest
from cocoseg.errors import DataError
from cocoseg.photo import BadPhoto
from cocoseg.prepare.annotations import read_annotations
from cocoseg.prepare.images import Catalog
from hypothesis import given
from hypothesis import strategies as st

SOUND = [[1, 1, 9, 1, 9, 9, 1, 9]]
NFC, NFD = (unicodedata.normalize(form, "Äpfel é.jpg") for form in ("NFC", "NFD"))
assert NFC != NFD


class Listing:
    """An image folder that is only a list of names."""

    url = "images"

    def __init__(self, *names):
        self.names = names


def find(file_name, *names):
    return Catalog(Listing(*names)).find(file_name)


LABEL_STUDIO = "/data/local-files/?d="
FOUND = {
    "as it is": ("a/x.jpg", "a/x.jpg", ""),
    "with a query-like name": ("a?d=b.jpg", "a?d=b.jpg", ""),
    "with a percent sign": ("50%25.jpg", "50%25.jpg", ""),
    "another folder": ("train/x.jpg", "a/x.jpg", "found_elsewhere"),
    "another case": ("A/X.JPG", "a/x.jpg", "found_elsewhere"),
    "NFD for NFC": (NFD, NFC, "found_elsewhere"),
    "NFC for NFD": (NFC, f"a/{NFD}", "found_elsewhere"),
    "NFC for NFD, another case": (NFC.upper(), NFD, "found_elsewhere"),
    "absolute": ("/mnt/me/a/x.jpg", "x.jpg", "absolute_names"),
    "absolute, folder in common": ("/mnt/me/a/x.jpg", "a/x.jpg", "absolute_names"),
    "Label Studio's upload": ("/data/upload/4/x.jpg", "x.jpg", "absolute_names"),
    "Label Studio's local file": (f"{LABEL_STUDIO}set/x.jpg", "x.jpg", "absolute_names"),
    "Label Studio's encoded local file": (
        f"{LABEL_STUDIO}set%2Fmy%20x.jpg",
        "set/my x.jpg",
        "absolute_names",
    ),
    "Label Studio's local file of Windows": (
        f"{LABEL_STUDIO}C%3A%5Cset%5Cx.jpg",
        "x.jpg",
        "absolute_names",
    ),
    "Label Studio behind a host": (
        f"http://localhost:8080{LABEL_STUDIO}set/x.jpg&t=1",
        "x.jpg",
        "absolute_names",
    ),
    "Label Studio's prefix": ("images/ab12cd34-x.jpg", "x.jpg", "upload_prefixes"),
    "Label Studio's prefix, absolute": (
        "/data/upload/4/ab12cd34-my%20x.jpg",
        "my x.jpg",
        "upload_prefixes",
    ),
    "Windows": ("C:\\data\\a\\x.jpg", "a/x.jpg", "absolute_names"),
    "Windows with slashes": ("C:/data/x.jpg", "x.jpg", "absolute_names"),
    "a share": ("\\\\host\\data\\x.jpg", "x.jpg", "absolute_names"),
    "a URL": ("https://example.com/b/x.jpg?sig=a%2Fb#top", "x.jpg", "absolute_names"),
    "an encoded URL": ("s3://bucket/my%20x.jpg", "my x.jpg", "absolute_names"),
    "a file URL": ("file:///mnt/me/x.jpg", "x.jpg", "absolute_names"),
    "a folder above": ("../images/x.jpg", "x.jpg", "absolute_names"),
    "encoded": ("a/my%20x.jpg", "a/my x.jpg", "encoded_names"),
    "encoded, in UTF-8": ("%C3%84.jpg", "\u00c4.jpg", "encoded_names"),
    "encoded, another folder": ("b%2Fmy%20x.jpg", "a/my x.jpg", "encoded_names"),
    "COCO 2014 for 2017": (
        "COCO_val2014_000000000042.jpg",
        "val2017/000000000042.jpg",
        "release_names",
    ),
    "COCO 2017 for 2014": (
        "train2017/000000000042.jpg",
        "COCO_train2014_000000000042.jpg",
        "release_names",
    ),
    "COCO, another split": (
        "COCO_val2014_000000000042.jpg",
        "COCO_train2014_000000000042.jpg",
        "release_names",
    ),
}


@pytest.mark.parametrize(("file_name", "name", "kind"), FOUND.values(), ids=FOUND)
def test_the_only_file_that_a_name_can_mean_is_found_and_counted(file_name, name, kind):
    others = ("other.jpg", "zz/000000000043.jpg", "ab12cd34-y.jpg")
    assert find(file_name, name, *others) == (name, kind)


@pytest.mark.parametrize(
    ("file_name", "names"),
    [
        ("/data/upload/4/x.jpg", ("a/x.jpg", "b/x.jpg")),
        ("images/ab12cd34-x.jpg", ("a/x.jpg", "b/x.jpg")),
        ("COCO_val2014_000000000042.jpg", ("000000000042.jpg", "COCO_train2014_000000000042.jpg")),
        ("my%20x.jpg", ("a/my x.jpg", "b/my x.jpg")),
        (NFD.upper(), (NFC, NFD)),
        ("X.jpg", ("x.jpg", "x.JPG")),
    ],
)
def test_a_name_that_two_files_have_is_ambiguous(file_name, names):
    with pytest.raises(BadPhoto) as bad:
        find(file_name, *names)
    assert bad.value.reason == "ambiguous-file"
    for name in names:
        assert name in bad.value.detail


@pytest.mark.parametrize(
    "file_name",
    ["x.jp", "xx.jpg", "/", "//", "..", "/data/", "http://", "https://[x.jpg", "C:\\", "?d=",
     "/data/local-files/?d=", "ab12cd3-x.jpg", "ab12cd34x.jpg", "AB12CD34-x.jpg", "%78%2Ejpg%00",
     "000000000042.png", "COCO_val2014_42.jpg", "a" * 10**5, "%" * 99],
)  # fmt: skip
def test_a_name_that_means_no_file_is_missing(file_name):
    with pytest.raises(BadPhoto) as bad:
        find(file_name, "a/x.jpg", "a/000000000041.jpg")
    assert bad.value.reason == "missing-file"


@given(st.text(min_size=1) | st.from_regex(r"(\.\./|/|%2e|%2F|[a-z]+://|C:\\|x){1,9}\.jpg"))
def test_whatever_a_name_says_only_a_listed_file_is_found(file_name):
    names = ("x.jpg", "a/x.jpg", "b/y.jpg", "a/.jpg")
    try:
        name, _ = find(file_name, *names)
    except BadPhoto:
        return
    assert name in names


# ---- as a whole


def test_lvis_has_urls_in_place_of_file_names(coco_set, tmp_path, stored):
    for number in (1, 2, 3):
        coco_set.photo(number, name=f"train2017/{number:012d}.jpg")
        coco_set.annotate(number, SOUND)
    coco_set.prepare(tmp_path / "usual")
    for entry in coco_set.content["images"]:
        entry["coco_url"] = f"http://images.cocodataset.org/{entry.pop('file_name')}"
    result = coco_set.prepare(tmp_path / "lvis")
    counts = dict(result.manifest.counts)
    assert counts.pop("named_by_url") == 3
    assert "found_elsewhere" not in counts
    (usual,) = (tmp_path / "usual").glob("*.tar")
    (lvis,) = (tmp_path / "lvis").glob("*.tar")
    assert usual.read_bytes() == lvis.read_bytes()
    coco_set.images = coco_set.images / "train2017"  # the folder that COCO's zip unpacks to
    below = coco_set.prepare(tmp_path / "below").manifest.counts
    assert (below["named_by_url"], below["found_elsewhere"]) == (3, 3)


@pytest.mark.parametrize("url", [None, 5, "", "http://[x"])
def test_an_image_without_a_name_and_a_url_is_refused(coco_set, tmp_path, url):
    coco_set.photo(1)
    coco_set.content["images"][0] |= {"coco_url": url}
    del coco_set.content["images"][0]["file_name"]
    coco_set.write()
    if isinstance(url, str):
        assert read_annotations(str(coco_set.json)).images[0].file_name == ""
    else:
        with pytest.raises(DataError, match=r"`file_name` - at `\$\.images\[0\]`"):
            read_annotations(str(coco_set.json))


def test_two_uploads_of_one_name_are_not_mixed_up(coco_set, tmp_path):
    coco_set.photo(1, name="x.jpg")
    coco_set.photo(2, name="y.jpg")
    coco_set.content["images"][0]["file_name"] = "ab12cd34-x.jpg"
    coco_set.entry(3, "99aa77bb-x.jpg")
    reasons = {q.image_id: q.reason for q in coco_set.prepare(tmp_path / "shards").quarantined}
    assert reasons == {1: "shared-file", 3: "shared-file"}


@pytest.fixture
def misplaced(coco_set, make_coco_set):
    """Seven images, and a folder that holds two others."""
    for number in range(7):
        coco_set.photo(number, name=f"street{number}.jpg")
    coco_set.write()
    other = make_coco_set("other")
    for name in ("b.png", "a.png"):
        other.photo(1, name=name)
    return coco_set, other.images


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry run"])
def test_a_wrong_image_folder_is_recognized(misplaced, tmp_path, run_cocoseg, dry):
    coco_set, folder = misplaced
    flags = ("--annotations", coco_set.json, "--images", folder, "--output", tmp_path / "shards")
    ran = run_cocoseg("prepare", *flags, "--max-bad", 99, *dry)
    assert (ran.code, ran.out) == (3, "")
    for part in (str(folder), "none of the 7 file names in instances.json", "street", "a.png"):
        assert part in ran.err
    assert not (tmp_path / "shards").exists()


def test_a_folder_with_one_of_the_images_is_no_wrong_folder(misplaced, tmp_path, run_cocoseg):
    coco_set, folder = misplaced
    (coco_set.images / "street3.jpg").rename(folder / "street3.jpg")
    flags = ("--annotations", coco_set.json, "--images", folder, "--output", tmp_path / "shards")
    ran = run_cocoseg("prepare", *flags, "--engine", "inline", "--json")
    assert ran.code == 4
    assert json.loads(ran.out)["quarantined"] == {"missing-file": 6}


def test_shards_that_are_complete_need_no_images(misplaced, tmp_path, run_cocoseg):
    coco_set, _ = misplaced
    flags = (*coco_set.flags, "--output", tmp_path / "shards", "--engine", "inline")
    assert run_cocoseg("prepare", *flags).code == 0
    for path in coco_set.images.iterdir():
        path.unlink()
    assert run_cocoseg("prepare", *flags, "--dry-run").code == 0
    assert run_cocoseg("prepare", *flags).code == 0
