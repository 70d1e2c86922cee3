"""How shards are read, for every command that reads them."""

from typing import Literal

from pydantic import ByteSize

from ..config import PathField, Section


class ReadConfig(Section):
    """Where the bytes of shards come from; local folders are read in place."""

    remote: Literal["cache", "range"] = "cache"
    """Shards in an object store: fetch each whole into `cache_dir`, once a machine, or read every
    sample by a request of its own."""
    cache_dir: PathField = "~/.cache/cocoseg"
    """Folder of fetched shards and indices, which processes and runs share."""
    cache_bytes: ByteSize = ByteSize(64_000_000_000)
    """Most bytes of shards in `cache_dir` ('200GB'); the longest unused go first."""
