"""Settings: defaults < YAML < --set < flag, each with its origin, and nothing unknown."""

from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

import pytest
from cocoseg.config import (
    PathField,
    PathMarker,
    Section,
    describe,
    find_config,
    load,
    parse_yaml,
    show,
    to_yaml,
)
from cocoseg.errors import ConfigError
from cocoseg.settings import Settings
from cocoseg.train.losses import LOSSES
from pydantic import PositiveInt


class PaintSection(Section):
    synonyms = MappingProxyType({"hue": "color", "pigment": "kind"})

    color: str = "red"
    width: PositiveInt = 3
    rate: float = 1e-3
    thick: bool = False
    kind: Literal["oil", "ink"] = "oil"
    output: PathField | None = None
    inputs: tuple[PathField, ...] = ()
    classes: Annotated[str, PathMarker(words=("auto",))] = "auto"
    model: Annotated[str, PathMarker(only_existing=True)] | None = None


class FrameSection(Section):
    synonyms = MappingProxyType({"hue": "depth"})
    fixed_keys = ("depth",)

    depth: int = 1
    """How far it
    protrudes."""


class Tree(Section):
    paint: PaintSection = PaintSection()
    frame: FrameSection = FrameSection()


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write a YAML file in a folder that is not the working one; returns its path."""
    folder = tmp_path / "configs"
    folder.mkdir()
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def write(text):
        path = folder / "my.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_without_anything_all_is_default():
    resolved = load(Tree)
    assert resolved.value == Tree()
    assert set(resolved.origins.values()) == {"default"}
    assert set(resolved.origins) >= {"paint.color", "frame.depth"}


def test_yaml_beats_defaults_set_beats_yaml_a_flag_beats_all(written):
    file = written("paint:\n  color: blue\n  width: 4\n  rate: 2\n")
    flags = {"paint.color": ("--color", "black"), "frame.depth": ("--depth", None)}
    resolved = load(Tree, file, ["paint.width=5", "paint.color=green"], flags)
    assert resolved.value.paint.color == "black"
    assert resolved.value.paint.width == 5
    assert resolved.value.paint.rate == 2.0
    assert resolved.value.frame.depth == 1
    assert resolved.origins["paint.color"] == "--color"
    assert resolved.origins["paint.width"] == "--set"
    assert resolved.origins["paint.rate"] == "my.yaml:4"
    assert resolved.origins["frame.depth"] == "default"


def test_the_last_of_two_sets_wins():
    assert load(Tree, None, ["frame.depth=2", "frame.depth=3"]).value.frame.depth == 3


@pytest.mark.parametrize(
    ("flag", "value"), [((), ()), (("a",), ("/some/a",)), (("a", "s3://b"), ("/some/a", "s3://b"))]
)
def test_a_repeatable_flag_that_was_not_given_changes_nothing(written, flag, value):
    resolved = load(Tree, None, (), {"paint.inputs": ("--input", flag)})
    expected = tuple(v.replace("/some", str(Path.cwd())) for v in value)
    assert resolved.value.paint.inputs == expected


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("paint.colr", "'paint.color'"),
        ("paint.widht", "'paint.width'"),
        ("pain.color", "'paint.color'"),
        ("frame.color", "'paint.color'"),
        ("color", "'paint.color'"),
        ("paint.hue", "Did you mean 'paint.color'?"),
        ("frame.hue", "Did you mean 'frame.depth'?"),
        ("frame.Pigment", "Did you mean 'paint.kind'?"),
        ("hue", "Did you mean 'paint.color' or 'frame.depth'?"),
        ("zzz", "'cocoseg config show'"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(key, hint):
    with pytest.raises(ConfigError) as refused:
        load(Tree, None, [f"{key}=1"])
    assert f"unknown key {key!r}" in str(refused.value)
    assert hint in str(refused.value)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("paint:\n  colr: red\n", "my.yaml:2: unknown key 'paint.colr'. Did you mean"),
        ("\n\npiant:\n  color: red\n", "my.yaml:3: unknown section 'piant'. Did you mean 'paint'"),
        ("paint:\n  width: 1\n  width: 2\n", "my.yaml:3: 'paint.width' is given twice"),
        ("paint:\n  width: 1\npaint:\n  rate: 2\n", "my.yaml:3: section 'paint' is given twice"),
        ("paint: 5\n", "my.yaml:1: 'paint' holds keys"),
        ("paint: [1]\n", "my.yaml:1: 'paint' holds keys"),
        ("- paint\n", "expected sections"),
        ("just text\n", "expected sections"),
        ("paint: {color: red\n", "cannot be read as YAML"),
        ("paint:\n\tcolor: red\n", "cannot be read as YAML"),
        ("a: 1\n---\nb: 2\n", "cannot be read as YAML"),
        ("paint: !!python/object/apply:os.system [ls]\n", "cannot be read as YAML"),
        ("paint:\n  ? [a]\n  : 1\n", "cannot be read as YAML"),
        ("paint:\n  1: 2\n", "unknown key 'paint.1'"),
        ("paint:\n  width: wide\n", "paint.width: expected an integer (got 'wide', from"),
        ("paint:\n  width: 0\n", "greater than 0 (got 0, from my.yaml:2)"),
        ("paint:\n  width: 1.5\n", "paint.width: expected an integer (got 1.5"),
        ("paint:\n  rate: .nan\n", "paint.rate"),
        ("paint:\n  kind: chalk\n", "paint.kind: expected 'oil' or 'ink' (got 'chalk'"),
        ("paint:\n  inputs: one\n", "paint.inputs: expected a list, such as [a, b] (got"),
        ("paint:\n  color: [red]\n", "paint.color: expected a string (got ['red']"),
        ("paint:\n  color:\n", "paint.color"),
    ],
)
def test_a_bad_yaml_file_is_refused_with_the_line(written, text, message):
    with pytest.raises(ConfigError) as refused:
        load(Tree, written(text))
    assert message in str(refused.value)


def test_a_yaml_file_that_is_no_text_is_refused(written):
    path = Path(written(""))
    path.write_bytes(b"\xff\xfe\x00paint")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        load(Tree, str(path))


@pytest.mark.parametrize("text", ["", "# nothing\n", "paint:\n", "paint: {}\n", "paint: ~\n"])
def test_an_empty_file_or_section_is_all_default(written, text):
    assert load(Tree, written(text)).value == Tree()


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("paint.rate=1e-4", 1e-4),  # a string to PyYAML
        ("paint.rate=2", 2.0),
        ("paint.thick=true", True),
        ("paint.thick=no", False),
        ("paint.color='5'", "5"),
        ("paint.color=a=b", "a=b"),
        ("paint.width= 7", 7),
        ("paint.output=", None),
        ("paint.output=null", None),
    ],
)
def test_set_takes_yaml_values(item, expected):
    value = load(Tree, None, [item]).value.paint
    name = item.partition("=")[0].removeprefix("paint.")
    assert getattr(value, name) == expected
    assert type(getattr(value, name)) is type(expected)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("paint.width", "write it as section.key=value"),
        ("paint.width=x", "from --set"),
        ("paint.color={", "is not a YAML value"),
        ("paint=5", "unknown key 'paint'"),
        ("=5", "unknown key ''"),
        ("paint.width.x=5", "unknown key 'paint.width.x'"),
    ],
)
def test_a_bad_set_is_refused(item, message):
    with pytest.raises(ConfigError, match=message):
        load(Tree, None, [item])


def test_a_bad_flag_is_named():
    with pytest.raises(ConfigError, match="from --width"):
        load(Tree, None, (), {"paint.width": ("--width", -1)})


def test_all_wrong_values_are_told_at_once():
    with pytest.raises(ConfigError) as refused:
        load(Tree, None, ["paint.width=0", "paint.kind=chalk", "frame.depth=deep"])
    assert len(str(refused.value).splitlines()) == 3


def test_a_path_is_relative_to_the_file_that_holds_it_or_to_the_working_folder(written):
    file = written("paint:\n  output: out\n  inputs: [../a, /b, 's3://c/d']\n  classes: my.yaml\n")
    folder = Path(file).parent
    paint = load(Tree, file).value.paint
    assert paint.output == str(folder / "out")
    assert paint.inputs == (str(folder.parent / "a"), "/b", "s3://c/d")
    assert paint.classes == file
    paint = load(Tree, file, ["paint.output=out"]).value.paint
    assert paint.output == str(Path.cwd() / "out")
    assert load(Tree, None, ["paint.output=~/x"]).value.paint.output == str(Path.home() / "x")


def test_words_and_names_are_no_paths(written):
    Path("there").mkdir()
    load_model = lambda text: load(Tree, None, [f"paint.model={text}"]).value.paint.model  # noqa: E731
    assert load(Tree, written("paint: {classes: auto}")).value.paint.classes == "auto"
    assert load_model("nvidia/segformer") == "nvidia/segformer"
    assert load_model("there") == str(Path.cwd() / "there")
    assert load_model("./absent") == str(Path.cwd() / "absent")


def test_what_is_shown_or_saved_can_be_loaded_again(written):
    first = load(Tree, None, ["paint.rate=1e-5", "paint.inputs=[a, b]", "paint.color='no: #1'"])
    for text in (show(first), to_yaml({"paint": first.value.paint, "frame": first.value.frame})):
        assert load(Tree, written(text)).value == first.value
    assert "# --set" in show(first)
    assert "# default" in show(first)


def test_settings_are_frozen_and_closed():
    with pytest.raises(ValueError, match="frozen"):
        Tree().paint.width = 9
    with pytest.raises(ValueError, match="Extra inputs"):
        PaintSection(colr="red")


def test_every_bundled_config_is_found_by_name_and_loads(root):
    files = sorted((root / "configs").glob("*.yaml"))
    assert {"coco_segformer_b5", "coco_segformer_b0", "tiny"} <= {file.stem for file in files}
    for file in files:
        for name in (file.stem, file.name):
            assert find_config(name).read_bytes() == file.read_bytes()
        load(Settings, file.stem)


def test_a_file_of_ones_own_goes_before_a_bundled_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text("train: {seed: 77}")
    assert load(Settings, "tiny.yaml").value.train.seed == 77


@pytest.mark.parametrize("name", ["absent", "absent.yaml", "configs/tiny.json", "/"])
def test_a_config_that_is_not_there_names_the_bundled_ones(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"bundled configs \(.*tiny"):
        find_config(name)


def test_every_setting_is_described():
    for section, field in Settings.model_fields.items():
        for name, leaf in field.annotation.model_fields.items():
            assert leaf.description, f"{section}.{name}"


@pytest.mark.parametrize("key", ["train.batch_size", "train.learning_rate", "train.save_dir"])
def test_yes_is_no_number_and_no_path(key):
    with pytest.raises(ConfigError, match=key):
        load(Settings, overrides=[f"{key}=true"])


def bomb(first: str) -> str:
    """Return a document of eight lines, in which `first` stands 10^8 times."""
    lines = [f"a: &a [{', '.join([first] * 10)}]"]
    for before, name in zip("abcdefg", "bcdefgh", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (bomb("x"), "more than 1,000,000 values"),
        ("paint:\n  inputs: " + "[" * 100_000, "nested too deeply"),
        ("paint: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("paint:\n  rate: 2001-99-99", "month must be in"),
        ("paint: {", "expected the node content"),
        ("paint: &a [" + ", ".join(["*a"] * 2000) + "]", "more than 1,000,000 values"),
        ("paint:\n  rate: !!int ''", "string index out of range"),
        ("paint:\n  rate: !!bool x", "x"),
        ("paint:\n  rate: " + "1:" * 300 + "1.0", "too large"),
    ],
    ids=["aliases", "nesting", "code", "a date", "cut", "circle", "int", "bool", "sexagesimal"],
)
def test_hostile_yaml_is_refused_in_a_moment(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        load(Tree, file=str(path))
    with pytest.raises(ConfigError, match=told):
        parse_yaml(text)


def test_aliases_are_allowed(tmp_path: Path) -> None:
    assert parse_yaml("a: &a [1, 2]\nb: *a") == {"a": [1, 2], "b": [1, 2]}
    assert parse_yaml("") is None


def test_a_deep_value_of_set_is_refused_in_a_short_message() -> None:
    with pytest.raises(ConfigError, match="nested too deeply") as raised:
        load(Tree, overrides=["paint.inputs=" + "[" * 100_000])
    assert len(str(raised.value)) < 300


# --- what is said about keys


WRONG = {
    "no list": ("infer.tta_scales=1.0", "infer.tta_scales: expected a list, such as [a, b] (got"),
    "no list nor word": (
        "train.class_weights=even",
        "train.class_weights: expected 'none' or 'auto', or a list, such as [a, b] (got 'even',",
    ),
    "list too short": ("augment.scale_range=[1]", "scale_range: expected a list of more values"),
    "list too long": ("augment.scale_range=[1, 1, 1]", "scale_range: expected a list of 2 values"),
    "empty list": ("infer.tta_scales=[]", "infer.tta_scales: expected a list of 1 or more values"),
    "value of a list": (
        "infer.tta_scales=[1, x]",
        "infer.tta_scales: value 2 of the list: expected a number (got 'x', from --set)",
    ),
    "value of a mapping": (
        "augment.extra={blur: 5}",
        "augment.extra: 'blur': must be at most 1.0 (got 5, from --set)",
    ),
    "no mapping": ("augment.extra=5", "augment.extra: expected keys with values, such as {name: 0"),
    "no size": ("train.cache_bytes=many", "expected a size in bytes, such as 200GB (got 'many'"),
    "no switch": ("train.use_amp=maybe", "train.use_amp: expected true or false (got 'maybe'"),
    "nothing": ("train.batch_size=", "train.batch_size: expected an integer (got None, from"),
    "our own text": ("train.loss_type=mse", "train.loss_type: losses are ce, dice, ce_dice, focal"),
    "a number by yes": ("train.seed=true", "train.seed: true is not a valid value for this key"),
}


@pytest.mark.parametrize(("override", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_value_is_explained_in_plain_words(override, message):
    with pytest.raises(ConfigError) as refused:
        load(Settings, None, [override])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_twenty_wrong_values_of_one_list_are_one_line():
    with pytest.raises(ConfigError) as refused:
        load(Settings, None, [f"train.class_weights={['a'] * 20}".replace("'", "")])
    assert str(refused.value) == (
        "train.class_weights: value 1 of the list: expected a number (got 'a', from --set); so are "
        "19 more"
    )


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(ConfigError) as refused:
        load(Settings, None, [f"train.epochs={'x' * 10_000}"])
    assert len(str(refused.value)) < 200


def sections():
    return {name: field.annotation for name, field in Settings.model_fields.items()}


def test_synonyms_stand_for_keys_and_are_none_themselves():
    for section in sections().values():
        assert set(section.synonyms.values()) <= set(section.model_fields)
        assert not set(section.synonyms) & set(section.model_fields)
        assert all(name == name.lower() for name in section.synonyms)


@pytest.mark.parametrize(
    ("known_from_others", "ours"),
    [
        ("train.lr", "train.learning_rate"),
        ("lr", "train.learning_rate"),
        ("train.loss", "train.loss_type"),
        ("train.bs", "train.batch_size"),
        ("infer.bs", "infer.batch_size"),
        ("train.crop_size", "model.input_size"),
        ("train.num_workers", "train.workers"),
        ("prepare.num-workers", "prepare.workers"),
        ("train.input_size", "model.input_size"),
        ("model.LR", "train.learning_rate"),
    ],
)
def test_names_of_other_programs_are_understood_in_suggestions(known_from_others, ours):
    with pytest.raises(ConfigError) as refused:
        load(Settings, None, [f"{known_from_others}=1"])
    assert str(refused.value).endswith(f"Did you mean {ours!r}?")


def test_a_name_of_other_programs_in_a_yaml_file_is_understood(written):
    with pytest.raises(
        ConfigError, match=r"my.yaml:1: unknown section 'lr'. Did you mean 'train.l"
    ):
        load(Settings, written("lr: 0.1\n"))


def test_one_section_is_shown_alone():
    text = show(load(Tree), "frame")
    assert text.splitlines()[0] == "frame:"
    assert "depth: 1" in text
    assert "paint" not in text
    with pytest.raises(ConfigError, match="frames: no such section; there are paint, frame"):
        show(load(Tree), "frames")


def test_a_key_is_described():
    (depth,) = describe(load(Tree, None, ["frame.depth=4"]), "frame.depth")
    assert (depth.description, depth.allowed) == ("How far it protrudes.", "an integer")
    assert (depth.default, depth.value, depth.origin) == (1, 4, "--set")
    assert depth.text().splitlines()[0] == "frame.depth = 4  (--set, fixed once a run has begun)"


def test_a_section_is_described_key_by_key():
    keys = [one.key for one in describe(load(Tree), "paint")]
    assert keys == [f"paint.{name}" for name in PaintSection.model_fields]


@pytest.mark.parametrize("key", ["hue", "paint.hue", "", "paint.", "zzz"])
def test_what_is_no_key_is_not_described(key):
    with pytest.raises(ConfigError, match="unknown key"):
        describe(load(Tree), key)


def test_every_key_can_be_described():
    for section in sections():
        for one in describe(load(Settings), section):
            assert one.description
            assert one.allowed
            assert "any value" not in one.allowed
            assert one.value == one.default


@pytest.mark.parametrize(
    ("overrides", "ratio", "origin"),
    [
        ([], 0.1, "default"),
        (["model.name=segformer-b0"], 1.0, "default"),
        (["model.name=segformer-b0", "train.backbone_lr_ratio=0.1"], 0.1, "--set"),
    ],
)
def test_the_backbones_rate_is_shown_as_it_will_be(overrides, ratio, origin):
    resolved = load(Settings, None, overrides)
    assert f"  backbone_lr_ratio: {ratio} " in show(resolved, "train")
    (described,) = describe(resolved, "train.backbone_lr_ratio")
    assert (described.value, described.origin) == (ratio, origin)


ALLOWED = {
    "train.learning_rate": "a number, greater than 0",
    "train.rare_class_sampling": "a number, at least 0, less than 1",
    "train.use_amp": "true or false",
    "train.loss_type": " or ".join(map(repr, LOSSES)),
    "train.max_steps": "an integer, greater than 0, or nothing (null)",
    "train.class_weights": "'none' or 'auto', or a list, each value a number, at least 0",
    "augment.ratio_range": "a list of 2 values, each a number, greater than 0",
    "augment.extra": "keys with values: a number, at least 0, at most 1",
}


@pytest.mark.parametrize(("key", "allowed"), ALLOWED.items())
def test_allowed_values_in_words(key, allowed):
    assert describe(load(Settings), key)[0].allowed == allowed


@pytest.mark.parametrize(
    ("value", "becomes"),
    [
        ("runs/none", "{w}/runs/none"),  # the folder runs is there: a mistyped path
        ("runs/a/b", "runs/a/b"),
        ("owner/name", "owner/name"),
        ("name", "name"),
    ],
)
def test_a_path_that_is_missing_from_a_folder_is_no_name(written, value, becomes):
    folder = Path(written("")).parent
    (folder / "runs").mkdir()
    value = load(Tree, written(f"paint:\n  model: {value}\n")).value.paint.model
    assert value == becomes.format(w=folder)
