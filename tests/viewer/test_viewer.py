"""`cocoseg view`: what each path is, which samples are found, pictures that keep every value."""

import csv
import io
import json
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cocoseg
import numpy as np
import pytest
from cocoseg.errors import ConfigError, DataError
from cocoseg.shards.png import encode_mask
from cocoseg.shards.reader import Sample, ShardSet
from cocoseg.viewer import run
from cocoseg.viewer.app import make_app
from cocoseg.viewer.pictures import label_png
from cocoseg.viewer.sources import open_sources
from PIL import Image
from starlette.testclient import TestClient

IGNORE = 255


@pytest.fixture(scope="module")
def samples(golden: Any) -> list[Sample]:
    shards = ShardSet([str(golden.shards("train"))])
    return [shards.read(position) for position in range(len(shards))]


@pytest.fixture(scope="module")
def names(golden: Any) -> Sequence[str]:
    return ShardSet([str(golden.shards("train"))]).taxonomy.names


@pytest.fixture(scope="module")
def evaluation(
    samples: list[Sample], names: Sequence[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder as `eval --save-predictions` writes it, of masks that are partly wrong."""
    folder = tmp_path_factory.mktemp("scores")
    rows: dict[str, list[list[object]]] = {
        "images": [["key", "file_name", "mIoU", "label_quality"]],
        "image_classes": [["key", "train_id", "IoU"]],
        "image_confusions": [["key", "truth", "predicted", "pixels"]],
        "labels": [["suspicion", "key", "kind", "annotated", "predicted"]],
    }
    (folder / "predictions").mkdir()
    for number, sample in enumerate(samples[:-1]):  # one is not scored
        predicted = sample.mask.copy()
        predicted[: number + 1] = 0
        (folder / "predictions" / f"{sample.key}.png").write_bytes(encode_mask(predicted))
        rows["images"].append([sample.key, f"photo {number}.jpg", 0.9 - number / 10, number / 10])
        for train_id in np.unique(sample.mask[sample.mask != IGNORE]):
            union = (sample.mask == train_id) | (predicted == train_id)
            hits = (sample.mask == train_id) & (predicted == train_id)
            rows["image_classes"].append([sample.key, train_id, hits.sum() / union.sum()])
            lost = int((sample.mask == train_id).sum() - hits.sum())
            if train_id and lost:
                pair = [names[train_id], names[0]]
                rows["image_confusions"].append([sample.key, *pair, lost])
    rows["labels"].append([0.25, samples[2].key, "wrong class", names[1], names[0]])
    rows["labels"].append([0.75, samples[4].key, "missing object", names[0], names[1]])
    for name, table in rows.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(table)
    (folder / "metrics.json").write_text(json.dumps({"mIoU": 0.5}))
    return folder


@pytest.fixture(scope="module")
def client(golden: Any, evaluation: Path) -> TestClient:
    return TestClient(make_app(open_sources([str(golden.shards("train")), str(evaluation)])))


@pytest.fixture
def ask(client: TestClient) -> Callable[..., list[int]]:
    """Ask for samples, and return their positions."""

    def found(**parameters: object) -> list[int]:
        answer = client.get("/api/samples", params={k: str(v) for k, v in parameters.items()})
        assert answer.status_code == 200, answer.text
        return list(answer.json()["positions"])

    return found


def test_the_overview_counts_what_the_masks_hold(
    client: TestClient, samples: list[Sample], names: Sequence[str]
) -> None:
    overview = client.get("/api/overview").json()
    assert overview["samples"] == len(samples)
    assert [one["name"] for one in overview["classes"]] == list(names)
    for train_id, one in enumerate(overview["classes"]):
        counts = [int((sample.mask == train_id).sum()) for sample in samples]
        assert (one["pixels"], one["images"]) == (sum(counts), sum(map(bool, counts)))
    assert [one["mIoU"] for one in overview["evaluations"]] == [0.5]
    assert len(overview["predictions"]) == 1


def test_samples_of_a_class_are_those_whose_masks_hold_it(
    ask: Callable[..., list[int]], samples: list[Sample]
) -> None:
    for train_id in {int(i) for sample in samples for i in np.unique(sample.mask)} - {IGNORE}:
        share = [float((sample.mask == train_id).mean()) for sample in samples]
        holding = [i for i, value in enumerate(share) if value]
        assert ask(**{"class": train_id}) == holding
        assert ask(**{"class": train_id}, sort="share") == sorted(holding, key=lambda i: share[i])
        some = sorted(share)[-2]
        wanted = [i for i in holding if share[i] >= some]
        assert ask(**{"class": train_id}, least=some) == wanted


def test_samples_are_found_by_key_and_file_name(
    ask: Callable[..., list[int]], samples: list[Sample]
) -> None:
    assert ask(q=samples[3].key) == [3]
    assert ask(q="PHOTO 5") == [5]
    assert ask(q="no such") == []


def test_samples_are_sorted_and_what_is_not_scored_comes_last(
    ask: Callable[..., list[int]], samples: list[Sample]
) -> None:
    last = len(samples) - 1
    assert ask(sort="mIoU") == [*range(last - 1, -1, -1), last]
    assert ask(sort="mIoU", desc=1) == [*range(last), last]
    assert ask(sort="quality", desc=1) == [*range(last - 1, -1, -1), last]
    assert ask(sort="suspicion", desc=1)[:2] == [4, 2]
    sizes = [sample.mask.size for sample in samples]
    assert ask(sort="size") == sorted(range(len(samples)), key=lambda i: sizes[i])
    there = [len(set(np.unique(sample.mask)) - {IGNORE}) for sample in samples]
    assert ask(sort="classes") == sorted(range(len(samples)), key=lambda i: there[i])
    keys = [sample.key for sample in samples]
    assert ask(sort="key") == sorted(range(len(samples)), key=lambda i: keys[i])


def test_a_cell_of_the_confusions_leads_to_its_samples(
    ask: Callable[..., list[int]], samples: list[Sample]
) -> None:
    train_id = 1
    lost = {
        i: int((sample.mask[: i + 1] == train_id).sum()) for i, sample in enumerate(samples[:-1])
    }
    wanted = sorted((i for i in lost if lost[i]), key=lambda i: -lost[i])
    assert ask(pair=f"{train_id},0") == wanted


def test_pictures_have_the_pixels_of_the_shards(
    client: TestClient, samples: list[Sample], evaluation: Path
) -> None:
    for position, sample in enumerate(samples):
        mask = np.asarray(Image.open(io.BytesIO(client.get(f"/mask/{position}").content)))
        np.testing.assert_array_equal(mask, sample.mask)
        small = np.asarray(Image.open(io.BytesIO(client.get(f"/mask/{position}?side=20").content)))
        assert max(small.shape) == 20
        assert set(np.unique(small)) <= set(np.unique(sample.mask))
        answer = client.get(f"/image/{position}")
        assert answer.headers["content-type"] == "image/jpeg"
        image = np.asarray(Image.open(io.BytesIO(answer.content)), float)
        assert image.shape == sample.image.shape
        assert np.abs(image - sample.image).mean() < 3
    content = client.get("/prediction/0/0").content
    wanted = np.asarray(Image.open(evaluation / "predictions" / f"{samples[0].key}.png"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), wanted)


def test_masks_of_16_bits_travel_in_two_channels() -> None:
    mask = np.random.default_rng(0).integers(0, 65536, (30, 40)).astype(np.uint16)
    red, green, _ = np.asarray(Image.open(io.BytesIO(label_png(mask)))).transpose(2, 0, 1)
    np.testing.assert_array_equal(red.astype(int) * 256 + green, mask)


def test_one_sample_tells_what_is_known_of_it(
    client: TestClient, samples: list[Sample], golden: Any
) -> None:
    facts = client.get("/api/samples/4").json()
    sample = samples[4]
    found = {one["train_id"]: one["pixels"] for one in facts["classes"]}
    ids, counts = np.unique(sample.mask, return_counts=True)
    assert found == dict(zip(ids.tolist(), counts.tolist(), strict=True))
    assert (facts["height"], facts["width"]) == sample.mask.shape
    assert facts["scores"][0]["mIoU"] == pytest.approx(0.5)
    assert [row["kind"] for row in facts["regions"][0]] == ["missing object"]
    assert facts["meta"]["file_name"]
    unscored = client.get(f"/api/samples/{len(samples) - 1}").json()
    assert unscored["scores"] == [None]


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("/api/samples/900", "there are 8 samples"),
        ("/mask/900", "there are 8 samples"),
        ("/prediction/7/0", "no such predictions"),
        ("/prediction/0/7", "does not exist|no such"),
        ("/api/samples?sort=beauty", "sort=beauty: one of"),
        ("/api/samples?sort=share", "needs a class"),
        ("/api/samples?sort=mIoU&evaluation=3", "add the folder"),
        ("/api/samples?class=cat", "no number"),
    ],
)
def test_what_cannot_be_answered_is_explained(
    client: TestClient, address: str, problem: str
) -> None:
    answer = client.get(address)
    assert answer.status_code == 400
    assert any(part in answer.json()["error"] for part in problem.split("|")), answer.text


@pytest.mark.parametrize("name", ["..%2fapp.py", "app.py", "%2e%2e/sources.py", "static", ".html"])
def test_no_other_file_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/{name}").status_code == 404


def test_the_page_loads_nothing_from_other_hosts(client: TestClient, root: Path) -> None:
    page = client.get("/")
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    for file in (root / "viewer" / "static").iterdir():
        assert client.get(f"/{file.name}").status_code == 200
        assert "//" not in file.read_text().replace("http://www.w3.org", "") or file.suffix == ".js"
        assert "https://" not in file.read_text()


def test_a_token_is_asked_for_beyond_this_machine(golden: Any) -> None:
    app = make_app(open_sources([str(golden.shards("train"))]), token="right")
    guarded = TestClient(app)
    assert guarded.get("/api/overview").status_code == 403
    assert guarded.get("/?token=wrong").status_code == 403
    assert guarded.get("/?token=right").status_code == 200
    assert guarded.get("/api/overview").status_code == 200  # by the cookie
    assert TestClient(app).get("/mask/0").status_code == 403


def test_paths_are_recognized_or_refused(golden: Any, evaluation: Path, tmp_path: Path) -> None:
    both = open_sources([str(golden.folder / "shards")])  # the folder that holds the splits
    assert len(both.shards) == 12
    with pytest.raises(ConfigError, match="no such folder"):
        open_sources([str(tmp_path / "nothing")])
    with pytest.raises(ConfigError, match=r"is not a folder of shards .*eval.*infer"):
        open_sources([str(golden.images("val"))])
    with pytest.raises(ConfigError, match="give a folder of shards"):
        open_sources([str(evaluation)])
    broken = tmp_path / "scores"
    broken.mkdir()
    (broken / "metrics.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        open_sources([str(golden.shards("val")), str(broken)])


def test_it_serves_in_a_thread_and_shows_itself_in_a_notebook(golden: Any) -> None:
    server = cocoseg.view(str(golden.shards("val")))
    try:
        with urllib.request.urlopen(f"{server.address}api/overview", timeout=600) as answer:
            assert json.load(answer)["samples"] == 4
        assert f'<iframe src="{server.address}"' in server._repr_html_()
        port = int(server.address.rstrip("/").rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"--port {port}"):
            run.open_view([str(golden.shards("val"))], port=port)
    finally:
        server.stop()


def test_the_command_says_what_it_would_show(
    run_cocoseg: Any, golden: Any, evaluation: Path
) -> None:
    ran = run_cocoseg("view", golden.shards("val"), evaluation, "--dry-run", "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told["samples"] == 4
    assert len(told["evaluations"]) == len(told["predictions"]) == 1
