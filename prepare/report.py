"""``prepare-report.html``."""

from collections.abc import Sequence

from .. import storage
from ..shards.manifest import Manifest
from .journal import REPORT
from .plan import BuildPlan
from .shard import BuiltShard


def write_report(
    plan: BuildPlan,
    output: str,
    folders: Sequence[str],
    manifests: Sequence[Manifest],
    built: Sequence[BuiltShard],
) -> None:
    """Write the report beside the shards."""
    storage.publish_bytes(storage.join(output, REPORT), b"")
