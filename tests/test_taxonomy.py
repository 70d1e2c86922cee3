"""Category ids to train ids: COCO's, a data set's own, or a file's."""

import json

import pytest
from cocoseg.errors import ConfigError, DataError
from cocoseg.taxonomy import (
    COCO_CATEGORIES,
    Category,
    SemanticClass,
    Taxonomy,
    coco_taxonomy,
    mask_taxonomy,
    resolve_classes,
)
from hypothesis import given
from hypothesis import strategies as st

COCO = [Category(category_id, name) for category_id, name, _ in COCO_CATEGORIES]
PETS = [Category(1, "cat"), Category(2, "dog"), Category(7, "fish")]


def test_coco_has_80_categories_in_ascending_id_with_its_gaps():
    ids = [category_id for category_id, _, _ in COCO_CATEGORIES]
    assert ids == sorted(set(ids))
    assert set(range(1, 91)) - set(ids) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    assert len({name for _, name, _ in COCO_CATEGORIES}) == 80
    taxonomy = coco_taxonomy()
    assert (taxonomy.num_classes, taxonomy.ignore_index, taxonomy.bits) == (81, 255, 8)
    assert taxonomy.names[0] == "background"
    assert taxonomy.names[1] == "person"
    assert taxonomy.names[80] == "toothbrush"


def test_coco_is_what_the_official_file_says(real_data):
    path = real_data / "coco" / "annotations" / "instances_val2017.json"
    official = json.loads(path.read_text())["categories"]
    assert [(c["id"], c["name"], c["supercategory"]) for c in official] == list(COCO_CATEGORIES)


def test_auto_gives_cocos_train_ids_for_cocos_categories_in_any_order():
    for source in (COCO, COCO[::-1]):
        resolved = resolve_classes("auto", [source])
        assert resolved.taxonomy == coco_taxonomy()
        assert resolved.train_ids[0][1] == 1
        assert resolved.train_ids[0][13] == 12
        assert resolved.train_ids[0][90] == 80


@pytest.mark.parametrize(
    "source",
    [COCO[:-1], [*COCO, Category(91, "hat")], [*COCO[:-1], Category(91, "toothbrush")]],
    ids=["one less", "one more", "another id"],
)
def test_auto_takes_anything_else_as_the_jsons_own(source):
    resolved = resolve_classes("auto", [source])
    assert resolved.taxonomy.num_classes == len(source) + 1
    ids = sorted(category.id for category in source)
    assert resolved.train_ids[0] == {c: i for i, c in enumerate(ids, start=1)}


def test_auto_over_coco_and_another_source_is_nobodys_coco():
    resolved = resolve_classes("auto", [COCO, [Category(1, "newt"), Category(2, "person")]])
    assert resolved.taxonomy.num_classes == 82
    assert resolved.train_ids[1] == {1: 81, 2: 1}


def test_coco_by_name_takes_a_part_of_coco_under_any_ids():
    resolved = resolve_classes("coco", [[Category(0, "toothbrush"), Category(5, "person")]])
    assert resolved.taxonomy == coco_taxonomy()
    assert resolved.train_ids == ({0: 80, 5: 1},)


def test_a_name_given_twice_in_one_source_stays_two_classes():
    source = [Category(1, "thing"), Category(4, "thing"), Category(5, "other")]
    names = resolve_classes("auto", [source]).taxonomy.names
    assert names == ("background", "thing (id 1)", "thing (id 4)", "other")


# ---- categories that only name pixels of no class


