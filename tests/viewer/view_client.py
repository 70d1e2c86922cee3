"""A client of the page's server, and which pixels the evaluation of the fixtures has wrong."""

import io
import struct
from typing import Any

import numpy as np
from cocoseg.shards.reader import Sample
from cocoseg.viewer.app import make_app
from cocoseg.viewer.sources import open_sources
from PIL import Image
from starlette.testclient import TestClient

IGNORE = 255


def client_of(*paths: str, token: str | None = None) -> TestClient:
    return TestClient(make_app(open_sources(paths), token), base_url="http://127.0.0.1:8100")


def erased(number: int, sample: Sample) -> slice:
    """Rows of a sample that are predicted as background."""
    middle = sample.mask.shape[0] // 2
    return slice(middle - 5, middle + 5 * number + 5)


def pictures(client: TestClient, address: str) -> list[Any]:
    """Return what stands at an address of pictures: arrays, and messages where there is none."""
    answer = client.get(address)
    assert answer.status_code == 200, answer.text
    found: list[Any] = []
    content = answer.content
    while content:
        is_message, length = struct.unpack_from("<BI", content)
        part, content = content[5 : 5 + length], content[5 + length :]
        found.append(part.decode() if is_message else np.asarray(Image.open(io.BytesIO(part))))
    return found
