"""Shards byte for byte: what the standard library's `tarfile` would have written."""

import io
import tarfile

import pytest
from cocoseg.shards.writer import EncodedSample, write_shard
from hypothesis import given
from hypothesis import strategies as st


def sample(key, photo, mask=b"mask", extension="jpg"):
    return EncodedSample(key, photo, extension, mask, {"image_id": 7}, 3, 2, 1, ((0, 6),))


def by_tarfile(members):
    """The same members, packed by the standard library."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size, header.mtime, header.mode = len(content), 0, 0o644
            tar.addfile(header, io.BytesIO(content))
    return buffer.getvalue()


keys = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_characters="/"),
    min_size=1,
    max_size=40,
)


@given(st.lists(st.tuples(keys, st.binary(max_size=2000)), max_size=6, unique_by=lambda m: m[0]))
def test_a_shard_is_what_tarfile_would_have_written(tmp_path_factory, found):
    path = tmp_path_factory.mktemp("shard") / "shard.tar"
    record = write_shard(path, (sample(key, photo) for key, photo in found))
    members = [
        member
        for key, photo in found
        for member in (
            (f"{key}.jpg", photo),
            (f"{key}.png", b"mask"),
            (f"{key}.json", b'{"image_id":7}'),
        )
    ]
    content = path.read_bytes()
    assert content == by_tarfile(members)
    assert record.bytes == len(content)
    for number, (_, member) in enumerate(members):
        row, place = record.index.row(number // 3), number % 3
        offset = row.offsets[place]
        assert content[offset : offset + row.lengths[place]] == member


@pytest.mark.parametrize("length", [90, 91, 92, 95])
def test_names_up_to_the_limit_of_the_format_are_written_whole(tmp_path, length):
    key = "k" * length
    write_shard(tmp_path / "shard.tar", [sample(key, b"photo")])
    with tarfile.open(tmp_path / "shard.tar", "r:") as tar:
        assert tar.getnames() == [f"{key}.jpg", f"{key}.png", f"{key}.json"]


def test_a_sample_without_a_mask_has_two_members(tmp_path):
    record = write_shard(tmp_path / "shard.tar", [sample("k", b"photo", None)])
    with tarfile.open(tmp_path / "shard.tar", "r:") as tar:
        assert tar.getnames() == ["k.jpg", "k.json"]
    assert record.index.row(0).lengths[1] == record.index.row(0).offsets[1] == 0
