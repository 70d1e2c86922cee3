"""Which images are taken, into which split, and what is on top: decided before any is opened."""

import itertools
import json

import numpy as np
import pytest
from cocoseg.errors import ConfigError, DataError
from cocoseg.prepare.build import prepare_shards
from cocoseg.prepare.config import PrepareConfig
from cocoseg.shards.config import parse_split
from cocoseg.shards.reader import ShardSet
from cocoseg.shards.verify import verify
from cocoseg.taxonomy import COCO_CATEGORIES
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError


@pytest.fixture
def many(coco_set):
    """Forty images, every second one annotated; four of each scene."""
    for image_id in range(40):
        coco_set.photo(image_id, name=f"scene{image_id // 4:02d}_{image_id % 4}.rf.{image_id}.jpg")
        if image_id % 2:
            coco_set.annotate(image_id, [[1, 1, 9, 1, 9, 9]])
    return coco_set


def ids_in(folder, stored):
    return {sample.meta["image_id"] for sample in stored(folder).values()}


# ---- splits


def test_a_split_deals_every_image_once_and_each_folder_is_complete(many, tmp_path, stored):
    output = tmp_path / "shards"
    result = many.prepare(output, split="train=0.7,val=0.2,test=0.1", samples_per_shard=4)
    dealt = {name: ids_in(output / name, stored) for name in ("train", "val", "test")}
    assert sorted(itertools.chain.from_iterable(dealt.values())) == list(range(40))
    assert [split.name for split in result.splits] == list(dealt)
    assert 20 <= len(dealt["train"]) <= 36
    for split in result.splits:
        assert verify(split.folder).problems == ()
        assert len(ShardSet([split.folder])) == len(dealt[split.name])
        assert split.manifest.settings["split"] == "train=0.7,val=0.2,test=0.1"
    assert {p.name for p in output.iterdir()} == {
        "train", "val", "test", "config.yaml", "prepare-report.html",
    }  # fmt: skip
    assert many.prepare(output, split="train=0.7,val=0.2,test=0.1", samples_per_shard=4) == result


def test_more_images_move_no_other_image_to_another_split(many, tmp_path, stored):
    split = {"split": "train=0.5,val=0.5"}
    many.prepare(tmp_path / "before", **split)
    for image_id in range(100, 140):
        many.photo(image_id)
    many.prepare(tmp_path / "after", **split)
    for name in ("train", "val"):
        before, after = (ids_in(tmp_path / when / name, stored) for when in ("before", "after"))
        assert before == {image_id for image_id in after if image_id < 40}
        assert len(after) > len(before)


