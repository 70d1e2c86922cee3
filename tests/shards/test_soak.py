"""Epochs of many small samples: memory and open files of all processes stay as they are."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cocoseg.shards.manifest import Index, publish_index, read_index, read_manifest
from cocoseg.storage import locate
from msgspec import structs

SHARD = 1000
SOAK = """
import os, sys
from itertools import islice
from pathlib import Path
from cocoseg import ShardDataset

def first_pixels(image, mask):
    return image[:2, :2].copy(), mask[:2, :2].copy()

def processes():
    found, waiting = [], [os.getpid()]  # and all below: the fork server and its workers
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return found

def anonymous(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem")))

def measure():
    pids = processes()
    files = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)
    return sum(map(anonymous, pids)), files

def main():
    folder, samples, batch_size, looks = sys.argv[1], *map(int, sys.argv[2:])
    batches = ShardDataset(folder, first_pixels).batches(batch_size, workers=2)
    steps = samples // batch_size
    for look in range(looks):
        for _ in islice(batches, steps // looks):
            pass
        print(*measure(), flush=True)

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def million(tmp_path_factory: pytest.TempPathFactory, coco_set_class) -> Path:
    """A folder of 1,000 shards of 1,000 samples; all shards are one file under many names."""
    folder = tmp_path_factory.mktemp("soak")
    coco_set = coco_set_class(folder / "set")
    for image_id in range(1, SHARD + 1):
        coco_set.photo(image_id, 8, 8)
    coco_set.prepare(folder / "one", samples_per_shard=SHARD)
    manifest = read_manifest(str(folder / "one"))
    index = read_index(str(folder / "one"), manifest)
    samples = np.tile(index.samples, SHARD)
    samples["shard"] = np.repeat(np.arange(SHARD), SHARD)
    many = folder / "many"
    many.mkdir()
    (entry,) = manifest.shards
    names = [f"shard-{number:06d}.tar" for number in range(SHARD)]
    for name in names:
        os.link(folder / "one" / entry.name, many / name)
    files = publish_index(locate(many), Index(samples, np.array(index.classes)))
    told = structs.replace(
        manifest,
        samples=len(samples),
        shards=tuple(structs.replace(entry, name=name) for name in names),
        index=files[0],
        index_classes=files[1],
    )
    locate(many / "manifest.json").publish_bytes(told.to_json().encode())
    return many


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads memory from /proc")
@pytest.mark.long
def test_memory_and_open_files_are_flat(million, tmp_path, record_property):
    samples = 1_000_000
    (tmp_path / "soak.py").write_text(SOAK)
    command = [sys.executable, str(tmp_path / "soak.py"), str(million), str(samples), "200", "10"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stderr[-2000:]
    looks = np.array([line.split() for line in ran.stdout.splitlines()], dtype=float)
    assert len(looks) == 10
    memory, files = looks[1:].T  # the first look: buffers are still growing
    slope = np.polyfit(np.arange(len(memory)), memory, 1)[0] * (len(memory) - 1) / memory.mean()
    record_property(
        "figure",
        f"soak, {samples:,} samples: {memory[0] / 1e3:.1f} to {memory[-1] / 1e3:.1f} MB in all "
        f"processes (slope {slope:+.2%}), {files[0]:.0f} to {files[-1]:.0f} open files",
    )
    assert slope < 0.01
    assert files.max() - files.min() <= 12  # two for each batch on its way
    assert files[-3:].mean() - files[:3].mean() <= 4
