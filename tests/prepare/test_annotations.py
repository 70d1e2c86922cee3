"""What makes a whole COCO JSON untrustworthy, and what does not."""

import bz2
import gzip
import json
import lzma

import pytest
from cocoseg.errors import ConfigError, DataError
from cocoseg.prepare.annotations import read_annotations

GOOD = (
    '{"images":[{"id":1,"file_name":"a.jpg","width":16,"height":12}],'
    '"annotations":[{"id":4,"image_id":1,"category_id":2,"segmentation":[[1,1,5,1,5,5]]}],'
    '"categories":[{"id":2,"name":"cat"}]}'
)
IMAGE_ID, CATEGORY_ID, ANNOTATION_ID = '[{"id":1', '[{"id":2', '[{"id":4'


def changed(old: str, new: str) -> bytes:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new).encode()


def appended(text: str) -> bytes:
    return f"{GOOD[:-1]},{text}}}".encode()


def read(tmp_path, content):
    path = tmp_path / "instances.json"
    path.write_bytes(content)
    return read_annotations(str(path))


REFUSED = {
    "no JSON": (b"\xff\xd8\xff\xe0", "is not JSON"),
    "empty file": (b"", "is empty"),
    "spaces": (b"  \n", "is not JSON"),
    "cut": (GOOD[:-9].encode(), "is not JSON"),
    "trailing garbage": (GOOD.encode() + b"x", "is not JSON"),
    "trailing comma": (GOOD[:-1].encode() + b",}", "is not JSON"),
    "UTF-16 that is cut": (GOOD.encode("utf-16")[:-1], "is not JSON"),
    "JSON Lines": (f"{GOOD}\n{GOOD}\n".encode(), "a file holds one object"),
    "broken UTF-8": (changed('"cat"', '"c?t"').replace(b"?", b"\xff"), "is not JSON"),
    "a list": (b"[]", "is not COCO"),
    "a number": (b"1", "is not COCO"),
    "an empty object": (b"{}", "is not COCO"),
    "images missing": (changed('"images"', '"pictures"'), "$.images is missing"),
    "annotations missing": (changed('"annotations"', '"labels"'), "$.annotations is missing"),
    "categories missing": (changed('"categories"', '"classes"'), "$.categories is missing"),
    "images empty": (b'{"images":[],"annotations":[],"categories":[]}', "$.images is empty"),
    "images no list": (b'{"images":{},"annotations":[],"categories":[]}', "`$.images`"),
    "images of numbers": (b'{"images":[5],"annotations":[],"categories":[]}', "`$.images[0]`"),
    "nan that nobody reads": (appended('"info":{"score":nan}'), "is not JSON"),
    "image id NaN": (changed(IMAGE_ID, '[{"id":NaN'), "`$.images[0].id`"),
    "annotation id NaN": (changed(ANNOTATION_ID, '[{"id":NaN'), "`$.annotations[0].id`"),
    "crowd NaN": (changed('"image_id":1', '"image_id":1,"iscrowd":NaN'), "[0].iscrowd`"),
    "width Infinity": (changed("16", "Infinity"), "`$.images[0].width`"),
    "image id a fraction": (changed(IMAGE_ID, '[{"id":1.5'), "`$.images[0].id`"),
    "image id a bool": (changed(IMAGE_ID, '[{"id":true'), "`$.images[0].id`"),
    "image id null": (changed(IMAGE_ID, '[{"id":null'), "`$.images[0].id`"),
    "image id beyond 64 bits": (changed(IMAGE_ID, '[{"id":' + "9" * 99), "`$.images[0].id`"),
    "annotation id a fraction": (changed(ANNOTATION_ID, '[{"id":4.5'), "`$.annotations[0].id`"),
    "category id a fraction": (changed(CATEGORY_ID, '[{"id":2.5'), "`$.categories[0].id`"),
    "category id 1e400": (changed(CATEGORY_ID, '[{"id":1e400'), "`$.categories[0].id`"),
    "category id 1e9999999999999999999": (
        changed(CATEGORY_ID, '[{"id":1e9999999999999999999'),
        "`$.categories[0].id`",
    ),
    "reference no number": (changed('"image_id":1', '"image_id":"one"'), "[0].image_id`"),
    "a number refers to a text id": (
        changed(CATEGORY_ID, '[{"id":"two"').replace(b'"category_id":2', b'"category_id":1'),
        "$.annotations[0]: category_id 1 is not in $.categories",
    ),
    "a number refers to the text id of an image": (
        changed(IMAGE_ID, '[{"id":"one"'),
        "$.annotations[0]: image_id 1 is not in $.images",
    ),
    "reference of 4,000 digits": (changed('"image_id":1', f'"image_id":{"9" * 4000}'), "image_id`"),
    "width of 5,000 digits": (changed("16", "9" * 5000), "`$.images[0].width`"),
    "reference a bool": (changed('"category_id":2', '"category_id":true'), "[0].category_id`"),
    "unknown image id": (changed('"image_id":1', '"image_id":7'), "image_id 7 is not in"),
    "unknown category id": (changed('"category_id":2', '"category_id":7'), "category_id 7 is not"),
    "width a fraction": (changed("16", "16.5"), "`$.images[0].width`"),
    "width a word": (changed("16", '"wide"'), "`$.images[0].width`"),
    "width missing": (changed('"width":16,', ""), "missing required field `width`"),
    "file name missing": (changed('"file_name":"a.jpg",', ""), "`file_name`"),
    "file name a number": (changed('"a.jpg"', "5"), "`$.images[0].file_name`"),
    "category name a number": (changed('"cat"', "5"), "`$.categories[0].name`"),
    "crowd a word": (changed('"image_id":1', '"image_id":1,"iscrowd":"no"'), "[0].iscrowd`"),
    "one image id in two forms": (
        changed("12}]", '12},{"id":"1","file_name":"b","width":1,"height":1}]'),
        '$.images: the ids 1 and "1" are one number in two forms',
    ),
    "one category id in two forms": (
        changed('"cat"}', '"cat"},{"id":2.0,"name":"cat"}'),
        "$.categories: the ids 2 and 2.0 are one number in two forms",
    ),
    "a text id among numbers": (
        changed("12}]", '12},{"id":"b","file_name":"b","width":1,"height":1}]'),
        "`$.images[1].id`",
    ),
    "a text id twice": (
        GOOD.replace(IMAGE_ID, '[{"id":"b","file_name":"b","width":1,"height":1},{"id":"b"')
        .replace('"image_id":1', '"image_id":"b"')
        .encode(),
        "$.images: id 'b' is given twice",
    ),
    "image id twice": (
        changed("12}]", '12},{"id":1,"file_name":"b","width":1,"height":1}]'),
        "$.images: id 1 is given 2 times",
    ),
    "category id twice": (
        changed('"cat"}', '"cat"},{"id":2,"name":"dog"}'),
        "$.categories: id 2 is given 2 times",
    ),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_cannot_be_trusted_is_refused_with_the_place(tmp_path, content, message):
    with pytest.raises(DataError) as refused:
        read(tmp_path, content)
    assert str(tmp_path / "instances.json") in str(refused.value)
    assert message in str(refused.value)
    assert refused.value.exit_code == 3


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_file_is_refused_by_that_name(tmp_path, compress):
    with pytest.raises(DataError, match=r"is compressed \((gzip|bzip2|xz)\); unpack it"):
        read(tmp_path, compress(GOOD.encode()))


@pytest.mark.parametrize("key", ["images", "annotations", "categories", "info"])
@pytest.mark.parametrize("place", ["first", "last", "beside", "escaped", "spaced", "short", "NaN"])
def test_a_top_level_key_given_twice_is_refused_wherever_it_stands(tmp_path, key, place):
    content = '{"info":{},' + GOOD[1:]
    twice = {
        "first": f'{{"{key}":[],{content[1:]}',
        "last": f'{content[:-1]},"{key}":[]}}',
        "beside": content.replace(f'"{key}":', f'"{key}":[],"{key}":', 1),
        "escaped": f'{content[:-1]},"\\u{ord(key[0]):04x}{key[1:]}":[]}}',
        "spaced": f'{content[:-1]} ,\n\t"{key}" : [ ]\n}}\n',
        "NaN": f'{content[:-1]},"{key}":[NaN]}}',
        "short": f'{{"{key}":0,"{key}":0,{content[1:]}',
    }[place]
    with pytest.raises(DataError, match="given twice"):
        read(tmp_path, twice.encode())


def test_the_same_words_inside_strings_are_no_second_key(tmp_path):
    tricky = '"info":{"images":[],"x":"},\\"images\\":[","annotations":[]},"licenses":"{,:}\\\\"'
    assert len(read(tmp_path, appended(tricky)).images) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + GOOD.encode(),
        b" \n" + json.dumps(json.loads(GOOD), indent=3).encode() + b"\n\n",
        appended('"info":{"year":2017},"licenses":[]'),
        changed('"id":4,', ""),
        changed('"id":4', '"id":4,"area":-1,"bbox":null,"score":1e999'),
        changed('"cat"', '"cat","supercategory":5,"keypoints":[]'),
        changed('"cat"', '"cat","supercategory":1e999'),
        changed('"cat"', f'"cat","supercategory":{"9" * 5000}'),
        changed('"cat"', '"cat","supercategory":"?"').replace(b"?", b"\xff"),
        changed('"cat"', f'"cat","supercategory":{"[" * 900}{"]" * 900}'),
    ],
    ids=["byte order mark", "pretty", "more keys", "no annotation id", "wrong area", "more fields",
         "1e999", "5,000 digits", "broken UTF-8 that nobody reads", "nested"],
)  # fmt: skip
def test_what_does_not_matter_is_accepted(tmp_path, content):
    found = read(tmp_path, content)
    assert [entry.file_name for entry in found.images] == ["a.jpg"]
    assert json.loads(bytes(found.instances[1][0].segmentation)) == [[1, 1, 5, 1, 5, 5]]
    assert found.annotations == 1


