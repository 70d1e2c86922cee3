"""Damage and forgery: nothing is silent, and nothing does harm.

What a shard is spoilt with is in `attacks`. Unsigned, only the tar changed; signed, manifest and
index were made to fit it.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import attacks
import numpy as np
import pytest
from attacks import ATTACKS, SHARD, members_of, sign
from cocoseg.errors import CocosegError, DataError
from cocoseg.shards.config import IndexConfig
from cocoseg.shards.index import index_shards
from cocoseg.shards.manifest import INDEX_NAMES, read_index, read_manifest
from cocoseg.shards.reader import BadSample, ShardSet
from cocoseg.shards.verify import verify

STEP = 64  # bytes between two cuts
CUTS = 480
FLIPS = 1000
SEED = 20250101


@pytest.fixture(scope="module")
def good(coco_set_class, tmp_path_factory):
    """Two shards, 6 + 2 samples; the first one has 480 places to cut."""
    drawn = coco_set_class(tmp_path_factory.mktemp("damage"))
    for image_id in range(1, 9):
        drawn.photo(image_id, 48 + image_id, 40)
        drawn.annotate(image_id, [[2, 2, 9 + 3 * image_id, 3, 20, 30, 3, 25]], 1)
        drawn.annotate(image_id, [[20, 10, 44, 12, 30, 9 + 3 * image_id]], 2)
    folder = drawn.images.parent / "shards"
    drawn.prepare(folder, samples_per_shard=6)
    assert (folder / SHARD).stat().st_size >= STEP * CUTS
    return folder


@pytest.fixture(scope="module")
def expected(good):
    """What an undamaged folder holds: key → sample."""
    shards = ShardSet([str(good)])
    return {shards.row(i).key: shards.read(i) for i in range(len(shards))}


@pytest.fixture(scope="module")
def members(good):
    return members_of(good / SHARD)


@pytest.fixture
def spoilt(good, tmp_path):
    """A copy, to be spoilt."""
    return Path(shutil.copytree(good, tmp_path / "in" / "spoilt"))


@pytest.fixture
def foreign(good, tmp_path):
    """A folder for the first shard alone, as another program might have written it."""
    folder = tmp_path / "in" / "foreign"
    folder.mkdir(parents=True)
    (tmp_path / "classes.json").write_text('["background", "cat", "dog", "fish"]')
    return folder


def reported(folder):
    """Whether `verify` finds a problem, or cannot begin."""
    try:
        return bool(verify(str(folder)).problems)
    except DataError:
        return True


def read_all(folder, expected, touched=frozenset()):
    """Read every sample; return the keys that were refused.

    What was read must be what was there before, but for the `touched` keys, which must be refused.
    """
    try:
        shards = ShardSet([str(folder)])
    except DataError:
        return set(expected)
    refused = set()
    for position in range(len(shards)):
        key = shards.row(position).key
        (sample,) = shards.read_many([position])
        if isinstance(sample, BadSample):
            assert str(sample) == f"{folder}/{SHARD}: sample {key}: {sample.problem}"
            refused.add(key)
            continue
        assert key not in touched
        if key in expected:
            assert np.array_equal(sample.image, expected[key].image)
            assert np.array_equal(sample.mask, expected[key].mask)
    return refused


def refused_by_index(folder, classes):
    """Whether `index` refuses a folder; it then has written nothing."""
    try:
        index_shards(str(folder), IndexConfig(classes=str(classes), workers=0))
    except CocosegError:
        assert [path.name for path in folder.iterdir()] == [SHARD]
        return True
    return False


def first_rows(folder):
    manifest = read_manifest(str(folder))
    index = read_index(str(folder), manifest)
    return [index.row(i) for i in range(manifest.shards[0].samples)]


def cut_at(places, good, spoilt, foreign, expected, record_property):
    whole, rows = (good / SHARD).read_bytes(), first_rows(good)
    last = max(o + n for row in rows for o, n in zip(row.offsets, row.lengths, strict=True))
    end_mark = last + -last % attacks.BLOCK + len(attacks.END)
    found = by_reader = by_index = harmless = 0
    for place in places:
        (spoilt / SHARD).write_bytes(whole[:place])
        (foreign / SHARD).write_bytes(whole[:place])
        found += reported(spoilt)
        ends = {row.key: max(row.offsets[i] + row.lengths[i] for i in (0, 1)) for row in rows}
        touched = {key for key, end in ends.items() if end > place}
        assert read_all(spoilt, expected, touched) == touched
        by_reader += bool(touched)
        if refused_by_index(foreign, foreign.parents[1] / "classes.json"):
            by_index += 1
        else:  # behind the end mark, writers fill up as they like
            assert place >= end_mark
            harmless += read_all(foreign, expected) == set()
            for name in (*INDEX_NAMES, "manifest.json", "index-report.html"):
                (foreign / name).unlink()
    assert found == len(places)
    assert by_index + harmless == len(places)
    record_property(
        "figure",
        f"{len(places)} cuts: {found} found by verify, {by_reader} touch what the reader reads and "
        f"are found by it, {by_index} refused by index, {harmless} behind the end mark, 0 silent",
    )


def all_cuts(good):
    return range(0, (good / SHARD).stat().st_size, STEP)


def test_a_shard_cut_anywhere_is_found(good, spoilt, foreign, expected, record_property):
    places = random.Random(SEED).sample(all_cuts(good), 40)
    cut_at(places, good, spoilt, foreign, expected, record_property)


@pytest.mark.long
def test_a_shard_cut_at_every_64_bytes_is_found(good, spoilt, foreign, expected, record_property):
    assert len(all_cuts(good)) >= CUTS
    cut_at(all_cuts(good), good, spoilt, foreign, expected, record_property)


def flip(count, good, spoilt, expected, record_property):
    whole, rows = (good / SHARD).read_bytes(), first_rows(good)
    dice = random.Random(SEED)
    found = by_reader = 0
    for _ in range(count):
        place = dice.randrange(len(whole))
        changed = bytearray(whole)
        changed[place] ^= 1 << dice.randrange(8)
        (spoilt / SHARD).write_bytes(changed)
        found += reported(spoilt)
        touched = {
            row.key
            for row in rows
            for i in (0, 1)
            if row.offsets[i] <= place < row.offsets[i] + row.lengths[i]
        }
        assert read_all(spoilt, expected, touched) == touched
        by_reader += bool(touched)
    assert found == count
    record_property(
        "figure",
        f"{count} bit flips: {found} found by verify, {by_reader} touch what the reader reads and "
        "are found by it, 0 silent",
    )


def test_a_flipped_bit_is_found(good, spoilt, expected, record_property):
    flip(60, good, spoilt, expected, record_property)


@pytest.mark.long
def test_a_thousand_flipped_bits_are_found(good, spoilt, expected, record_property):
    flip(FLIPS, good, spoilt, expected, record_property)


def test_there_are_as_many_attacks_as_were_promised(record_property):
    signed = sum(attack.signed for attack in ATTACKS.values())
    foreign = sum(attack.foreign for attack in ATTACKS.values())
    assert min(len(ATTACKS), signed, foreign) >= 20
    record_property(
        "figure", f"{len(ATTACKS)} attacks: {signed} of them also signed, {foreign} on index"
    )


def around(folder):
    """Names of all that lies around an attacked folder, itself left out."""
    here = [str(path) for path in folder.parents[1].rglob("*") if folder not in path.parents]
    return sorted([*here, *os.listdir()])


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_on_the_tar_alone_is_found(spoilt, expected, members, name):
    before = around(spoilt)
    whole = (spoilt / SHARD).read_bytes()
    content = ATTACKS[name].forge(members)
    assert content != whole
    (spoilt / SHARD).write_bytes(content)
    assert reported(spoilt)
    rows = first_rows(spoilt)
    touched = {
        row.key
        for row in rows
        for i in (0, 1)
        if content[row.offsets[i] :][: row.lengths[i]] != whole[row.offsets[i] :][: row.lengths[i]]
    }
    assert read_all(spoilt, expected, touched) == touched
    assert around(spoilt) == before


@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if attack.signed])
def test_an_attack_that_was_signed_anew_is_found(spoilt, expected, members, name):
    before = around(spoilt)
    (spoilt / SHARD).write_bytes(ATTACKS[name].forge(members))
    sign(spoilt)
    found = [p for p in verify(str(spoilt)).problems if "sha256" not in p.what]
    assert found
    assert not any("the manifest says" in p.what for p in found)
    if not ATTACKS[name].fools:
        read_all(spoilt, expected)
    assert around(spoilt) == before


ADOPTED = [name for name, attack in ATTACKS.items() if attack.foreign and attack.signed]
OFTEN = random.Random(SEED).sample(ADOPTED, 25)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in OFTEN else pytest.mark.long) for n in ADOPTED],
)
def test_a_signed_attack_on_adopted_shards_is_found(good, foreign, expected, members, name):
    shutil.copy(good / SHARD, foreign / SHARD)
    classes = str(foreign.parents[1] / "classes.json")
    index_shards(str(foreign), IndexConfig(classes=classes, workers=0))
    assert verify(str(foreign)).problems == ()
    (foreign / SHARD).write_bytes(ATTACKS[name].forge(members))
    sign(foreign)
    found = [p for p in verify(str(foreign)).problems if "sha256" not in p.what]
    assert found
    assert not any("the manifest says" in p.what for p in found)
    if not ATTACKS[name].fools:
        read_all(foreign, expected)


@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if attack.foreign])
def test_index_refuses_an_attacked_shard(foreign, members, name):
    before = around(foreign)
    (foreign / SHARD).write_bytes(ATTACKS[name].forge(members))
    assert refused_by_index(foreign, foreign.parents[1] / "classes.json")
    assert around(foreign) == before


def test_what_is_packed_anew_and_signed_is_good(spoilt, expected, members):
    """Else the signed attacks would prove nothing."""
    (spoilt / SHARD).write_bytes(attacks.tar(*attacks.plain(members)))
    sign(spoilt)
    assert verify(str(spoilt)).problems == ()
    assert read_all(spoilt, expected) == set()


FRUGAL = """
import json, sys
from cocoseg.errors import CocosegError
from cocoseg.shards.index import index_shards
from cocoseg.shards.config import IndexConfig
from cocoseg.shards.reader import ShardSet
from cocoseg.shards.verify import verify
found = {}
for spoilt, foreign, classes in json.load(sys.stdin):
    shards = ShardSet([spoilt])
    refused = []
    for position in range(len(shards)):
        try:
            shards.read(position)
        except CocosegError:
            refused.append(shards.row(position).key)
    problems = [problem.what for problem in verify(spoilt).problems]
    try:
        index_shards(foreign, IndexConfig(classes=classes, workers=0))
        indexed = True
    except CocosegError as error:
        indexed = str(error)
    found[foreign] = (refused, problems, indexed)
