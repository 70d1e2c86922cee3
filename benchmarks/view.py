"""How fast `cocoseg view` shows 120,000 samples: ``python benchmarks/view.py``; needs chromium.

The index names each of 1,000 images 120 times, under other keys. Local files are dropped from the
page cache before a page is measured. The object store is moto's S3, a slow one, on this machine.
"""

import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from cocoseg.prepare.build import prepare_shards
from cocoseg.prepare.config import PrepareConfig
from cocoseg.shards.manifest import Index, publish_index, read_index, read_manifest
from cocoseg.storage import locate
from measure import MB, Row, machine, print_rows
from msgspec.structs import replace
from playwright.sync_api import Page, sync_playwright

IMAGES, REPEATS = 1_000, 120
WIDTH, HEIGHT = 640, 480
PAGES = 5  # further pages that are measured
_VIEWPORT = {"width": 1300, "height": 2800}  # 60 samples and a margin
_PAINTED = "[...document.querySelectorAll('#grid canvas')].filter(c => c.width > 0).length"


def draw(folder: Path) -> Path:
    """Draw images with polygons of COCO's categories; return their shards."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": i, "name": f"class {i}"} for i in range(1, 81)]
    for i in range(IMAGES):
        noise = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3)).astype(np.uint8)
        image = cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        image = cv2.add(image, rng.integers(0, 24, image.shape).astype(np.uint8))
        cv2.imwrite(str(folder / "images" / f"{i}.jpg"), image)
        content["images"].append({"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480})
        for _ in range(7):
            angles = np.sort(rng.uniform(0, 2 * np.pi, 30))
            center, radius = rng.uniform((50, 50), (590, 430)), rng.uniform(15, 120)
            points = center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            content["annotations"].append(
                {
                    "id": len(content["annotations"]),
                    "image_id": i,
                    "category_id": int(rng.integers(1, 81)),
                    "segmentation": [points.clip(0, (WIDTH, HEIGHT)).ravel().round(2).tolist()],
                    "area": 1.0,
                    "iscrowd": 0,
                }
            )
    (folder / "instances.json").write_text(json.dumps(content))
    shards = folder / "shards"
    prepare_shards(
        PrepareConfig(
            annotations=(str(folder / "instances.json"),),
            images=(str(folder / "images"),),
            output=str(shards),
            samples_per_shard=100,
        )
    )
    return shards


def repeat(shards: Path) -> None:
    """Let the index name every sample `REPEATS` times, next to one another."""
    manifest = read_manifest(str(shards))
    index = read_index(str(shards), manifest)
    order = np.repeat(np.arange(len(index)), REPEATS)
    samples = np.zeros(
        len(order),
        [
            (name, "S12") if name == "key" else (name, *index.samples.dtype.fields[name][:1])
            for name in index.samples.dtype.names
        ],
    )
    for name in samples.dtype.names:
        samples[name] = index.samples[name][order]
    samples["key"] = [b"%012d" % i for i in range(len(order))]
    counts = samples["classes"].astype(np.int64)
    samples["classes_start"] = np.cumsum(counts) - counts
    classes = np.concatenate(
        [
            index.classes[start : start + count]
            for start, count in index.samples[["classes_start", "classes"]][order].tolist()
        ]
    )
    of_samples, of_classes = publish_index(locate(shards), Index(samples, classes))
    repeated = replace(
        manifest,
        shards=[replace(shard, samples=shard.samples * REPEATS) for shard in manifest.shards],
        index=of_samples,
        index_classes=of_classes,
    )
    (shards / "manifest.json").write_text(repeated.to_json())


class Server:
    """A ``cocoseg view`` in a process of its own."""

    def __init__(self, paths: Sequence[str], environment: dict[str, str]) -> None:
        began = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cocoseg", "view", *paths, "--no-open", "--port", "0"],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        found = re.search(r"http://\S+", line)
        if found is None:
            raise SystemExit(line + self.process.stderr.read())
        self.address = found[0]
        self.seconds = time.perf_counter() - began

    @property
    def memory(self) -> float:
        """Peak of its resident memory [MB]."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024 / MB

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