def test_duplicate_annotation_ids_are_counted_and_images_may_have_no_annotation(tmp_path):
    content = json.loads(GOOD)
    content["annotations"] *= 3
    content["images"].append({"id": 0, "file_name": "b.jpg", "width": 1, "height": 1})
    found = read(tmp_path, json.dumps(content).encode())
    assert found.duplicate_annotation_ids == 2
    assert len(found.instances[1]) == 3
    assert 0 not in found.instances


def test_a_message_stays_short_whatever_the_file_holds(tmp_path):
    long_keys = {f"{i}{'x' * 9999}": 0 for i in range(99)}
    with pytest.raises(DataError, match="missing") as refused:
        read(tmp_path, json.dumps(long_keys).encode())
    assert len(str(refused.value)) < 1000


def test_a_missing_file_or_a_folder_is_a_usage_error(tmp_path):
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(ConfigError, match=str(path)):
            read_annotations(str(path))


def test_other_tools_exports_are_read(real_data):
    exports = real_data / "exports"
    taco = read_annotations(str(exports / "taco_json" / "data" / "annotations.json"))
    assert len(taco.images) == 1500
    assert taco.duplicate_annotation_ids == 2
    assert taco.images[0].id == 0
    cars = read_annotations(str(exports / "cvat_cars" / "annotations" / "instances_default.json"))
    assert (len(cars.images), cars.annotations) == (6, 29)
    fruits = read_annotations(str(exports / "fruits_labelme" / "data" / "trainval.json"))
    assert fruits.images[0].id == 0
