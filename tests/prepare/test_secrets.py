"""A URL's user, password and query never reach a file, a log or a message; others are no change."""

import http.server
import io
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest
from cocoseg.infer.predict.inputs import list_inputs
from cocoseg.printable import printable, redacted
from cocoseg.storage import locate

pytest.importorskip("aiohttp")
TOKENS = ("sesame", "another")


class _Handler(http.server.BaseHTTPRequestHandler):
    files: dict[str, bytes]

    def do_GET(self) -> None:
        url = urlparse(self.path)
        if parse_qs(url.query).get("signature") not in [[token] for token in TOKENS]:
            return self.send_error(403)
        content = self.files.get(url.path)
        if content is None:
            return self.send_error(404)
        whole = len(content)
        wanted = self.headers.get("Range")
        self.send_response(206 if wanted else 200)
        if wanted:
            first, _, last = wanted.partition("=")[2].partition("-")
            content = content[int(first) : int(last or whole - 1) + 1]
            end = int(first) + len(content) - 1
            self.send_header("Content-Range", f"bytes {first}-{end}/{whole}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
        return None

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@pytest.fixture
def served(golden: Any) -> Iterator[Callable[[str], list[str]]]:
    """Serve the golden data to those who have a signature; return the flags of `prepare`."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(golden.images("train").iterdir()):
            archive.write(path, path.name)
    files = {
        "/instances.json": golden.annotations("train").read_bytes(),
        "/train.zip": packed.getvalue(),
        **{f"/photos/{path.name}": path.read_bytes() for path in golden.images("val").iterdir()},
    }
    handler = type("Handler", (_Handler,), {"files": files})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = f"http://127.0.0.1:{server.server_address[1]}"

    def flags(token: str) -> list[str]:
        files = (
            f"{place}/instances.json?signature={token}",
            f"{place}/train.zip?signature={token}",
        )
        return ["--annotations", files[0], "--images", files[1]]

    yield flags
    server.shutdown()
    server.server_close()


def written(output: Path) -> bytes:
    return b"".join(path.read_bytes() for path in output.rglob("*") if path.is_file())


def test_a_signed_url_is_read_and_told_nowhere(
    served: Callable[[str], list[str]], run_cocoseg: Callable[..., Any], golden: Any, tmp_path: Path
) -> None:
    output = tmp_path / "shards"
    for token in TOKENS:  # a new signature is no other data
        ran = run_cocoseg("prepare", *served(token), "--output", output, "--json")
        assert ran.code == 0, ran.err
        assert token not in ran.out + ran.err
    content = written(output)
    assert b"instances.json" in content
    assert not [token for token in TOKENS if token.encode() in content]
    assert sorted(path.name for path in output.glob("*.tar")) == ["shard-000000.tar"]


def test_a_refused_signature_is_not_told(
    served: Callable[[str], list[str]],
    run_cocoseg: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran = run_cocoseg("prepare", *served("wrong-one"), "--output", tmp_path / "shards")
    assert ran.code == 1
    assert "access is denied: HTTP 403" in ran.err
    assert "wrong-one" not in ran.out + ran.err


def test_masks_of_listed_urls_are_named_without_signatures(
    served: Callable[[str], list[str]], golden: Any, tmp_path: Path
) -> None:
    place = served("sesame")[1].rpartition("/")[0]
    names = sorted(path.name for path in golden.images("val").iterdir())
    urls = [f"{place}/photos/{name}?signature=sesame&more=a.b" for name in names]
    (tmp_path / "list.txt").write_text("\n".join(urls))
    inputs = list_inputs(str(tmp_path / "list.txt"), str(tmp_path / "out")).images
    assert [image.name for image in inputs] == [name.partition(".")[0] for name in names]
    assert not [image for image in inputs if "sesame" in image.source]
    assert inputs[0].read()[0].ndim == 3


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:secret@bucket/a: gone", "s3://bucket/a: gone"),
        ("'https://h/a?X-Amz-Signature=1&b=2' and b?", "'https://h/a' and b?"),
        ("s3://bucket/*.jp?: matches no file", "s3://bucket/*.jp?: matches no file"),
        ("user@host: a?b=c", "user@host: a?b=c"),
        ("https://u:p@ss@h/x, abfs://box@account/y", "https://h/x, abfs://box@account/y"),
        ("'https://h/x?token'", "'https://h/x'"),
        ('{"a": "ftp://u:p@h/x?y=z", "b": 1}', '{"a": "ftp://h/x", "b": 1}'),
    ],
)
def test_what_is_shown_of_a_url(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert printable(text) == shown


def test_a_location_has_two_faces() -> None:
    folder = locate("https://u:p@host/data?sig=1")
    file = folder / "a/b.txt"
    assert (str(file), file.url) == (
        "https://host/data/a/b.txt",
        "https://u:p@host/data/a/b.txt?sig=1",
    )
    assert (file.name, str(file.parent), file.parent / "b.txt") == (
        "b.txt",
        "https://host/data/a",
        file,
    )
    assert "sig" not in repr(file)
