"""Shards for other people's training code: a plain map-style PyTorch data set.

`batches` is endless, exact under torchrun, and resumes where a `state_dict` was taken; see
docs/streaming.md.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, default_collate

from ..errors import CocosegError, ConfigError
from ..processes import Launch, loader_options
from .config import ReadConfig
from .order import ORDER, BatchLayout, SampleOrder
from .png import Mask
from .reader import Sample, ShardSet, good

Transform = Callable[[NDArray[np.uint8], Mask], Any]


class ShardDataset(Dataset[Any]):
    """The samples of one or several folders of shards, by number.

    Any sampler of PyTorch's can order them; `batches` gives cocoseg's own order, which no number of
    processes or workers changes and which resumes exactly from a `state_dict`.

    Parameters
    ----------
    path
        Folder or URL of shards, or several.
    transform
        Called with image and mask; what it returns is the item, of one size where items are to be
        collated. `batches` with workers pickles it (no lambda); its random numbers are its own
        affair.
    seed
        Of the order of `batches`.
    config
        How shards in an object store are read: by default through a cache in the home folder.

    Raises
    ------
    ConfigError, DataError, StoreError
        See `reader.ShardSet`.
    """

    def __init__(
        self,
        path: str | Sequence[str],
        transform: Transform | None = None,
        seed: int = 0,
        config: ReadConfig | None = None,
    ) -> None:
        self.shards = ShardSet([path] if isinstance(path, str) else path, config=config)
        self.transform = transform
        self.order = SampleOrder(self.shards.shard_sizes, seed)
        self._position = 0

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, number: int) -> Any:
        """Return (image, mask), or what `transform` makes of them.

        The image is uint8 RGB, shape (H, W, 3), the mask holds train ids, shape (H, W).

        Raises
        ------
        BadSample
            If it cannot be had as the manifest describes it.
        """
        return self._item(self.shards.read(range(len(self))[number]))

    def __getitems__(self, numbers: Sequence[int]) -> list[Any]:
        """Return several at once, as PyTorch's loader asks for them."""
        return [self._item(good(sample)) for sample in self.shards.read_many(numbers)]

    def key(self, number: int) -> str:
        """Return the key of a sample."""
        return self.shards.row(range(len(self))[number]).key

    def batches(self, batch_size: int, workers: int = 0) -> Iterator[Any]:
        """Yield this process's collated batches, without end, from where the data set stands.

        Workers come from Python's fork server; if none runs yet, one is started in which Ctrl-C is
        blocked and libraries have one thread each. A script needs its ``if __name__ ==
        "__main__":``, as with any processes that are not forked.

        Under torchrun each process gets its part of every global batch (`batch_size` times the
        processes); an epoch has ``len(dataset)`` samples and may end inside a batch.

        Parameters
        ----------
        batch_size
            Samples a process and batch.
        workers
            Loader processes; 0 loads in this one.

        Raises
        ------
        BadSample
            As `__getitem__`.
        """
        launch = Launch.from_environment()
        launch.check()
        layout = BatchLayout(batch_size, launch.world_size, accumulation_steps=1)
        position = self._position
        loader: DataLoader[Any] = DataLoader(
            _Ordered(self, position),
            batch_sampler=layout.micro_batches(launch.rank, range(sys.maxsize)),
            collate_fn=_collate,
            **loader_options(workers, __name__),
        )
        for batch in loader:
            if isinstance(batch, CocosegError):  # raised here: a worker would add its traceback
                raise batch
            position += layout.global_batch
            self._position = position
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return where `batches` stands: after the batch that was yielded last."""
        return {"position": self._position, **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let `batches` resume from a `state_dict`, with any batch size and number of processes.

        Raises
        ------
        ConfigError
            If it is the state of other shards, of another seed, or of a version of cocoseg that
            orders samples differently.
        """
        if {name: state.get(name) for name in self._identity} != self._identity:
            raise ConfigError("the state is of other shards, of another seed or another version")
        self._position = int(state["position"])

    @property
    def _identity(self) -> dict[str, Any]:
        manifests = self.shards.manifests
        digests = [shard.sha256 for manifest in manifests for shard in manifest.shards]
        return {"shards": digests, "seed": self.order.seed, "order": ORDER}

    def _item(self, sample: Sample) -> Any:
        if self.transform is None:
            return sample.image, sample.mask
        return self.transform(sample.image, sample.mask)


class _Ordered(Dataset[Any]):
    """Items by their positions in the plan."""

    def __init__(self, dataset: ShardDataset, start: int) -> None:
        self.dataset, self.start = dataset, start

    def __getitems__(self, positions: Sequence[int]) -> list[Any] | CocosegError:
        located = (self.dataset.order.locate(self.start + position) for position in positions)
        try:
            return self.dataset.__getitems__([number for _, number in located])
        except CocosegError as error:
            return error


def _collate(items: list[Any] | CocosegError) -> Any:
    return items if isinstance(items, CocosegError) else default_collate(items)
