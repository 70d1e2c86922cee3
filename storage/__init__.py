"""Files on local disks and in object stores: a path or URL is parsed once, to a `Location`.

location.py  what a location can do         retry.py   requests that are made again
local.py     … on a local disk              lock.py    locks of one machine
remote.py    … in an object store           output.py  output folders, one command at a time
lists.py     lists of names in text files
"""

import os
from collections.abc import Sequence

from . import remote
from .local import LocalPath as LocalPath
from .location import Location as Location
from .location import is_inner as is_inner
from .remote import RemotePath as RemotePath


def locate(place: str | os.PathLike[str] | Location) -> Location:
    """Return the location that a local path or a URL names; ``file://`` is a local path."""
    if isinstance(place, Location):
        return place
    url = os.fspath(place)
    if "://" in url and not url.startswith("file://"):
        return RemotePath(url.rstrip("/"))
    path = url.removeprefix("file://")
    return LocalPath(path.rstrip("/") or path[:1])


def resolved(place: str | os.PathLike[str] | Location) -> str:
    """Return the one name of a place: absolute, links followed, no slash behind it."""
    place = locate(place)
    return os.path.realpath(place) if isinstance(place, LocalPath) else place.url


def last_parts(place: str | os.PathLike[str] | Location) -> str:
    """Return the end of a location, ``PARENT/NAME``: enough to recognize it."""
    return "/".join(str(locate(place)).rpartition("://")[2].rstrip("/").split("/")[-2:])


def stamps(locations: Sequence[Location]) -> list[str]:
    """Return for each file what changes when its content does, as far as size and date tell.

    All of them are local, or none. Of a file that is not there the stamp is empty.
    """
    if objects := [location for location in locations if isinstance(location, RemotePath)]:
        return remote.stamps(objects)
    return [location.stamp() for location in locations if isinstance(location, LocalPath)]