@pytest.mark.parametrize("pattern", [r"^(scene\d+)_", r"^scene\d+"])
def test_group_by_keeps_what_belongs_together_in_one_split(many, tmp_path, stored, pattern):
    output = tmp_path / "shards"
    many.prepare(output, split="train=0.5,val=0.5", group_by=pattern)
    scenes = {n: {i // 4 for i in ids_in(output / n, stored)} for n in ("train", "val")}
    assert scenes["train"].isdisjoint(scenes["val"])
    assert len(scenes["train"] | scenes["val"]) == 10
    assert all(len(ids_in(output / n, stored)) == 4 * len(scenes[n]) for n in scenes)


def test_quarantined_images_are_listed_in_their_own_split(many, tmp_path, stored):
    for path in many.images.iterdir():
        if path.name.endswith(("1.jpg", "7.jpg")):
            path.write_bytes(b"")
    result = many.prepare(tmp_path / "shards", split="train=0.5,val=0.5")
    bad = {i for i in range(40) if str(i).endswith(("1", "7"))}
    assert {entry.image_id for entry in result.quarantined} == bad
    for split in result.splits:
        written = ids_in(tmp_path / "shards" / split.name, stored)
        listed = {entry.image_id for entry in split.quarantined}
        assert written.isdisjoint(listed)
        assert split.manifest.counts.get("quarantined", 0) == len(listed)


@pytest.mark.parametrize(
    "text",
    ["train", "train=", "train=x", "train=0.5", "train=0.5,val=0.4", "train=0.5,train=0.5",
     "train=1.5,val=-0.5", "=1", "a/b=1", "..=1", "train=0.5;val=0.5", "train=nan,val=1", ""],
)  # fmt: skip
def test_a_split_that_does_not_add_up_is_a_usage_error(text):
    with pytest.raises(ValidationError, match="split"):
        PrepareConfig(split=text)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_parse_split_reads_what_it_says(weights):
    total = sum(weights)
    text = ", ".join(f"s{i} = {weight / total!r}" for i, weight in enumerate(weights))
    assert list(parse_split(text).values()) == [weight / total for weight in weights]


def test_a_pattern_that_is_none_is_a_usage_error(run_cocoseg, many):
    ran = run_cocoseg("prepare", *many.flags, "--group-by", "(", "--output", "unused")
    assert ran.code == 2
    assert "not a regular expression" in ran.err


def test_a_split_without_any_image_is_refused(coco_set, tmp_path, run_cocoseg):
    coco_set.photo(1)
    coco_set.write()
    flags = (*coco_set.flags, "--output", tmp_path / "shards", "--split", "train=0.5,val=0.5")
    ran = run_cocoseg("prepare", *flags)
    assert ran.code == 3
    assert "no image falls into" in ran.err
    assert not (tmp_path / "shards").exists()


# ---- which images


def test_limit_takes_so_many_and_always_the_same(many, tmp_path, stored):
    many.prepare(tmp_path / "ten", limit=10)
    many.prepare(tmp_path / "twenty", limit=20)
    ten, twenty = ids_in(tmp_path / "ten", stored), ids_in(tmp_path / "twenty", stored)
    assert (len(ten), len(twenty)) == (10, 20)
    assert ten < twenty
    assert many.prepare(tmp_path / "all", limit=99).manifest.samples == 40
    counts = many.prepare(tmp_path / "ten", limit=10).manifest.counts
    assert counts["beyond_limit"] == 30


@pytest.mark.parametrize("form", ["{id:012d}", "{id}", "/photos/{file}", "/shards/train/{id:012d}"])
def test_only_listed_images_are_taken(many, tmp_path, stored, form):
    names = {image["id"]: image["file_name"] for image in many.content["images"]}
    chosen = [3, 17, 9]
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(form.format(id=i, file=names[i]) for i in [*chosen, 3]) + "\n\n")
    result = many.prepare(tmp_path / "shards", only=str(listed))
    assert ids_in(tmp_path / "shards", stored) == set(chosen)
    assert result.manifest.counts["not_listed"] == 37
    listed.write_text("9\n")  # another list is another build
    with pytest.raises(ConfigError, match="other"):
        many.prepare(tmp_path / "shards", only=str(listed))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"3\nnobody\nnoone\n", r"is no key, image id or file name .*: nobody, noone"),
        (b"", "lists no image"),
        (b"\xff\xfe\x00", "is not a list in UTF-8"),
    ],
)
def test_a_list_that_names_no_image_is_refused(many, tmp_path, content, problem):
    listed = tmp_path / "list.txt"
    listed.write_bytes(content)
    with pytest.raises(ConfigError, match=problem):
        many.prepare(tmp_path / "shards", only=str(listed))


def test_skip_empty_leaves_images_without_annotations_out(many, tmp_path, stored):
    result = many.prepare(tmp_path / "shards", skip_empty=True)
    assert ids_in(tmp_path / "shards", stored) == set(range(1, 40, 2))
    assert result.manifest.counts["skipped_empty"] == 20
    assert "without_annotations" not in result.manifest.counts
    assert result.quarantined == ()


# ---- COCO's 2014 and 2017 share their images


def coco_pair(make_coco_set):
    """Two sets of COCO's form; ids 1…6 and 4…9, the shared ones the same pictures."""
    sets = []
    for year, ids in ((2014, range(1, 7)), (2017, range(4, 10))):
        made = make_coco_set(str(year))
        made.content["categories"] = [{"id": i, "name": n} for i, n, _ in COCO_CATEGORIES]
        for image_id in ids:
            prefix = "COCO_train2014_" if year == 2014 else ""
            made.photo(image_id, name=f"{prefix}{image_id:012d}.jpg")
            made.content["images"][-1]["flickr_url"] = f"http://flickr/{image_id}.jpg"
            made.annotate(image_id, [[1, 1, 9, 1, 9, 9]], category_id=image_id)
        sets.append(made)
    return sets


def both(sets, output):
    for one in sets:
        one.write()
    return prepare_shards(
        PrepareConfig(
            annotations=tuple(str(one.json) for one in sets),
            images=tuple(str(one.images) for one in sets),
            output=str(output),
            engine="inline",
        )
    )


def test_2014_and_2017_mixed_hold_each_image_once(make_coco_set, tmp_path, stored):
    result = both(coco_pair(make_coco_set), tmp_path / "shards")
    samples = stored(tmp_path / "shards").values()
    found = sorted((sample.meta["image_id"], sample.meta["source"]) for sample in samples)
    assert found == [(i, 0) for i in range(1, 7)] + [(i, 1) for i in range(7, 10)]
    assert result.manifest.counts["repeated"] == 3
    assert any("3 images are in several annotation files" in note for note in result.notes)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda made: made.content["images"][0].update(flickr_url="http://flickr/other.jpg"),
        lambda made: made.content["categories"].pop(),
        lambda made: made.content["images"][0].update(width=15),
    ],
    ids=["other address", "other categories", "other size"],
)
def test_equal_ids_of_other_pictures_are_no_repetition(make_coco_set, tmp_path, spoil):
    sets = coco_pair(make_coco_set)
    spoil(sets[1])
    result = both(sets, tmp_path / "shards")
    assert result.manifest.counts.get("repeated", 0) < 3
    repeated = result.manifest.counts.get("repeated", 0)
    assert result.manifest.samples + len(result.quarantined) == 12 - repeated


