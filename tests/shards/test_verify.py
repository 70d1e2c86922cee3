"""`verify`: whatever differs from the manifest is found and gives exit code 3."""

import io
import json
import shutil
import tarfile

import pytest
from cocoseg.shards.manifest import (
    build_index,
    member_digest,
    publish_index,
    read_index,
    read_manifest,
)
from cocoseg.shards.verify import verify
from cocoseg.storage import locate
from msgspec import structs, to_builtins
from PIL import Image


@pytest.fixture
def copied(golden, tmp_path):
    """The golden training shards (3 + 3 + 2 samples), to be damaged."""
    return shutil.copytree(golden.shards("train"), tmp_path / "copied")


def first_rows(folder):
    index = read_index(str(folder), read_manifest(str(folder)))
    return [index.row(i) for i in range(3)]


def members(path):
    with tarfile.open(path, "r:") as tar:
        return [(info, tar.extractfile(info).read()) for info in tar]


def pack(path, entries):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for info, content in entries:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def cut_at_member_boundary(folder):
    path = folder / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[: first_rows(folder)[2].offsets[0] - 512])


def flip_a_bit_of_a_photo(folder):
    path = folder / "shard-000000.tar"
    content = bytearray(path.read_bytes())
    content[first_rows(folder)[0].offsets[0] + 99] ^= 4
    path.write_bytes(content)


def flip_a_bit_of_a_header(folder):
    path = folder / "shard-000000.tar"
    content = bytearray(path.read_bytes())
    content[first_rows(folder)[1].offsets[0] - 512] ^= 1
    path.write_bytes(content)


def flip_a_bit_of_the_padding(folder):
    path = folder / "shard-000000.tar"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def remove_a_shard(folder):
    (folder / "shard-000001.tar").unlink()


def add_a_shard(folder):
    shutil.copy(folder / "shard-000001.tar", folder / "shard-000003.tar")


def exchange_two_shards(folder):
    (folder / "shard-000000.tar").rename(folder / "x")
    (folder / "shard-000001.tar").rename(folder / "shard-000000.tar")
    (folder / "x").rename(folder / "shard-000001.tar")


def swap_two_masks(folder):
    entries = members(folder / "shard-000000.tar")
    (one, mask), (other, other_mask) = entries[1], entries[4]
    entries[1], entries[4] = (one, other_mask), (other, mask)
    pack(folder / "shard-000000.tar", entries)


def rename_a_key(folder):
    entries = members(folder / "shard-000000.tar")
    entries[0][0].name = "000000999999.jpg"
    pack(folder / "shard-000000.tar", entries)


def append_a_sample(folder):
    entries = members(folder / "shard-000000.tar") + members(folder / "shard-000001.tar")[:3]
    pack(folder / "shard-000000.tar", entries)


def no_tar_at_all(folder):
    (folder / "shard-000000.tar").write_bytes(b"<html>404</html>")


def empty_a_shard(folder):
    (folder / "shard-000000.tar").write_bytes(b"")


def edited(**changes):
    def edit(folder):
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


DAMAGE = {
    cut_at_member_boundary: ("shard-000000.tar", "members"),
    flip_a_bit_of_a_photo: ("shard-000000.tar: ", "image differs"),
    flip_a_bit_of_a_header: ("shard-000000.tar", "sha256"),
    flip_a_bit_of_the_padding: ("shard-000000.tar", "sha256"),
    remove_a_shard: ("shard-000001.tar", "is missing"),
    add_a_shard: ("shard-000003.tar", "is not in the manifest"),
    exchange_two_shards: ("shard-000000.tar", "sha256"),
    swap_two_masks: ("shard-000000.tar: ", "mask differs"),
    rename_a_key: ("shard-000000.tar", "holds ('000000999999.jpg'"),
    append_a_sample: ("shard-000000.tar", "holds 12 members"),
    no_tar_at_all: ("shard-000000.tar", "is not a tar header"),
    empty_a_shard: ("shard-000000.tar", "has 0 bytes"),
    edited(samples=9): ("manifest.json", "samples is 9, counted 8"),
    edited(bytes=1): ("manifest.json", "bytes is 1"),
    edited(ignored_pixels=1): ("manifest.json", "ignored_pixels is 1, counted 0"),
    edited(class_pixels=[1] * 81): ("manifest.json", "class_pixels"),
}
DAMAGE_NAMES = [damage.__name__.replace("edit", f"edit {i}") for i, damage in enumerate(DAMAGE)]


