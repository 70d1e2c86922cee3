"""Text that is inert wherever it is shown: names come from archives, JSON files and folders."""

import re

_CREDENTIALS = re.compile(r"(?<!abfs)(?<!abfss)(?<!wasb)(?<!wasbs)(://)[^/\s'\"]*@")
_QUERY = re.compile(r"(https?://[^\s?'\"]*|\w://[^\s?'\"]*(?=\?[^\s'\"]*=))\?[^\s'\"]*")
_KEPT = "\n\u200c\u200d"  # the joiners are spelling in Persian, Hindi and emoji


def redacted(text: str) -> str:
    """Return a text without the users, passwords and queries of the URLs in it."""
    return _QUERY.sub(r"\1", _CREDENTIALS.sub(r"\1", text)) if "://" in text else text


def printable(text: str) -> str:
    r"""Return text for people: without secrets, and what cannot be shown is spelled out.

    That is control characters, among them those that move a terminal's cursor, changes of the
    direction of writing, and the halves of surrogate pairs that file names in another encoding hold
    (``\x1b``, ``\u202e``, ``\udcff``).
    """
    text = redacted(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _KEPT else _spelled_out(c) for c in text)


def _spelled_out(character: str) -> str:
    if character.isspace():  # other spaces than U+0020 are not "printable"
        return " "
    return character.encode("unicode_escape").decode("ascii")
