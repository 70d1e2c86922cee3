"""Lists of names in text files, one a line."""

from collections.abc import Iterator

from ..errors import ConfigError
from .location import Location


def read_list(file: Location, flag: str) -> list[str]:
    """Return the lines of a list, without blanks around them, empty and repeated ones.

    Parameters
    ----------
    flag
        The option that names the file, for messages.

    Raises
    ------
    ConfigError
        If the file is missing, or no text in UTF-8.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{flag} {file}: is not a list in UTF-8") from None
    return [line for line in dict.fromkeys(map(str.strip, text.splitlines())) if line]


def endings(path: str) -> Iterator[str]:
    """Yield a path, then the same without its first folder, without its first two, and so on."""
    yield path
    while "/" in path:
        path = path.partition("/")[2]
        yield path
