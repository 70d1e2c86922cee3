"""The contract between the stages: shards, their manifest, and the order in which they are read."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .dataset import ShardDataset

__all__ = ["ShardDataset"]


def __getattr__(name: str) -> Any:
    """Import `ShardDataset` when it is asked for: torch never enters what only writes shards."""
    if name == "ShardDataset":
        from .dataset import ShardDataset

        return ShardDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
