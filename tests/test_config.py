"""Settings: defaults < YAML < --set < flag, each with its origin, and nothing unknown."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from cocoseg.config import (
    PathField,
    PathMarker,
    Section,
    find_config,
    load,
    parse_yaml,
    show,
    to_yaml,
)
from cocoseg.errors import ConfigError
from cocoseg.settings import Settings
from pydantic import PositiveInt


class PaintSection(Section):
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
    depth: int = 1


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
        ("paint.colour", "'paint.color'"),
        ("paint.widht", "'paint.width'"),
        ("pain.color", "'paint.color'"),
        ("frame.color", "'paint.color'"),
        ("color", "'paint.color'"),
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
        ("paint:\n  colour: red\n", "my.yaml:2: unknown key 'paint.colour'. Did you mean"),
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
        ("paint:\n  width: wide\n", "paint.width: Input should be a valid integer"),
        ("paint:\n  width: 0\n", "greater than 0 (got 0, from my.yaml:2)"),
        ("paint:\n  width: 1.5\n", "paint.width"),
        ("paint:\n  rate: .nan\n", "paint.rate"),
        ("paint:\n  kind: chalk\n", "paint.kind: Input should be 'oil' or 'ink'"),
        ("paint:\n  inputs: one\n", "paint.inputs"),
        ("paint:\n  color: [red]\n", "paint.color"),
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
        PaintSection(colour="red")


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