def test_one_file_given_twice_is_a_usage_error(many, tmp_path, run_cocoseg):
    many.write()
    ran = run_cocoseg("prepare", *many.flags, *many.flags, "--output", tmp_path / "shards")
    assert ran.code == 2
    assert "given twice" in ran.err


# ---- Roboflow's head category, and priorities


def roboflow(coco_set):
    coco_set.content["categories"] = [
        {"id": 0, "name": "animals", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "animals"},
        {"id": 2, "name": "dog", "supercategory": "animals"},
    ]
    coco_set.photo(1)
    coco_set.annotate(1, [[1, 1, 9, 1, 9, 9]], category_id=2)
    return coco_set


def test_roboflows_dummy_category_0_is_left_out_with_a_note(coco_set, tmp_path, run_cocoseg):
    result = roboflow(coco_set).prepare(tmp_path / "shards")
    assert result.manifest.classes.names == ("background", "cat", "dog")
    assert any("'animals' (id 0) is left out" in note for note in result.notes)
    ran = run_cocoseg("prepare", *coco_set.flags, "--output", tmp_path / "again", "--json")
    assert any("'animals'" in note for note in json.loads(ran.out)["notes"])


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made.annotate(1, [[1, 1, 9, 1, 9, 9]], category_id=0),
        lambda made: made.content["categories"][2].update(supercategory="none"),
        lambda made: made.content["categories"][0].update(id=5),
    ],
    ids=["used", "not the head of all", "another id"],
)
def test_a_category_that_may_be_real_stays(coco_set, tmp_path, change):
    change(roboflow(coco_set))
    names = coco_set.prepare(tmp_path / "shards").manifest.classes.names
    assert set(names) == {"background", "animals", "cat", "dog"}


def test_priority_in_the_classes_file_beats_area_and_order(coco_set, tmp_path, stored):
    coco_set.photo(1)
    large, small = [[1, 1, 15, 1, 15, 11, 1, 11]], [[4, 4, 8, 4, 8, 8, 4, 8]]
    coco_set.annotate(1, small, category_id=1)
    coco_set.annotate(1, large, category_id=2)
    rules = tmp_path / "classes.yaml"
    for number, (priority, overlap, top) in enumerate(
        ((None, "area", 1), ("dog", "area", 2), ("[cat, dog]", "order", 1), (None, "order", 2))
    ):
        rules.write_text(
            "classes: {cat: , dog: , fish: }\n" + (f"priority: {priority}\n" if priority else "")
        )
        output = tmp_path / f"shards{number}"
        coco_set.prepare(output, classes=str(rules), overlap=overlap)
        (sample,) = stored(output).values()
        assert sample.mask[5, 5] == top


@pytest.mark.parametrize("priority", ["bird", "[cat, cat]", "background"])
def test_a_priority_of_no_class_is_a_usage_error(coco_set, tmp_path, run_cocoseg, priority):
    coco_set.photo(1)
    coco_set.write()
    rules = tmp_path / "classes.yaml"
    rules.write_text(f"classes: {{cat: , dog: , fish: }}\npriority: {priority}\n")
    flags = (*coco_set.flags, "--output", tmp_path / "shards", "--classes", rules)
    ran = run_cocoseg("prepare", *flags)
    assert ran.code == 2
    assert "priority" in ran.err


# ---- what a classes file must not do silently


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("classes: {pet: cat, pet: dog}\nothers: background", "'pet' is given twice"),
        ("classes: {cat: }\nclasses: {dog: }\nothers: background", "'classes' is given twice"),
    ],
)
def test_a_key_given_twice_in_a_classes_file_is_refused(coco_set, tmp_path, rules, message):
    coco_set.photo(1)
    (tmp_path / "classes.yaml").write_text(rules)
    with pytest.raises(ConfigError, match=message):
        coco_set.prepare(tmp_path / "shards", classes=str(tmp_path / "classes.yaml"))


