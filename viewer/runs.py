"""The records of training runs: scores over time, settings, validation pictures."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ..checkpoint.layout import METRICS, TENSORBOARD
from ..config import parse_yaml
from ..errors import ConfigError
from ..storage import Location

_SETTINGS = "config.yaml"
_PICTURES = "validation/"  # how the names of the pictures begin
_MOST_LINES = 4000  # of one answer; validations are never left out


def read_metrics(run: Location, start: int) -> dict[str, Any]:
    """Return what a run recorded, for JSON.

    Parameters
    ----------
    start
        Bytes that are known already: a run that still trains appends. If the file is shorter, as
        after a resumption from an earlier step, all of it is returned.

    Returns
    -------
    dict
        ``lines``, the records; ``end``, the next `start`; and the ``start`` that they follow on.
    """
    file = run / METRICS
    try:
        size = file.size()
    except ConfigError:
        return {"lines": [], "start": 0, "end": 0}
    start = start if start <= size else 0
    content = file.read_range(start, size - start)
    whole = content[: content.rfind(b"\n") + 1]
    lines = [line for line in map(_parsed, whole.splitlines()) if line is not None]
    return {"lines": _thinned(lines), "start": start, "end": start + len(whole)}


def read_settings(run: Location) -> dict[str, Any]:
    """Return the settings of a run, ``section.key`` → value; empty where it has none."""
    try:
        content = parse_yaml((run / _SETTINGS).read_bytes())
    except ConfigError:
        return {}
    return {
        f"{section}.{key}": value
        for section, values in (content if isinstance(content, Mapping) else {}).items()
        for key, value in (values if isinstance(values, Mapping) else {}).items()
    }


def list_pictures(run: Location) -> list[dict[str, Any]]:
    """Return name and step of each validation picture that TensorBoard's files hold."""
    return [{"name": name, "step": step} for name, step, _ in _pictures(run)]


def read_picture(run: Location, name: str, step: int) -> bytes:
    """Return a validation picture, a PNG file.

    Raises
    ------
    ConfigError
        If there is none.
    """
    for found, at, content in _pictures(run):
        if (found, at) == (name, step):
            return content
    raise ConfigError(f"{run}: no picture of {name} at step {step}")


def _pictures(run: Location) -> Iterator[tuple[str, int, bytes]]:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    folder = run / TENSORBOARD
    if not folder.is_dir():
        return
    with folder.fetched() as local:
        for file in sorted(local.iterdir()):
            for event in EventFileLoader(str(file)).Load():
                for value in event.summary.value:
                    if value.tag.startswith(_PICTURES) and len(value.tensor.string_val) > 2:
                        name = value.tag.removeprefix(_PICTURES)
                        yield name, event.step, value.tensor.string_val[2]


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:  # half a line of a killed run
        return None
    return found if isinstance(found, dict) and isinstance(found.get("step"), int) else None


def _thinned(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    every = -(-len(lines) // _MOST_LINES)
    last = len(lines) - 1
    return [
        line for i, line in enumerate(lines) if i % every == 0 or i == last or "val_mIoU" in line
    ]