@pytest.mark.parametrize(
    ("name", "train_id"),
    [
        ("background", 0), ("Background", 0), ("_background_", 0), ("__background__", 0),
        ("unlabeled", 0), (" Unlabelled ", 0),
        ("__ignore__", 255), ("_ignore_", 255), ("ignore", 255), ("VOID", 255), ("ignored", 255),
    ],
)  # fmt: skip
@pytest.mark.parametrize("used", [False, True])
def test_auto_makes_no_class_of_what_names_pixels_of_no_class(name, train_id, used):
    source = [Category(9, "dog"), Category(0, name, used=used), Category(3, "cat")]
    resolved = resolve_classes("auto", [source])
    assert resolved.taxonomy.names == ("background", "cat", "dog")
    assert resolved.train_ids == ({3: 1, 9: 2, 0: train_id},)
    (note,) = resolved.notes
    assert f"{name!r} (id 0)" in note
    assert ("its annotations are" in note) == used
    assert ("ignored" in note) == (train_id == 255)


@pytest.mark.parametrize("name", ["backgrounds", "sky background", "avoid", "unlabeled person"])
def test_a_name_that_only_holds_such_a_word_is_a_class(name):
    resolved = resolve_classes("auto", [[Category(1, name)]])
    assert resolved.taxonomy.names == ("background", name)
    assert resolved.notes == ()


def test_more_than_254_classes_ignore_65535():
    source = [Category(i, f"c{i}") for i in range(1, 256)] + [Category(999, "void")]
    assert resolve_classes("auto", [source]).train_ids[0][999] == 65535
    assert resolve_classes("auto", [source[1:]]).train_ids[0][999] == 255


def test_coco_and_coco_by_name_know_no_such_names():
    assert resolve_classes("auto", [COCO]).notes == ()
    with pytest.raises(DataError, match="'background' is not a COCO category"):
        resolve_classes("coco", [[*COCO, Category(0, "background")]])
    own = resolve_classes("auto", [[*COCO, Category(0, "background")]])
    assert own.taxonomy == coco_taxonomy()
    assert own.train_ids[0] == resolve_classes("auto", [COCO]).train_ids[0] | {0: 0}


@pytest.mark.parametrize(
    ("classes", "bits", "ignore_index"),
    [(1, 8, 255), (254, 8, 255), (255, 16, 65535), (300, 16, 65535)],
)
def test_254_classes_fit_into_8_bits(classes, bits, ignore_index):
    source = [Category(i, f"c{i}") for i in range(1, classes + 1)]
    taxonomy = resolve_classes("auto", [source]).taxonomy
    assert (taxonomy.bits, taxonomy.ignore_index) == (bits, ignore_index)
    assert taxonomy.num_classes - 1 < taxonomy.ignore_index


def test_more_classes_than_16_bits_hold_are_refused():
    source = [Category(i, f"c{i}") for i in range(1, 65536)]
    assert resolve_classes("auto", [source[:-1]]).taxonomy.num_classes == 65535
    with pytest.raises(ConfigError, match="65,536 classes with background; a mask holds at most"):
        resolve_classes("auto", [source])


@given(st.lists(st.builds(SemanticClass, st.text(), st.tuples(st.integers())), min_size=1))
def test_a_taxonomy_survives_its_json_form(classes):
    taxonomy = Taxonomy(tuple(classes))
    assert Taxonomy.from_dict(taxonomy.to_dict()) == taxonomy


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"classes": []},
        {"classes": None},
        {"classes": [{"name": "a", "category_ids": []}]},
        {"classes": [{"train_id": 1, "name": "a", "category_ids": []}]},
        {"classes": [{"train_id": 0, "name": "a", "category_ids": ["x"]}]},
    ],
)
def test_a_broken_taxonomy_is_bad_data(content):
    with pytest.raises(DataError, match="taxonomy"):
        Taxonomy.from_dict(content)


