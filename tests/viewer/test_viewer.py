"""`cocoseg view`: what each path is, which samples are found, pictures that keep every value."""

import csv
import io
import json
import shutil
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cocoseg
import numpy as np
import pytest
from cocoseg.errors import ConfigError, DataError
from cocoseg.infer.predict.inputs import list_inputs
from cocoseg.shards.png import encode_mask
from cocoseg.shards.reader import Sample, ShardSet
from cocoseg.storage import locate
from cocoseg.train.run_log import RunLog
from cocoseg.viewer import run
from cocoseg.viewer.pictures import label_png
from cocoseg.viewer.sources import open_sources
from PIL import Image
from starlette.testclient import TestClient
from view_client import IGNORE, client_of, erased, pictures


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
        ranked = sorted(holding, key=lambda i: share[i])
        wanted = {"class": train_id, "sort": "share"}
        assert ask(**wanted, least=some) == [i for i in ranked if share[i] >= some]
        assert ask(**wanted, most=some) == [i for i in ranked if share[i] <= some]


def test_samples_are_found_by_key_and_file_name(
    ask: Callable[..., list[int]], client: TestClient, samples: list[Sample]
) -> None:
    assert ask(q=samples[3].key) == [3]
    recorded = [client.get(f"/api/samples/{i}").json()["meta"]["file_name"] for i in range(8)]
    for i, name in enumerate(recorded):
        assert i in ask(q=name.upper())
        assert all(name in recorded[k] or name in samples[k].key for k in ask(q=name))
    assert ask(q="no such") == []


def test_samples_are_sorted_and_what_is_not_scored_comes_last(
    ask: Callable[..., list[int]], client: TestClient, samples: list[Sample]
) -> None:
    last = len(samples) - 1
    assert ask(sort="mIoU") == [*range(last - 1, -1, -1), last]
    assert ask(sort="mIoU", desc=1) == [*range(last), last]
    assert ask(sort="quality", desc=1) == [*range(last - 1, -1, -1), last]
    assert ask(sort="suspicion", desc=1)[:2] == [4, 2]
    assert ask(sort="mIoU", least=0.55) == [3, 2, 1, 0]  # what has no score is in no range
    assert ask(sort="mIoU", least=0.55, most=0.75) == [3, 2]
    sizes = [sample.mask.size for sample in samples]
    assert ask(sort="size") == sorted(range(len(samples)), key=lambda i: sizes[i])
    there = [len(set(np.unique(sample.mask)) - {IGNORE}) for sample in samples]
    assert ask(sort="classes") == sorted(range(len(samples)), key=lambda i: there[i])
    keys = [sample.key for sample in samples]
    assert ask(sort="key") == sorted(range(len(samples)), key=lambda i: keys[i])
    sure = [(number * 3 % 7) for number in range(last)]
    assert ask(sort="confidence") == [*sorted(range(last), key=lambda i: sure[i]), last]
    count = [client.get(f"/api/samples/{i}").json()["meta"]["instances"] for i in range(last + 1)]
    assert ask(sort="instances") == sorted(range(len(samples)), key=lambda i: count[i])


def test_a_cell_of_the_confusions_leads_to_its_samples(
    ask: Callable[..., list[int]], samples: list[Sample]
) -> None:
    found = 0
    for train_id in {int(i) for sample in samples for i in np.unique(sample.mask)} - {0, IGNORE}:
        lost = {
            i: int((sample.mask[erased(i, sample)] == train_id).sum())
            for i, sample in enumerate(samples[:-1])
        }
        wanted = sorted((i for i in lost if lost[i]), key=lambda i: -lost[i])
        assert ask(pair=f"{train_id},0") == wanted
        found += len(wanted)
    assert found > 5


def test_pictures_have_the_pixels_of_the_shards(
    client: TestClient, samples: list[Sample], evaluation: Path
) -> None:
    for position, sample in enumerate(samples[:-1]):
        address = f"/pictures/{position}?layers=image,truth,prediction-0"
        image, mask, predicted = pictures(client, address)
        assert image.shape == sample.image.shape
        assert np.abs(image.astype(float) - sample.image).mean() < 3
        np.testing.assert_array_equal(mask, sample.mask)
        wanted = Image.open(evaluation / "predictions" / f"{sample.key}.png")
        np.testing.assert_array_equal(predicted, np.asarray(wanted))
        (small,) = pictures(client, f"/pictures/{position}?layers=truth&side=20")
        assert max(small.shape) == 20
        assert set(np.unique(small)) <= set(np.unique(sample.mask))