def test_a_quoted_digit_is_a_name_and_a_number_an_id(coco_set, tmp_path, stored):
    coco_set.content["categories"] = [{"id": i + 1, "name": str(i)} for i in range(3)]
    coco_set.photo(1)
    for category_id, left in ((1, 0), (2, 4), (3, 8)):
        box = [left, 0, left + 4, 0, left + 4, 12, left, 12]
        coco_set.annotate(1, [box], category_id)
    rules = tmp_path / "classes.yaml"
    for number, (text, painted) in enumerate(
        (('{one: ["1"]}', [0, 1, 0]), ("{one: [1]}", [1, 0, 0]), ('{a: "0", b: 3}', [1, 0, 2]))
    ):
        rules.write_text(f"classes: {text}\nothers: background\n")
        coco_set.prepare(tmp_path / str(number), classes=str(rules))
        (sample,) = stored(tmp_path / str(number)).values()
        assert [int(sample.mask[5, left]) for left in (1, 5, 9)] == painted


def test_a_classes_file_that_names_the_dummy_category_keeps_it(coco_set, tmp_path):
    made = roboflow(coco_set)
    (tmp_path / "classes.yaml").write_text("classes: {animals: , cat: , dog: }")
    result = made.prepare(tmp_path / "kept", classes=str(tmp_path / "classes.yaml"))
    assert result.manifest.classes.names == ("background", "animals", "cat", "dog")
    assert result.notes == ()
    (tmp_path / "classes.yaml").write_text("classes: {cat: , dog: }\nbackground:\npriority:")
    result = made.prepare(tmp_path / "dropped", classes=str(tmp_path / "classes.yaml"))
    assert result.manifest.classes.names == ("background", "cat", "dog")


# ---- a pattern that does not do what was meant


def test_a_group_that_takes_no_part_in_the_match_falls_back_to_the_match(many, tmp_path, stored):
    output = tmp_path / "shards"
    many.prepare(output, split="train=0.5,val=0.5", group_by=r"^(zzz)?scene\d+")
    scenes = {n: {i // 4 for i in ids_in(output / n, stored)} for n in ("train", "val")}
    assert scenes["train"].isdisjoint(scenes["val"])
    assert len(scenes["train"] | scenes["val"]) == 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_by": "^scene"}, "there is none"),
        ({"group_by": "^nowhere", "split": "train=0.5,val=0.5"}, "matches no file name"),
    ],
)
def test_a_pattern_without_effect_is_a_usage_error(many, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        many.prepare(tmp_path / "shards", **settings)


def test_names_that_a_pattern_misses_are_told(many, tmp_path):
    result = many.prepare(tmp_path / "shards", split="train=0.5,val=0.5", group_by=r"^scene0\d")
    assert result.manifest.counts.get("quarantined", 0) == 0
    many.photo(99, name="other.jpg")
    many.annotate(99, [[1, 1, 9, 1, 9, 9]])
    result = many.prepare(tmp_path / "more", split="train=0.5,val=0.5", group_by=r"^scene\d+")
    assert result.notes == ("--group-by does not match 1 file names",)


def test_more_images_without_a_json_move_no_other_to_another_split(many, tmp_path, stored_photos):
    alone = {"annotations": (), "split": "train=0.5,val=0.5"}

    def dealt(output):
        return {
            name: {meta["file_name"] for _, _, meta in stored_photos(output / name)}
            for name in ("train", "val")
        }

    many.prepare(tmp_path / "before", **alone)
    many.photo(1000, name="a first name.jpg")
    many.prepare(tmp_path / "after", **alone)
    before, after = dealt(tmp_path / "before"), dealt(tmp_path / "after")
    assert all(before[name] <= after[name] for name in before)


def test_boxes_without_segmentations_are_refused(many, tmp_path):
    for annotation in many.content["annotations"]:
        annotation["segmentation"] = []
    with pytest.raises(DataError, match="none of its 20 annotations has a segmentation"):
        many.prepare(tmp_path / "shards")


# ---- categories that only name pixels of no class


def test_background_and_ignored_categories_are_painted_as_such(coco_set, tmp_path, stored):
    coco_set.content["categories"] = [
        {"id": i, "name": name}
        for i, name in enumerate(("__ignore__", "_background_", "cat", "unlabeled"))
    ]
    coco_set.photo(1)
    for category_id, (left, right) in ((2, (0, 16)), (0, (0, 4)), (1, (4, 8))):
        coco_set.annotate(1, [[left, 0, right, 0, right, 12, left, 12]], category_id)
    result = coco_set.prepare(tmp_path / "shards")
    assert result.manifest.classes.names == ("background", "cat")
    (sample,) = stored(tmp_path / "shards").values()
    assert (sample.mask == np.repeat([255, 0, 1, 1], 4)).all()
    assert len(result.notes) == 3
    assert any("'_background_' (id 1)" in n and "its annotations are" in n for n in result.notes)
    assert any("'unlabeled' (id 3)" in n and "no annotation has it" in n for n in result.notes)
