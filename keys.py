"""What is said about keys of the configuration: unknown ones, wrong values, allowed values.

All of it works on names and JSON schemas alone; ``config.py`` knows the sections.
"""

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import ErrorDetails

_SHOWN = 100  # characters of a value in a message

_WORDS = {
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
    "int_parsing": "expected an integer",
    "int_type": "expected an integer",
    "int_from_float": "expected an integer",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "finite_number": "expected a finite number",
    "string_type": "expected a string",
    "tuple_type": "expected a list, such as [a, b]",
    "dict_type": "expected keys with values, such as {{name: 0.5}}",
    "literal_error": "expected {expected}",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "expected a list of {min_length} or more values",
    "too_long": "expected a list of {max_length} values",
    "missing": "expected a list of more values",
    "byte_size": "expected a size in bytes, such as 200GB",
}
"""pydantic's kinds of errors in plain words; source: pydantic, "Validation Errors"."""


def suggestion(key: str, known: Collection[str], synonyms: Mapping[str, Collection[str]]) -> str:
    """Return the end of the message about an unknown key: what may be meant.

    Parameters
    ----------
    key
        As written: ``section.key``, a section, or a bare name.
    known
        Every ``section.key``, and sections where these are possible.
    synonyms
        Other programs' name → the keys that it stands for; see `Section.synonyms`.
    """
    meant = same_meaning(key, known, synonyms)
    if not meant:
        meant = difflib.get_close_matches(key, list(known), n=1, cutoff=0.6)
    if not meant:  # nearly the right name under the wrong section, or under none
        by_name = {name.rpartition(".")[2]: name for name in known}
        near = difflib.get_close_matches(key.rpartition(".")[2], list(by_name), n=1, cutoff=0.75)
        meant = [by_name[name] for name in near]
    if meant:
        return f" Did you mean {' or '.join(map(repr, meant))}?"
    return " 'cocoseg config show' lists every key."


def same_meaning(
    key: str, known: Collection[str], synonyms: Mapping[str, Collection[str]]
) -> list[str]:
    """Return the keys that have this name in another section, or for which it is a synonym.

    Synonyms in the section that was written come first and alone, then equal names.
    """
    section, _, name = key.rpartition(".")
    name = name.lower().replace("-", "_")
    stand_for = synonyms.get(name, ())
    own = [one for one in stand_for if one.partition(".")[0] == section]
    elsewhere = [one for one in known if "." in one and one.rpartition(".")[2] == name]
    return own or elsewhere or list(stand_for)


def complaints(
    problems: Iterable[ErrorDetails],
    given: Mapping[str, Mapping[str, object]],
    origins: Mapping[str, str],
) -> list[str]:
    """Return one line for each key whose value is wrong.

    Parameters
    ----------
    problems
        What pydantic found.
    given
        Section → key → the value as it was written.
    origins
        ``section.key`` → where it was written.
    """
    by_key: dict[str, list[ErrorDetails]] = {}
    for problem in problems:
        by_key.setdefault(".".join(map(str, problem["loc"][:2])), []).append(problem)
    lines = []
    for key, found in by_key.items():
        section, _, name = key.partition(".")
        value = given.get(section, {}).get(name)
        inside = [(one, _place(one, value)) for one in found]
        if any(place for _, place in inside):  # the list is right, what is in it is not
            inside = [(one, place) for one, place in inside if place]
            places = list(dict.fromkeys(place for _, place in inside))
            what = _joined(_in_words(one) for one, place in inside if place == places[0])
            what = f"{places[0]}: {what}"
            more = f"; so are {len(places) - 1} more" if len(places) > 1 else ""
        else:
            what, more = _joined(map(_in_words, found)), ""
        got = _short(inside[0][0]["input"])
        lines.append(f"{key}: {what} (got {got}, from {origins.get(key, 'default')}){more}")
    return lines


def _place(problem: ErrorDetails, value: object) -> str:
    """Return which part of a list or mapping is wrong; the location also names pydantic's types."""
    for part in problem["loc"][2:]:
        if isinstance(part, int) and problem["type"] != "missing":
            return f"value {part + 1} of the list"
        if isinstance(value, Mapping) and part in value:
            return repr(part)
    return ""


def _in_words(problem: ErrorDetails) -> str:
    text = _WORDS.get(problem["type"])
    if text is None or (problem["type"] == "too_long" and problem["ctx"]["max_length"] == 0):
        return problem["msg"].removeprefix("Value error, ")  # pydantic's word for our own texts
    return text.format(**problem.get("ctx", {}))


def _joined(texts: Iterable[str]) -> str:
    """Join alternatives: ``expected 'none' or 'auto', or a list``."""
    first, *others = dict.fromkeys(texts)
    return ", or ".join([first, *(text.removeprefix("expected ") for text in others)])


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + " …"


def allowed(schema: Mapping[str, Any]) -> str:
    """Return in words which values a JSON schema allows."""
    if "anyOf" in schema:
        return ", or ".join(allowed(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(map(repr, schema["enum"]))
    if "const" in schema:
        return repr(schema["const"])
    kind = schema.get("type")
    if kind == "array":
        return _list(schema)
    if kind == "object":
        return f"keys with values: {allowed(schema.get('additionalProperties') or {})}"
    names = {
        "integer": "an integer",
        "number": "a number",
        "boolean": "true or false",
        "string": "a string",
        "null": "nothing (null)",
    }
    limits = {
        "exclusiveMinimum": "greater than",
        "minimum": "at least",
        "exclusiveMaximum": "less than",
        "maximum": "at most",
    }
    told = [f"{words} {schema[limit]:g}" for limit, words in limits.items() if limit in schema]
    return ", ".join([names.get(str(kind), "any value"), *told])


def _list(schema: Mapping[str, Any]) -> str:
    parts: Sequence[Mapping[str, Any]] = schema.get("prefixItems", ())
    if parts:
        return f"a list of {len(parts)} values, each {allowed(parts[0])}"
    return f"a list, each value {allowed(schema.get('items', {}))}"