def test_a_picture_that_is_missing_is_a_message_beside_the_others(client: TestClient) -> None:
    found = pictures(client, "/pictures/7?layers=prediction-0,truth,prediction-7,beauty")
    assert found[0].startswith("no prediction in ")
    assert found[1].ndim == 2
    assert found[2:] == ["no such predictions", "layers=beauty: image, truth or prediction-N"]
    assert "outside of the image" in pictures(client, "/pictures/0?box=9000,0,1,1")[0]


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
        ("/pictures/900", "there are 8 samples"),
        ("/api/samples?sort=beauty", "sort=beauty: one of"),
        ("/api/samples?sort=share", "needs a class"),
        ("/api/samples?sort=mIoU&evaluation=3", "add the folder"),
        ("/api/samples?class=cat", "no number"),
        ("/api/samples?pair=1", "no number"),
        ("/api/samples?pair=1,2,3", "no number"),
        ("/api/facts?positions=1,x", "are no numbers"),
        ("/api/facts?positions=1,800", "there are 8 samples"),
        ("/api/evaluations/4", "add the folder"),
        ("/api/comparison?a=0", "b=: is no number"),
        ("/pictures/0?side=big", "side=big: is no number"),
        ("/pictures/0?box=1,2,3", "left,top,width,height"),
        ("/api/runs/0", "no such run"),
        ("/left-out/0", "no such image"),
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
    shards = str(golden.shards("train"))
    guarded = client_of(shards, token="right")
    assert guarded.get("/api/overview").status_code == 403
    assert guarded.get("/?token=wrong").status_code == 403
    assert guarded.get("/?token=right").status_code == 200
    assert guarded.get("/api/overview").status_code == 200  # by the cookie
    assert client_of(shards, token="right").get("/pictures/0").status_code == 403
    assert client_of(shards, token="right").get("/?token=ä").status_code == 403


def test_other_names_of_this_machine_and_other_sites_are_refused(client: TestClient) -> None:
    def status(**headers: str) -> int:
        return client.get("/api/overview", headers=headers).status_code

    assert status() == 200
    assert [status(host=host) for host in ("localhost", "[::1]:9", "127.0.0.1:7")] == [200] * 3
    evil = ("evil.example", "127.0.0.1.evil.example", "evil.example:8100", "", "[", "127.0.0.1@x")
    assert [status(host=host) for host in evil] == [403] * len(evil)
    assert status(origin="http://127.0.0.1:8100") == 200
    others = ("http://evil.example", "http://127.0.0.1:8101", "null")
    assert [status(origin=origin) for origin in others] == [403] * 3
    assert client.post("/api/overview").status_code == 405


def test_odd_requests_are_answered(client: TestClient) -> None:
    digits = "9" * 5000
    for address in (f"/run-picture/0?step={digits}", f"/pictures/0?side={digits}"):
        assert client.get(address).status_code == 400
    assert "prediction-N" in pictures(client, f"/pictures/0?layers=prediction-{digits}")[0]
    assert client.get("/" + 300 * "a" + ".js").status_code == 404
    broken = client.get(f"/pictures/{digits}")
    assert broken.status_code == 500
    assert "error" in broken.json()
    assert "content-security-policy" in broken.headers
    assert client.get("/api/overview", headers={"origin": "http://["}).status_code == 403


def test_no_picture_outside_of_the_paths_is_served(
    golden: Any, samples: list[Sample], tmp_path: Path
) -> None:
    folder = tmp_path / "masks"
    folder.mkdir()
    (folder / "predictions.jsonl").write_text("")
    outside = tmp_path / "secret.png"
    outside.write_bytes(encode_mask(samples[0].mask))
    (folder / f"{samples[0].key}.png").symlink_to(outside)
    (folder / "inside.png").write_bytes(encode_mask(samples[1].mask))
    (folder / f"{samples[1].key}.png").symlink_to(folder / "inside.png")
    client = client_of(str(golden.shards("train")), str(folder))
    assert "leads out of" in pictures(client, "/pictures/0?layers=prediction-0")[0]
    (mask,) = pictures(client, "/pictures/1?layers=prediction-0")
    np.testing.assert_array_equal(mask, samples[1].mask)


def test_classes_that_occur_together_are_counted(
    client: TestClient, ask: Callable[..., list[int]], samples: list[Sample]
) -> None:
    found = client.get("/api/classes").json()
    held = [set(np.unique(sample.mask).tolist()) for sample in samples]
    assert found["train_ids"] == sorted(set().union(*held) - {0, IGNORE})
    for i, one in enumerate(found["train_ids"]):
        for k, other in enumerate(found["train_ids"]):
            both = [n for n, there in enumerate(held) if {one, other} <= there]
            assert found["images"][i][k] == len(both)
            assert ask(**{"class": one, "with": other}) == both


