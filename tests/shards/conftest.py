"""An object store with faults, for those who ask for it."""

from collections.abc import Iterator

import object_store
import pytest


@pytest.fixture(scope="session")
def server() -> Iterator[object_store.Store]:
    """A real S3 server behind the proxy of faults."""
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    with object_store.serve() as running:
        yield running


@pytest.fixture
def store(
    server: object_store.Store, monkeypatch: pytest.MonkeyPatch
) -> Iterator[object_store.Store]:
    """The server, reached by ``s3://`` URLs, with short pauses between attempts."""
    import fsspec
    import s3fs
    from cocoseg import objectstore

    monkeypatch.setitem(fsspec.config.conf, "s3", server.settings())
    monkeypatch.setattr(objectstore, "FIRST_PAUSE", 0.01)
    s3fs.S3FileSystem.clear_instance_cache()
    server.proxy.clear()
    yield server
    server.proxy.clear()
    s3fs.S3FileSystem.clear_instance_cache()
