"""JSON that differs only in form gives the same shards, byte for byte, and is counted."""

import json
import re
import uuid

import numpy as np
import pytest
from cocoseg.prepare.annotations import read_annotations
from cocoseg.prepare.lenient import whole_number
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

WIDTH, HEIGHT = 16, 12


def canonical():
    """Three images; polygons, a compressed and an uncompressed RLE, a crowd."""
    return {
        "info": {"year": 2017},
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in (1, 2, 3)
        ],
        "annotations": [
            annotation(1, 1, 1, [[1, 1, 9, 1, 9.5, 9, 1, 9]]),
            annotation(2, 1, 2, [[4, 4, 15, 4, 15, 11], [0, 0, 3, 0, 3, 3]]),
            annotation(3, 2, 3, {"size": [HEIGHT, WIDTH], "counts": [20, 100, 72]}),
            annotation(4, 2, 1, {"size": [HEIGHT, WIDTH], "counts": "d05W5"}, iscrowd=1),
            annotation(5, 3, 2, [[2, 2, 8, 2, 8, 8, 2, 8]]),
        ],
        "categories": [
            {"id": i, "name": name} for i, name in ((1, "cat"), (2, "dog"), (3, "fish"))
        ],
    }


def annotation(number, image_id, category_id, segmentation, iscrowd=0):
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "iscrowd": iscrowd,
        "area": 10.5,
        "bbox": [1, 1, 5, 5],
        "segmentation": segmentation,
    }


def each(section, key, change):
    """Change a field wherever it is given."""

    def transform(content):
        for entry in content[section]:
            entry[key] = change(entry[key])
        return json.dumps(content)

    return transform


def ids(change, *, references=True):
    def transform(content):
        for section in ("images", "annotations", "categories"):
            each(section, "id", change)(content)
        for key in ("image_id", "category_id") if references else ():
            each("annotations", key, change)(content)
        return json.dumps(content)

    return transform


def polygons(change):
    """Change the polygons, and leave RLE as it is."""
    return each("annotations", "segmentation", lambda s: s if isinstance(s, dict) else change(s))


def rles(change):
    return each("annotations", "segmentation", lambda s: change(s) if isinstance(s, dict) else s)


def replaced(pattern, new):
    """Change the text of the JSON, at least once."""

    def transform(content):
        text, count = re.subn(pattern, new, json.dumps(content))
        assert count
        return text

    return transform


def labels(content):
    """Give images, annotations and categories UUIDs in place of their ids."""
    names = {(key, i): str(uuid.UUID(int=99 - i)) for key in "iac" for i in range(9)}
    for section in ("images", "annotations", "categories"):
        for entry in content[section]:
            entry["id"] = f"{section[0]}-{names[section[0], entry['id']]}"
    for entry in content["annotations"]:
        entry["image_id"] = f"i-{names['i', entry['image_id']]}"
        entry["category_id"] = f"c-{names['c', entry['category_id']]}"
    return json.dumps(content)


def repeated(content):
    content["categories"] += [dict(content["categories"][1]), dict(content["categories"][1])]
    return json.dumps(content)


def paired(polygon):
    return [polygon[i : i + 2] for i in range(0, len(polygon), 2)]


FORMS = {
    "white space": (lambda c: json.dumps(c, indent="\t", separators=(" ,\r\n", "\n:  ")), {}),
    "compact": (lambda c: json.dumps(c, separators=(",", ":")), {}),
    "sorted keys": (lambda c: json.dumps(c, sort_keys=True), {}),
    "UTF-8 with BOM": (lambda c: b"\xef\xbb\xbf" + json.dumps(c).encode(), {}),
    "UTF-16": (lambda c: json.dumps(c).encode("utf-16"), {"recoded_json": 1}),
    "UTF-16 big-endian": (lambda c: json.dumps(c).encode("utf-16-be"), {"recoded_json": 1}),
    "UTF-16 without BOM": (lambda c: json.dumps(c).encode("utf-16-le"), {"recoded_json": 1}),
    "UTF-32": (lambda c: json.dumps(c).encode("utf-32"), {"recoded_json": 1}),
    "UTF-16 with NaN": (
        lambda c: each("annotations", "area", lambda _: float("nan"))(c).encode("utf-16"),
        {"recoded_json": 1, "non_finite_numbers": 5},
    ),
    "NaN in area": (
        each("annotations", "area", lambda _: float("nan")),
        {"non_finite_numbers": 5},
    ),
    "Infinity in bbox": (
        each("annotations", "bbox", lambda _: [float("-inf"), float("inf")]),
        {"non_finite_numbers": 10},
    ),
    "NaN beside the lists": (
        lambda c: json.dumps(c | {"info": {"NaN": 'NaN "Infinity"', "score": float("nan")}}),
        {"non_finite_numbers": 1},
    ),
    "1e999 in area": (replaced("10.5", "1e999"), {}),
    "ids as text": (ids(str), {"numbers_as_text": 21}),
    "definitions as text": (ids(str, references=False), {"numbers_as_text": 11}),
    "ids with zeros in front": (ids(lambda i: f"{i:012d}"), {"numbers_as_text": 21}),
    "ids as floats": (ids(float), {"whole_floats": 21}),
    "ids as floats in text": (ids(lambda i: f"{i}.0"), {"numbers_as_text": 21}),
    "references as floats": (each("annotations", "image_id", float), {"whole_floats": 5}),
    "an exponent": (replaced('"category_id": 2', '"category_id": 20.0E-1'), {"whole_floats": 2}),
    "UUIDs": (labels, {"ids_numbered": 11}),
    "sizes as floats": (
        lambda c: (each("images", "width", float)(c), each("images", "height", str)(c))[1],
        {"whole_floats": 3, "numbers_as_text": 3},
    ),
    "iscrowd as floats": (each("annotations", "iscrowd", float), {"whole_floats": 5}),
    "iscrowd as text": (each("annotations", "iscrowd", str), {"numbers_as_text": 5}),
    "iscrowd as bool": (each("annotations", "iscrowd", bool), {}),
    "iscrowd null": (each("annotations", "iscrowd", lambda i: i or None), {}),
    "repeated categories": (repeated, {"repeated_categories": 2}),
    "repeated categories as text": (
        lambda c: (repeated(c), ids(str)(c))[1],
        {"repeated_categories": 2, "numbers_as_text": 23},
    ),
    "flat polygons": (polygons(lambda s: s[0] if len(s) == 1 else s), {"flat_polygons": 2}),
    "points as pairs": (polygons(lambda s: [paired(p) for p in s]), {"paired_points": 4}),
    "coordinates as text": (polygons(lambda s: [[str(v) for v in p] for p in s]), {
        "numbers_as_text": 8 + 6 + 6 + 8,
    }),
    "coordinates with exponents": (replaced(r"9\.5", "0.95e+1"), {}),
    "RLE of floats": (
        rles(lambda s: s | {"size": [12.0, 16.0]} | (
            {"counts": [20.0, 100.0, 72.0]} if isinstance(s["counts"], list) else {}
        )),
        {"whole_floats": 7},
    ),
    "RLE size as text": (rles(lambda s: s | {"size": ["12", "16"]}), {"numbers_as_text": 4}),
}  # fmt: skip