def forget(shards: Path) -> None:
    """Drop the shards from the page cache."""
    for file in shards.glob("*.tar"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def timed(page: Page, act: str) -> float:
    """Do something, and return the seconds until 60 more thumbnails were painted."""
    before = page.evaluate("document.querySelectorAll('#grid canvas').length")
    return float(
        page.evaluate(
            """([act, before]) => new Promise((done) => {
                const began = performance.now();
                if (act === 'next') window.scrollTo(0, document.documentElement.scrollHeight);
                const look = () => {
                    const all = [...document.querySelectorAll('#grid canvas')];
                    const next = all.slice(before, before + 60);
                    if (next.length === 60) next[59].scrollIntoView({ block: 'end' });
                    if (next.length === 60 && next.every(c => c.width > 0))
                        done((performance.now() - began) / 1000);
                    else requestAnimationFrame(look);
                };
                look();
            })""",
            [act, before],
        )
    )


def pages(page: Page, shards: Path | None) -> list[float]:
    """Scroll through further pages, cold; return the seconds for each."""
    found = []
    for _ in range(PAGES):
        page.wait_for_timeout(1000)
        if shards is not None:
            forget(shards)
        found.append(timed(page, "next"))
    return found


def open_page(page: Page, address: str) -> float:
    """Open the page; return the seconds until 60 thumbnails were painted."""
    began = time.perf_counter()
    page.goto(address)
    while page.evaluate(_PAINTED) < 60:
        page.wait_for_timeout(10)
    return time.perf_counter() - began


def rows(folder: Path) -> Iterator[Row]:
    """Measure."""
    shards = draw(folder)
    repeat(shards)
    program = shutil.which("chromium")
    if program is None:
        raise SystemExit("needs chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        server = Server([str(shards)], {})
        page = browser.new_context(viewport=_VIEWPORT).new_page()
        forget(shards)
        yield Row("command until its address", "", f"{server.seconds:.1f} s")
        yield Row.limit("page until 60 thumbnails, cold", open_page(page, server.address), 2, "s")
        further = pages(page, shards)
        yield Row.limit("60 more, cold (median)", statistics.median(further), 0.5, "s")
        ask = """async query => {
            const began = performance.now();
            await (await fetch(`api/samples?${query}`)).json();
            return performance.now() - began;
        }"""
        for query in ("class=17&sort=share&desc=1", "sort=classes&desc=1", "q=0117"):
            times = [float(page.evaluate(ask, query)) for _ in range(9)]
            yield Row.limit(f"{query} of 120,000", statistics.median(times), 100, "ms")
        yield Row.limit("memory of the server", server.memory, 300, "MB")
        server.stop()
        with s3(shards) as (url, environment):
            server = Server([url], environment)
            page = browser.new_context(viewport=_VIEWPORT).new_page()
            first = open_page(page, server.address)
            yield Row.limit("S3: page until 60 thumbnails", first, 2, "s")
            yield Row.limit("S3: 60 more (median)", statistics.median(pages(page, None)), 2, "s")
            yield Row.limit("S3: memory of the server", server.memory, 300, "MB")
            server.stop()
        browser.close()


@contextlib.contextmanager
def s3(shards: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Serve the shards from an S3 on loopback, in a process of its own."""
    environment = {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:8199",
    }
    os.environ.update(environment)
    store = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "8199"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        import s3fs

        files = s3fs.S3FileSystem()
        while True:
            try:
                files.mkdir("bench")
                break
            except OSError:
                time.sleep(0.2)
        files.put(str(shards), "bench/shards", recursive=True)
        yield "s3://bench/shards", environment
    finally:
        store.terminate()
        store.wait()


if __name__ == "__main__":
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory(prefix="cocoseg-bench-") as scratch:
        print_rows("view, 120,000 samples", rows(Path(scratch)))
