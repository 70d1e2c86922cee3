"""What a check of ``cocoseg doctor`` found."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from ..errors import CocosegError

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact, whether it is as it should be, and what to do if not."""

    state: State
    text: str
    remedy: str = ""
    check: str = ""
    """Name of the check."""


Check = Callable[[], Iterable[Finding]]


def ok(text: str) -> Finding:
    """Return a finding that is as it should be."""
    return Finding("ok", text)


def warning(text: str, remedy: str) -> Finding:
    """Return a finding that costs time or hides a mistake, but stops nothing."""
    return Finding("warning", text, remedy)


def problem(text: str, remedy: str) -> Finding:
    """Return a finding for which training will fail or learn nothing."""
    return Finding("problem", text, remedy)


def found_by(name: str, check: Check) -> list[Finding]:
    """Run a check; what it raises is a problem among its findings, never an error of ours."""
    findings: list[Finding] = []
    try:
        findings.extend(check())  # what came before an exception stays
    except (Exception, SystemExit) as error:
        findings.append(problem(describe(error), "fix that, and run doctor again"))
    return [replace(finding, check=name) for finding in findings]


def describe(error: BaseException) -> str:
    """Return an exception as one line, its kind first unless its text is meant for users."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, CocosegError) and lines:
        return lines[0]
    return f"{type(error).__name__}: {lines[0] if lines else '(without a message)'}"