def prepared(coco_set, output, content):
    for image_id in (1, 2, 3):
        noise = np.random.default_rng(image_id).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(noise).save(coco_set.images / f"{image_id}.png")
    coco_set.write = lambda: coco_set.json.write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    result = coco_set.prepare(output)
    tars = {path.name: path.read_bytes() for path in sorted(output.glob("*.tar"))}
    return tars, dict(result.manifest.counts), result


@pytest.fixture(scope="module")
def usual(coco_set_class, tmp_path_factory):
    folder = tmp_path_factory.mktemp("usual")
    found = prepared(coco_set_class(folder / "set"), folder / "shards", json.dumps(canonical()))
    assert found[2].quarantined == ()
    return found


@pytest.mark.parametrize(("transform", "counted"), FORMS.values(), ids=FORMS)
def test_another_form_gives_the_same_shards_and_is_counted(
    coco_set, tmp_path, usual, transform, counted
):
    tars, counts, result = prepared(coco_set, tmp_path / "shards", transform(canonical()))
    assert result.quarantined == ()
    assert tars == usual[0]
    assert counts == usual[1] | counted
    assert result.manifest.settings == usual[2].manifest.settings


def test_forms_are_in_the_report_and_in_the_summary(coco_set, tmp_path, run_cocoseg):
    prepared(coco_set, tmp_path / "other", ids(str)(canonical()))
    ran = run_cocoseg(
        "prepare", *coco_set.flags, "--output", tmp_path / "shards", "--engine", "inline"
    )
    assert ran.code == 0
    assert "21 numbers written as text" in ran.out
    assert "numbers written as text" in (tmp_path / "shards" / "prepare-report.html").read_text()


def test_a_coordinate_that_is_nan_costs_its_image_alone(coco_set, tmp_path):
    content = canonical()
    content["annotations"][4]["segmentation"][0][3] = float("nan")
    _, counts, result = prepared(coco_set, tmp_path / "shards", json.dumps(content))
    (entry,) = result.quarantined
    assert (entry.image_id, entry.annotation_id, entry.reason) == (3, 5, "bad-segmentation")
    assert "NaN" in entry.detail
    assert counts["non_finite_numbers"] == 1


def test_text_ids_are_numbered_in_the_order_of_the_file(tmp_path):
    content = canonical()
    labels(content)
    content["annotations"].append(dict(content["annotations"][0]))
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    found = read_annotations(str(path))
    assert [entry.id for entry in found.images] == [1, 2, 3]
    assert [category.id for category in found.categories] == [1, 2, 3]
    assert [entry.id for entry in found.instances[1]] == [1, 2, 1]
    assert found.duplicate_annotation_ids == 1


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 6), st.sampled_from(["", "-", "+"]))
def test_whole_numbers_are_exact_whatever_their_size(number, zeros, sign):
    digits = str(number).encode()
    assert whole_number(digits) == (digits, None)
    assert whole_number(digits + b".0" + b"0" * zeros) == (digits, "whole_floats")
    assert whole_number(b"%de%s%d" % (number * 10**zeros, b"-", zeros)) == (digits, "whole_floats")
    assert whole_number(b'"%s"' % digits) == (digits, "numbers_as_text")
    signed = f'"{sign}{abs(number)}"'.encode()
    value = -abs(number) if sign == "-" else abs(number)
    assert whole_number(signed) == (str(value).encode(), "numbers_as_text")


@pytest.mark.parametrize(
    "raw",
    ["1.5", "1e-1", "true", "null", "[]", "{}", '""', '" 1"', '"1 "', '"one"', '"0x1"', '"1_0"',
     '"٣"', '"NaN"', "1e41", "1e999", "1e99999999999999999999", "-1e-99999999999999999999",
     '"' + "9" * 5000 + '"'],
)  # fmt: skip
def test_what_is_no_whole_number_stays_as_it_is(raw):
    assert whole_number(raw.encode()) is None
