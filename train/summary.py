"""The table that a run begins with."""

from collections.abc import Mapping


def table(facts: Mapping[str, str]) -> str:
    """Write facts below each other, their values aligned; a value's further lines are indented.

    Parameters
    ----------
    facts
        Name → value; what has no value is left out.
    """
    told = {name: value for name, value in facts.items() if value}
    width = max(map(len, told), default=0) + 2
    lines = []
    for name, value in told.items():
        first, *more = value.splitlines()
        lines.append(f"{name:<{width}}{first}")
        lines += [" " * width + line for line in more]
    return "\n".join(lines)