@pytest.fixture
def by_file(tmp_path):
    """Resolve the pets, or `sources`, by the text of a classes file."""

    def resolve(text, *sources):
        path = tmp_path / "classes.yaml"
        path.write_text(text)
        return resolve_classes(str(path), sources or (PETS,))

    return resolve


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected 'classes:'"),
        ("[cat]", "expected 'classes:'"),
        ("classes: [cat, dog]", "expected 'classes:'"),
        ("classes: {cat: ", "cannot be read as YAML"),
        ("{classes: {cat: }, other: background}", "unknown key 'other'"),
        ("{classes: {cat: }, others: drop}", "neither 'background' nor 'ignore'"),
        ("{classes: {cat: , bird: }, others: ignore}", "bird: unknown category 'bird'"),
        ("{classes: {cat: }, ignore: [bird], others: ignore}", "unknown category 'bird'"),
        ("{classes: {cat: }, others: ignore, background: 99}", "unknown category 99"),
        ("{classes: {cat: , pet: [cat, dog]}, others: ignore}", "'cat' is in two places"),
        ("{classes: {cat: }, ignore: cat, others: ignore}", "'cat' is in two places"),
        ("{classes: {cat: , first: 1}, others: ignore}", "'cat' (id 1) is in two places"),
        ("classes: {cat: , dog: }", "says nothing of category 'fish' (id 7)"),
        ("classes: {background: cat}", "list it under 'background:'"),
        ("classes: {cat: {a: b}}", "expected category names or ids"),
        ("classes: {cat: [true]}", "expected category names or ids"),
        ("classes: {cat: 1.5}", "expected category names or ids"),
    ],
)
def test_a_classes_file_that_does_not_fit_is_a_usage_error(by_file, text, message):
    with pytest.raises(ConfigError) as refused:
        by_file(text)
    assert message in str(refused.value)
    assert "classes.yaml" in str(refused.value)