@pytest.mark.parametrize(
    ("damage", "where", "what"),
    [(damage, *said) for damage, said in DAMAGE.items()],
    ids=DAMAGE_NAMES,
)
def test_damage_is_found_and_named(copied, run_cocoseg, damage, where, what):
    damage(copied)
    problems = verify(str(copied)).problems
    assert any(p.where.startswith(where) and what in p.what for p in problems), problems
    ran = run_cocoseg("verify", copied)
    assert ran.code == 3
    assert what in ran.out
    assert "Traceback" not in ran.err
    machine = run_cocoseg("verify", copied, "--json")
    assert machine.code == 3
    assert len(json.loads(machine.out)["problems"]) == len(problems)


def test_good_shards_are_all_good(copied, run_cocoseg):
    ran = run_cocoseg("verify", copied)
    assert (ran.code, ran.err) == (0, "")
    assert "3 shards, 8 samples" in ran.out
    assert "all good" in ran.out


def forged(folder, change):
    """Rewrite the first shard, and its digests in index and manifest, as another program might."""
    manifest = read_manifest(str(folder))
    index = read_index(str(folder), manifest)
    rows = [index.row(i) for i in range(len(index))]
    entries = members(folder / "shard-000000.tar")
    rows[0] = change(rows[0], entries)
    path = folder / "shard-000000.tar"
    pack(path, entries)
    with tarfile.open(path) as tar:
        places = [(info.offset_data, info.size) for info in tar]
    for number in range(3):
        own = places[3 * number : 3 * number + 3]
        digests = tuple(member_digest(c) for _, c in entries[3 * number : 3 * number + 3])
        rows[number] = structs.replace(
            rows[number],
            offsets=tuple(offset for offset, _ in own),
            lengths=tuple(length for _, length in own),
            digests=digests,
        )
    parts = [rows[:3], rows[3:6], rows[6:]]
    index_entry, classes_entry = publish_index(locate(folder), build_index(parts))
    shards = list(manifest.shards)
    shards[0] = structs.replace(shards[0], bytes=path.stat().st_size, sha256=locate(path).sha256())
    edited(
        index=to_builtins(index_entry),
        index_classes=to_builtins(classes_entry),
        shards=to_builtins(shards),
    )(folder)


def other_mask(row, entries):
    entries[1] = (entries[1][0], entries[4][1])
    return row


def mask_of_other_size(row, entries):
    buffer = io.BytesIO()
    Image.new("L", (5, 5)).save(buffer, "PNG")
    entries[1] = (entries[1][0], buffer.getvalue())
    return row


def mask_of_no_class(row, entries):
    buffer = io.BytesIO()
    Image.new("L", (row.width, row.height), 200).save(buffer, "PNG")
    entries[1] = (entries[1][0], buffer.getvalue())
    return row


def broken_photo(row, entries):
    entries[0] = (entries[0][0], entries[0][1][:-90])
    return row


def broken_json(row, entries):
    entries[2] = (entries[2][0], b"{")
    return row


def other_json(row, entries):
    entries[2] = (entries[2][0], entries[2][1].replace(b'"orientation":', b'"orientation":9'))
    return row


def json_of_something_else(row, entries):
    entries[2] = (entries[2][0], b"[1]")
    return row


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (other_mask, "pixel counts differ"),
        (mask_of_other_size, "differ in size"),
        (mask_of_no_class, "200, not train ids"),
        (broken_photo, "image: "),
        (broken_json, "json cannot be read"),
        (json_of_something_else, "json cannot be read"),
        (other_json, "its json says"),
    ],
)
def test_contents_are_checked_beyond_their_digests(copied, change, what):
    forged(copied, change)
    problem = verify(str(copied)).problems[0]
    assert what in problem.what
    assert problem.where.startswith("shard-000000.tar: 0000")