with open("/proc/self/status") as file:  # getrusage() counts the parent's memory too
    peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
print(json.dumps([found, peak]))
"""
ROOM = 64  # MiB beyond what good shards take; the smallest bomb would take 160


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_bombs_cost_no_memory(good, tmp_path, members, record_property):
    """Verified, indexed and read, in a process of their own."""
    bombs = {name: attack for name, attack in ATTACKS.items() if attack.costly}
    tasks = []
    for number, attack in enumerate(bombs.values()):
        spoilt = Path(shutil.copytree(good, tmp_path / f"spoilt-{number}"))
        (spoilt / SHARD).write_bytes(attack.forge(members))
        sign(spoilt)
        foreign = tmp_path / f"foreign-{number}"
        foreign.mkdir()
        shutil.copy(spoilt / SHARD, foreign / SHARD)
        tasks.append((str(spoilt), str(foreign), "coco"))

    def run(tasks):
        ran = subprocess.run(
            [sys.executable, "-c", FRUGAL],
            input=json.dumps(tasks),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(good / SHARD, alone / SHARD)
    usual_found, usual = run([(str(good), str(alone), "coco")])
    assert usual_found == {str(alone): [[], [], True]}
    found, peak = run(tasks)
    more = (peak - usual) >> 10
    assert more < ROOM
    for name, (refused, problems, indexed) in zip(bombs, found.values(), strict=True):
        assert problems, name
        assert not any("MemoryError" in what for what in (*problems, str(indexed))), name
        assert indexed is not True, name
        assert refused or name.startswith(("json", "PNG bomb of text")), name
    record_property("figure", f"{len(bombs)} bombs verified, indexed and read: {more} MiB more")