def test_a_classes_file_that_is_not_there_is_a_usage_error(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        resolve_classes(str(tmp_path / "absent.yaml"), [PETS])


FACADE = [
    Category(0, "facade", "none", used=False),
    Category(3, "facade", "facade"),
    Category(4, "door", "facade"),
]
"""As Roboflow exports a project called 'facade': its head has the name of a class."""


@pytest.mark.parametrize(
    "spelling", ["facade", '"facade (id 3)"', "3", '[facade, "facade (id 3)"]']
)
def test_a_class_with_the_name_of_roboflows_head_can_be_named(by_file, spelling):
    resolved = by_file(f"classes: {{wall: {spelling}, door: }}", FACADE)
    assert resolved.taxonomy.names == ("background", "wall", "door")
    assert resolved.train_ids == ({3: 1, 4: 2},)
    assert any("'facade' (id 0) is left out" in note for note in resolved.notes)


@pytest.mark.parametrize("spelling", ["0", '"facade (id 0)"'])
def test_roboflows_head_is_kept_by_its_id(by_file, spelling):
    resolved = by_file(f"classes: {{wall: {spelling}, front: 3, door: }}", FACADE)
    assert resolved.train_ids == ({0: 1, 3: 2, 4: 3},)
    assert resolved.notes == ()


@pytest.mark.parametrize(
    "source",
    [PETS, FACADE, [Category(1, "thing"), Category(4, "thing"), Category(5, "background")]],
)
def test_every_name_that_is_printed_is_accepted_in_a_classes_file(by_file, source):
    printed = resolve_classes("auto", [source]).taxonomy.names[1:]
    assert by_file(json.dumps({"classes": dict.fromkeys(printed), "others": "ignore"}), source)
    for category in source:
        name = f"{category.name} (id {category.id})"
        resolved = by_file(json.dumps({"classes": {"one": name}, "others": "ignore"}), source)
        train_ids = resolved.train_ids[0]
        assert [i for i, place in train_ids.items() if place == 1] == [category.id]


def test_a_classes_file_decides_itself_what_is_background(by_file):
    source = [Category(1, "background"), Category(2, "void"), Category(3, "cat")]
    resolved = by_file("{classes: {void: , wall: background}, ignore: cat}", source)
    assert resolved.train_ids == ({1: 2, 2: 1, 3: 255},)
    assert resolved.notes == ()
    assert by_file("{classes: {cat: }, background: [background, void]}", source).train_ids == (
        {1: 0, 2: 0, 3: 1},
    )


def test_an_unknown_name_lists_the_valid_ones(by_file):
    with pytest.raises(ConfigError, match=r"'bird'; there are 'cat', 'dog', 'fish'$"):
        by_file("{classes: {bird: }, others: ignore}")
    many = [Category(i, f"c{i}") for i in range(1, 99)]
    with pytest.raises(ConfigError, match=r"'c20' and 78 more$"):
        by_file("{classes: {bird: }, others: ignore}", many)


def test_a_name_of_two_categories_asks_for_the_id(by_file):
    source = [Category(1, "thing"), Category(4, "thing")]
    with pytest.raises(ConfigError, match=r"write 'thing \(id 1\)', 'thing \(id 4\)'$"):
        by_file("{classes: {thing: }, others: ignore}", source)


def test_a_classes_file_speaks_of_all_sources_at_once(by_file):
    newts = [Category(1, "newt"), Category(9, "cat")]
    resolved = by_file("{classes: {feline: cat, newt: }, others: ignore}", PETS, newts)
    assert resolved.taxonomy.names == ("background", "feline", "newt")
    assert resolved.taxonomy.classes[1].category_ids == (1, 9)
    assert resolved.train_ids == ({1: 1, 2: 255, 7: 255}, {1: 2, 9: 1})


@pytest.fixture
def names_file(tmp_path):
    """Read the classes of finished masks from the text of a file."""

    def read(text, name="names.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return mask_taxonomy(str(path))

    return read


def test_finished_masks_are_cocos_or_follow_a_file_of_names(names_file):
    assert mask_taxonomy("coco") == coco_taxonomy()
    expected = ("background", "cat", "dog")
    for text in (
        "[background, cat, dog]",
        "- background\n- cat\n- dog\n",
        "0: background\n1: cat\n2: dog",
        "2: dog\n0: background\n1: cat",
        '{"0": "background", "1": "cat", "2": "dog"}',
    ):
        taxonomy = names_file(text)
        assert (taxonomy.names, taxonomy.ignore_index) == (expected, 255)
    assert names_file(json.dumps([f"c{i}" for i in range(256)])).ignore_index == 65535


@pytest.mark.parametrize(
    "text",
    [
        "{0: _background_, 1: cat, 2: void, 255: void}",
        '{"0": "_background_", "1": "cat", "2": "void", "65535": "Ignore"}',
        "{-1: __ignore__, 0: _background_, 1: cat, 2: void}",
        "[__ignore__, _background_, cat, void]",
    ],
)
def test_the_name_of_ignored_pixels_is_no_class_of_finished_masks(names_file, text):
    assert names_file(text).names == ("_background_", "cat", "void")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the names"),
        ("[background]", "two or more"),
        ("background", "expected the names"),
        ("{classes: {cat: }}", "'classes' is not a train id"),
        ("{0: background, 2: dog}", "train id 1 has no name"),
        ("{1: cat, 2: dog}", "train id 0 has no name"),
        ("{0: background, 1: cat, 255: dog}", "train id 2 has no name"),
        ("{0: background, 1: cat, 254: void}", "train id 2 has no name"),
        ("[__ignore__, background]", "two or more"),
        ("{0: background, yes: cat}", "True is not a train id"),
        ("{0: background, 1: cat, '1': dog}", "given twice"),
        ("{0: background, 1: cat, 1: dog}", "given twice"),
        ("{0: background, -1: cat}", "-1 is not a train id"),
        ("[background, no]", "train id 1: False is not a name; quote it"),
        ("[background, cat, cat]", "train ids 1 and 2 are both called 'cat'"),
        ("[background, 5]", "5 is not a name"),
        ("[background, cat", "cannot be read as YAML"),
        ("[" * 5000, "cannot be read as YAML"),
        ("0: " + "9" * 5000, "cannot be read as YAML"),
    ],
)
def test_a_file_of_names_with_gaps_or_doubles_is_a_usage_error(names_file, text, message):
    with pytest.raises(ConfigError) as refused:
        names_file(text)
    assert message in str(refused.value)
    assert "names.yaml" in str(refused.value)
