"""What a command prints: one JSON object with ``--json``, lines for people without."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_WIDTH, _MOST = 100, 20  # characters of a line, lines of a list


class Result:
    """A plan or a result of a command; `to_dict` is what programs read, `text` what people read."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        raise NotImplementedError

    def text(self) -> str:
        """Return it for people: each entry of the JSON form on a line."""
        return aligned(self.to_dict())


@dataclass(frozen=True, slots=True)
class Facts(Result):
    """A result without a class of its own."""

    content: dict[str, Any]
    lines: str | None = None
    """For people; if not given, `content` line by line."""

    def to_dict(self) -> dict[str, Any]:
        """Return `content`."""
        return self.content

    def text(self) -> str:
        """Return `lines`, or `content` line by line."""
        return aligned(self.content) if self.lines is None else self.lines


def aligned(content: Mapping[str, Any]) -> str:
    """Write names and values in two columns."""
    width = max(len(name) for name in content) + 2
    lines = []
    for name, value in content.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {item}" for key, item in value.items()) or "none"
        elif isinstance(value, (list, tuple)):
            value = _joined(list(map(str, value)), f"\n{'':<{width}}")
        elif isinstance(value, float):
            value = f"{value:.4g}"
        lines.append(f"{name.replace('_', ' '):<{width}}{value}")
    return "\n".join(lines)


def _joined(values: list[str], new_line: str) -> str:
    """Put a few short values on one line, each of others on its own, many of them not at all."""
    if sum(map(len, values)) <= _WIDTH:
        return ", ".join(values) or "none"
    more = [f"… and {len(values) - _MOST:,} more"] if len(values) > _MOST else []
    return new_line.join([*values[:_MOST], *more])
