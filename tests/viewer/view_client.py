"""A client of the page's server, and which pixels the evaluation of the fixtures has wrong."""

from cocoseg.shards.reader import Sample
from cocoseg.viewer.app import make_app
from cocoseg.viewer.sources import open_sources
from starlette.testclient import TestClient

IGNORE = 255


def client_of(*paths: str, token: str | None = None) -> TestClient:
    return TestClient(make_app(open_sources(paths), token), base_url="http://127.0.0.1:8100")


def erased(number: int, sample: Sample) -> slice:
    """Rows of a sample that are predicted as background."""
    middle = sample.mask.shape[0] // 2
    return slice(middle - 5, middle + 5 * number + 5)