def test_an_evaluation_adds_its_confusions_up(
    client: TestClient, samples: list[Sample], names: Sequence[str]
) -> None:
    found = client.get("/api/evaluations/0").json()
    wanted: dict[tuple[int, int], list[int]] = {}
    for number, sample in enumerate(samples[:-1]):
        ids, counts = np.unique(sample.mask[erased(number, sample)], return_counts=True)
        for train_id, count in zip(ids.tolist(), counts.tolist(), strict=True):
            if train_id not in (0, IGNORE):
                wanted.setdefault((train_id, 0), []).append(count)
    assert wanted
    assert {(a, b): (pixels, n) for a, b, pixels, n in found["confusions"]} == {
        pair: (sum(counts), len(counts)) for pair, counts in wanted.items()
    }
    assert [one[2] for one in found["confusions"]] == sorted(
        (sum(counts) for counts in wanted.values()), reverse=True
    )
    assert found["metrics"]["classes"][0]["name"] == names[0]


def test_two_evaluations_are_compared(
    golden: Any, evaluation: Path, tmp_path: Path, samples: list[Sample]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    rows = list(csv.DictReader((evaluation / "images.csv").open()))
    change = [0.1, -0.2, 0.0, 0.3, -0.1, 0.0, 0.2]
    with (other / "images.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        for row, plus in zip(rows[:-1], change, strict=False):
            table.writerow({**row, "mIoU": float(row["mIoU"]) + plus})
    metrics = json.loads((evaluation / "metrics.json").read_text())
    metrics["classes"][1]["IoU"] = 0.75
    (other / "metrics.json").write_text(json.dumps(metrics))
    client = client_of(str(golden.shards("train")), str(evaluation), str(other))
    found = client.get("/api/comparison?a=0&b=1").json()
    assert found["images"] == {"compared": 6, "better": 2, "worse": 2}
    changes = {one["name"]: one["after"] - one["before"] for one in found["classes"]}
    assert [name for name, plus in changes.items() if plus] == [metrics["classes"][1]["name"]]
    order = client.get("/api/samples?sort=change&evaluation=0&other=1").json()["positions"]
    assert order == [1, 4, 2, 5, 0, 3, 6, 7]  # the last two are not in both


def test_scores_belong_to_the_shards_that_were_scored(
    golden: Any, evaluation: Path, tmp_path: Path
) -> None:
    """Other shards with the same keys have none of them."""
    twin = tmp_path / "twin"
    shutil.copytree(golden.shards("train"), twin)
    client = client_of(str(twin), str(golden.shards("train")), str(evaluation))
    scores = [client.get(f"/api/samples/{i}").json()["scores"] for i in (0, 8)]
    assert scores[0] == [None]
    assert scores[1][0]["mIoU"] == pytest.approx(0.9)


def test_regions_name_their_sample_and_place(client: TestClient, names: Sequence[str]) -> None:
    regions = client.get("/api/labels/0").json()["regions"]
    assert [(one["position"], one["suspicion"]) for one in regions] == [(4, 0.75), (2, 0.25)]
    assert (regions[0]["annotated"], regions[0]["predicted"]) == (0, 1)
    assert regions[0]["box"] == [2, 3, 3, 3]
    (part,) = pictures(client, "/pictures/4?layers=truth&box=2,3,3,3")
    (whole,) = pictures(client, "/pictures/4?layers=truth")
    np.testing.assert_array_equal(part, whole[3:6, 2:5])


def test_a_list_of_samples_is_read_by_infer_and_prepare(
    client: TestClient, samples: list[Sample], golden: Any, tmp_path: Path, run_cocoseg: Any
) -> None:
    text = client.get("/api/list?positions=5,2").text
    assert text.splitlines() == [f"{golden.shards('train')}/{samples[i].key}" for i in (5, 2)]
    assert len(client.get("/api/list?sort=mIoU").text.splitlines()) == len(samples)
    file = tmp_path / "samples.txt"
    file.write_text(text)
    listed = list_inputs(str(file), str(tmp_path / "masks")).images
    assert [image.name for image in listed] == [samples[i].key for i in (2, 5)]
    np.testing.assert_array_equal(listed[0].read()[0], samples[2].image)
    out = tmp_path / "shards"
    ran = run_cocoseg(
        *("prepare", "--annotations", golden.annotations("train"), "--output", out),
        *("--images", golden.images("train"), "--only", file, "--workers", "1"),
    )
    assert ran.code == 0, ran.err
    built = ShardSet([str(out)])
    assert {built.row(i).key for i in range(len(built))} == {samples[i].key for i in (2, 5)}


def test_images_that_were_left_out_are_listed_with_their_picture(
    golden: Any, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(golden.shards("train"), shards)
    images = tmp_path / "images"
    (images / "more").mkdir(parents=True)
    Image.new("RGB", (30, 20), "red").save(images / "whole.png")
    (images / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    names = ["sub/whole.png", "broken.jpg", "../../etc/passwd", "absent.jpg"]
    with (shards / "quarantine.jsonl").open("w") as file:
        for name in names:
            file.write(json.dumps({"file_name": name, "reason": "size-mismatch"}) + "\n")
        file.write("{half a line")
    client = client_of(str(shards), str(images))
    assert client.get("/api/overview").json()["left_out"] == 4
    found = client.get("/api/left-out").json()["images"]
    assert [entry["file_name"] for entry in found] == names
    assert Image.open(io.BytesIO(client.get("/left-out/0?side=16").content)).size == (16, 11)
    assert [client.get(f"/left-out/{i}").status_code for i in range(5)] == [200, *[400] * 4]


def test_a_run_is_followed_while_it_is_written(golden: Any, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "lo')
    (tmp_path / "config.yaml").write_text("train:\n  max_steps: 7\n")
    client = client_of(str(tmp_path))
    assert client.get("/api/overview").json()["runs"] == [f"{tmp_path.parent.name}/{tmp_path.name}"]
    first = client.get("/api/runs/0").json()
    assert first["lines"] == [{"step": 1, "loss": 2.5}]
    assert first["settings"] == {"train.max_steps": 7}
    with metrics.open("a") as file:
        file.write('ss": 2.0}\nno json\n{"step": 3, "loss": null}\n')
    later = client.get(f"/api/runs/0?from={first['end']}").json()
    assert later["lines"] == [{"step": 2, "loss": 2.0}, {"step": 3, "loss": None}]
    metrics.write_text('{"step": 1, "loss": 9}\n')  # resumed from an earlier step
    again = client.get(f"/api/runs/0?from={later['end']}").json()
    assert (again["start"], again["lines"]) == (0, [{"step": 1, "loss": 9}])
    assert client.get("/api/runs/0/pictures").json() == {"pictures": []}
    answer = client.get("/api/samples")
    assert answer.status_code == 400
    assert "add the folder of shards" in answer.json()["error"]


def test_pictures_of_a_run_are_those_that_it_wrote(tmp_path: Path) -> None:
    log = RunLog(locate(tmp_path), 0, 0)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 9, 3)).astype(np.uint8)
    for step, picture in enumerate(pictures):
        log.picture(step, "validation/a/b", picture)
        log.write(step, loss=1.0)
    log.close()
    client = client_of(str(tmp_path))
    found = client.get("/api/runs/0/pictures").json()["pictures"]
    assert found == [{"name": "a/b", "step": step} for step in range(3)]
    content = client.get("/run-picture/0?name=a/b&step=1").content
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), pictures[1])
    assert client.get("/run-picture/0?name=a/b&step=9").status_code == 400


def test_a_damaged_sample_is_a_message_in_its_place(golden: Any, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(golden.shards("train"), shards)
    opened = ShardSet([str(shards)])
    file = shards / opened.manifests[0].shards[0].name
    content = bytearray(file.read_bytes())
    content[opened.row(0).offsets[0] + 9] ^= 255
    file.write_bytes(content)
    client = client_of(str(shards))
    found = [pictures(client, f"/pictures/{i}")[0] for i in range(8)]
    assert "differs from the index" in found[0]
    assert all(image.ndim == 3 for image in found[1:])
    assert client.get("/api/facts?positions=0,1,2,3,4,5,6,7").status_code == 200


def test_paths_are_recognized_or_refused(golden: Any, evaluation: Path, tmp_path: Path) -> None:
    both = open_sources([str(golden.folder / "shards")])  # the folder that holds the splits
    assert len(both.shards) == 12
    with pytest.raises(ConfigError, match="no such folder"):
        open_sources([str(tmp_path / "nothing")])
    assert open_sources([str(golden.images("val"))]).images
    assert open_sources([str(evaluation)]).shards is None
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"is not a folder of shards .*eval.*infer"):
        open_sources([str(tmp_path / "empty")])
    broken = tmp_path / "scores"
    broken.mkdir()
    (broken / "metrics.json").write_text("{")
    with pytest.raises(DataError, match="is not valid JSON"):
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
