"""``--only``: the list of the images to use."""

from collections import defaultdict
from collections.abc import Sequence

from ..errors import ConfigError
from ..storage import locate
from ..storage.lists import endings, read_list
from .annotations import ImageEntry

_SHOWN = 3  # lines that an error quotes


class Selection:
    """The images that a list names, a line each: key, image id, or file name.

    What stands before the last parts does not matter: ``SHARDS/KEY``, as ``cocoseg view`` saves
    lists, and ``/data/val2017/NAME.jpg`` are found too.

    Raises
    ------
    ConfigError
        If the file is not a list in UTF-8.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lines = read_list(locate(path), "--only")

    def choose(self, images: Sequence[tuple[str, ImageEntry]]) -> set[str]:
        """Return the keys of the images that are listed.

        Parameters
        ----------
        images
            Key and entry of all.

        Raises
        ------
        ConfigError
            If a line names none.
        """
        keys = defaultdict[str, set[str]](set)
        for key, entry in images:
            for name in (key, entry.file_name, str(entry.id)):
                keys[name].add(key)
        chosen, unknown = set[str](), list[str]()
        for line in self._lines:
            found = next((keys[name] for name in endings(line) if name in keys), None)
            if found is None:
                unknown.append(line)
            else:
                chosen |= found
        if unknown:
            more = f" and {len(unknown) - _SHOWN:,} more" * (len(unknown) > _SHOWN)
            raise ConfigError(
                f"--only {self._path}: is no key, image id or file name of the annotations: "
                f"{', '.join(unknown[:_SHOWN])}{more}"
            )
        if not chosen:
            raise ConfigError(f"--only {self._path}: lists no image")
        return chosen
